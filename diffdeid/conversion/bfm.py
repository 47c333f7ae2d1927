"""A user's own Basel Face Model -> a `MorphableModel` folder.

Source: `BFM_model_front.mat` as Deep3DFaceRecon (Deng et al. 2019) makes it from the Basel Face Model 2009 (Paysan et al. 2009)
and the expressions of FaceWarehouse (Cao et al. 2014): 35709 vertices of the face, decimetres, x to the right of the picture,
y up, z towards the viewer; directions times their standard deviations; colours 0…255. Neither may be passed on, nor the result.

The pipeline needs more than the file holds, so it is made here: the FaceMesh landmarks, priors of light and of FaceMesh's errors
(round numbers, not learned), and our origin. Eyeballs are part of the skin: none are marked, so no irises are painted.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffdeid.conversion.landmark_placement import place_landmarks
from diffdeid.errors import ConfigurationError
from diffdeid.geometry.landmarks import EYE_CORNERS
from diffdeid.models.face_analyser import FaceAnalyserModel
from diffdeid.models.morphable_model import MorphableModel
from diffdeid.structures import Face, MorphableCoefficients

KEYS = ("meanshape", "meantex", "idBase", "exBase", "texBase", "tri", "keypoints", "frontmask2_idx")
DIRECTIONS = MorphableCoefficients.SIZES[:3]  # identity, expression, albedo
EYE_ORIGIN = (0.0, 0.249, 0.681)  # where the midpoint of the four eye corners lies in our head, decimetres
LIPS = (62, 66)  # middle of the upper and of the lower inner lip among the 68 iBUG points
SYMMETRY_TOLERANCE = 0.02  # decimetres between the mesh and its mirror image
LANDMARK_NOISE = (0.02, 0.06)  # decimetres, across and along the line of sight, where FaceMesh guesses
LIGHT = (0.65, 0.25)  # white light from all sides, and more from the front: a picture value of 0.9 at albedo 1
LIGHT_SPREAD = (0.3, 0.3, 0.3, 0.3, 0.1, 0.1, 0.1, 0.1, 0.1)  # standard deviation of each harmonic
TINT = 0.2  # a channel's own share of that deviation, relative to what the three have in common

LICENCE = """# Licences

Converted by `diffdeid convert bfm` from a Basel Face Model with FaceWarehouse expressions: research licences of their owners, who
do not permit passing them on in any form. Do not publish this folder.
"""


def convert_bfm(path: Path, out: Path, face_analyser: Path) -> None:
    """Write the folder `out`. The landmarks are placed with the FaceMesh in the folder `face_analyser`."""
    source = read_bfm(path)
    num_identity, num_expression, num_albedo = DIRECTIONS
    model = MorphableModel(
        num_vertices=len(source["meanshape"]) // 3,
        num_triangles=len(source["tri"]),
        num_identity=num_identity,
        num_albedo=num_albedo,
        num_tone=0,
        expression_names=[f"expression_{index:02d}" for index in range(num_expression)],
        expression_bounded=False,
    )
    model.mean.copy_(_by_vertex(source["meanshape"]))
    model.identity_basis.copy_(_by_vertex(source["idBase"]))
    model.expression_basis.copy_(_by_vertex(source["exBase"]))
    model.albedo_mean.copy_(_by_vertex(source["meantex"]) / 255)
    model.albedo_basis.copy_(_by_vertex(source["texBase"]) / 255)
    model.triangles.copy_(torch.from_numpy(source["tri"] - 1))
    model.face_region.zero_()[torch.from_numpy(source["frontmask2_idx"] - 1)] = 1  # where Deep3DFaceRecon compares colours

    # The renders that FaceMesh sees show the face around the origin.
    model.mean.sub_(model.mean.mean(0))
    lips = torch.from_numpy(source["keypoints"][list(LIPS)] - 1)
    corners, weights = _place_landmarks(model, lips, FaceAnalyserModel.from_pretrained(face_analyser))
    model.landmark_corners.copy_(corners)
    model.landmark_weights.copy_(weights)
    model.mean.add_(torch.tensor(EYE_ORIGIN) - model.at_landmarks(model.mean)[np.ravel(EYE_CORNERS)].mean(0))

    light = torch.zeros(9, 3)
    light[0], light[2] = torch.tensor(LIGHT)[:, None]
    model.illumination_mean.copy_(light.flatten())
    colour = torch.linalg.cholesky(1 + TINT**2 * torch.eye(3)).inverse()  # white light that varies, a little in tint too
    model.illumination_whitening.copy_(torch.block_diag(*(colour / spread for spread in LIGHT_SPREAD)))
    model.landmark_noise.copy_(torch.tensor(LANDMARK_NOISE))
    model.half().save_pretrained(out)
    (out / "LICENSES.md").write_text(LICENCE)


def read_bfm(path: Path) -> dict[str, np.ndarray]:
    """Read and check the arrays that a model needs; vectors are flat, indices count from 1.

    Raises:
        ConfigurationError: scipy is missing, or the file is not a front model of Deep3DFaceRecon.
    """
    try:
        from scipy.io import loadmat
    except ModuleNotFoundError as error:
        raise ConfigurationError("Reading .mat files needs scipy, which is missing: pip install 'diffdeid[convert]'.") from error
    try:
        content = loadmat(path)
    except OSError:
        raise
    except Exception as error:  # scipy raises many kinds for damaged files
        raise ConfigurationError(f"`{path}` cannot be read as a MATLAB file of version 7.2 or older: {error}") from error
    if missing := [key for key in KEYS if key not in content]:
        raise ConfigurationError(f"`{path}` lacks {missing}. Expected the `BFM_model_front.mat` that Deep3DFaceRecon makes.")

    source = {key: content[key].squeeze() for key in KEYS}
    count = source["meanshape"].size // 3
    shapes = dict.fromkeys(("meanshape", "meantex"), (3 * count,))
    shapes |= dict(zip(("idBase", "exBase", "texBase"), ((3 * count, size) for size in DIRECTIONS), strict=True))
    shapes |= {"tri": (len(source["tri"]), 3), "keypoints": (68,), "frontmask2_idx": (source["frontmask2_idx"].size,)}
    for key, shape in shapes.items():
        if source[key].shape != shape:
            raise ConfigurationError(f"`{key}` in `{path}` should have shape {shape}, has {source[key].shape}.")
        if not np.isfinite(source[key]).all():
            raise ConfigurationError(f"`{key}` in `{path}` has values that are not finite. Make the file again.")
    for key in ("tri", "keypoints", "frontmask2_idx"):
        low, high = source[key].min(), source[key].max()
        if low < 1 or high > count:
            raise ConfigurationError(f"`{key}` in `{path}` should hold vertices 1…{count}, holds {low}…{high}.")
        source[key] = source[key].astype(np.int64)
    _check_units_and_axes(path, source)
    return source


def _check_units_and_axes(path: Path, source: dict[str, np.ndarray]) -> None:
    vertices = source["meanshape"].reshape(-1, 3)
    right, left = vertices[source["keypoints"][36:48] - 1, 0].reshape(2, 6).mean(1)
    if not 0.4 < left - right < 0.9:
        raise ConfigurationError(
            f"The left eye in `{path}` should be about 0.6 to the right of the right eye, is {left - right:.3g}. "
            "Expected decimetres, x to the right of the picture."
        )
    a, b, c = vertices[source["tri"] - 1].transpose(1, 0, 2)
    if np.cross(b - a, c - a)[:, 2].sum() <= 0:
        raise ConfigurationError(
            f"`tri` in `{path}` should be counter-clockwise seen from outside, is clockwise. Swap two columns."
        )


def _by_vertex(values: np.ndarray) -> Tensor:
    """`(3 V,)` -> `(V, 3)`, `(3 V, K)` -> `(K, V, 3)`."""
    return torch.from_numpy(values.T.astype(np.float32).reshape(*values.shape[1:], -1, 3))


def _place_landmarks(model: MorphableModel, lips: Tensor, analyser: FaceAnalyserModel) -> tuple[Tensor, Tensor]:
    """Corners and weights `(468, 3)` of the landmarks. What parts the two vertices `lips` opens the mouth."""

    def look(picture: np.ndarray) -> np.ndarray | None:
        middle = np.array([0.2, 0.2, 0.8, 0.8], np.float32) * len(picture)
        return analyser((picture * 255).round().astype(np.uint8), [Face(middle)])[0].landmarks

    basis = model.expression_basis
    expression = basis[:, lips[0], 1] - basis[:, lips[1], 1]
    opening = -torch.einsum("k,kv->v", expression, basis[..., 1]).clamp(max=0)  # how far down
    everywhere = torch.ones(len(model.triangles), dtype=torch.bool)
    return place_landmarks(
        model.mean, model.albedo_mean, model.triangles, everywhere, opening, look, symmetric=_is_symmetric(model.mean)
    )


def _is_symmetric(vertices: Tensor) -> bool:
    """Whether the mirror image of a mesh `(V, 3)` lies on it."""
    from scipy.spatial import cKDTree

    distance, _ = cKDTree(vertices).query(vertices * torch.tensor([-1, 1, 1]))
    return distance.mean() < SYMMETRY_TOLERANCE
