"""A file laid out like `BFM_model_front.mat` is made of our own head."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from diffdeid.cli import app
from diffdeid.conversion import bfm, landmark_placement
from diffdeid.errors import ConfigurationError
from diffdeid.geometry.camera import project, to_camera
from diffdeid.geometry.landmarks import EYE_CORNERS, LIPS_INNER
from diffdeid.models.fitting import fit
from diffdeid.models.morphable_model import MorphableModel
from tests.landmarks import FACE_OVAL

savemat = pytest.importorskip("scipy.io").savemat
WEIGHTS = Path(__file__).parents[2] / "weights/diffdeid"
SHIFT = np.array([0.02, -0.1, 0.4])  # our head lies elsewhere in the file
IBUG = {  # those of the 68 points that are used, counted from 0 -> FaceMesh
    36: 33, 37: 160, 38: 158, 39: 133, 40: 153, 41: 144, 42: 362, 43: 385, 44: 387, 45: 263, 46: 373, 47: 380, 62: 13, 66: 14,
}  # fmt: skip


def at_landmarks(head: dict[str, torch.Tensor], vertices: torch.Tensor) -> torch.Tensor:
    return (vertices[head["landmark_corners"]] * head["landmark_weights"][..., None]).sum(-2)


@pytest.fixture(scope="module")
def head() -> dict[str, torch.Tensor]:
    """The tensors of our head; its expressions fill all 64 slots."""
    path = WEIGHTS / "morphable_model/diffusion_pytorch_model.safetensors"
    if not path.exists():
        pytest.skip("weights/diffdeid is not here")
    tensors = {name: values.float() if values.is_floating_point() else values for name, values in load_file(path).items()}
    names = json.loads((path.parent / "config.json").read_text())["expression_names"]
    basis = torch.zeros(64, len(tensors["mean"]), 3)
    basis[: len(names)] = tensors["expression_basis"][: len(names)]
    return tensors | {"expression_basis": basis}


@pytest.fixture(scope="module")
def source(head) -> dict[str, np.ndarray]:
    """The content of the file."""
    vertices = head["mean"].double().numpy() + SHIFT
    keypoints = np.ones(68, int)
    for slot, landmark in IBUG.items():
        corners, weights = head["landmark_corners"][landmark], head["landmark_weights"][landmark]
        keypoints[slot] = corners[weights.argmax()] + 1
    generator = np.random.default_rng(0)
    return {
        "meanshape": vertices.reshape(1, -1),
        "meantex": 255 * head["albedo_mean"].numpy().reshape(1, -1),
        "idBase": head["identity_basis"].flatten(1).T.numpy(),
        "exBase": head["expression_basis"].flatten(1).T.numpy(),
        "texBase": generator.normal(0, 5, (vertices.size, 80)).astype(np.float32),
        "tri": head["triangles"].numpy() + 1,
        "keypoints": keypoints[None],
        "frontmask2_idx": np.flatnonzero(vertices[:, 2] - SHIFT[2] > 0.3)[:, None] + 1,
        "unused": np.zeros((1, 1)),
    }


@pytest.fixture(scope="module")
def converted(source, tmp_path_factory) -> MorphableModel:
    """By the command; in a quarter of the pixels and from the front only, to save time."""
    folder = tmp_path_factory.mktemp("bfm")
    savemat(folder / "BFM_model_front.mat", source)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(landmark_placement, "SIZE", 384)
        patch.setattr(landmark_placement, "SIDES", landmark_placement.SIDES[4:5])
        result = CliRunner().invoke(app, ["convert", "bfm", str(folder / "BFM_model_front.mat"), str(folder / "out")])
    assert result.exit_code == 0, result.output
    return MorphableModel.from_pretrained(folder / "out")


def refusal(tmp_path, content) -> str:
    savemat(tmp_path / "bfm.mat", content)
    with pytest.raises(ConfigurationError) as error:
        bfm.read_bfm(tmp_path / "bfm.mat")
    return str(error.value)


def test_heads_are_those_of_the_file_moved(source, converted):
    generator = torch.Generator().manual_seed(0)
    identity, expression, albedo = (torch.randn(2, size, generator=generator) for size in (80, 64, 80))
    output = converted(identity, expression, albedo)
    for row in range(2):
        expected = source["meanshape"][0] + source["idBase"] @ identity[row].numpy() + source["exBase"] @ expression[row].numpy()
        moved = output.vertices[row].numpy() - expected.reshape(-1, 3)
        np.testing.assert_allclose(moved, np.broadcast_to(moved.mean(0), moved.shape), atol=2e-3)
        colour = (source["meantex"][0] + source["texBase"] @ albedo[row].numpy()).reshape(-1, 3) / 255
        np.testing.assert_allclose(output.albedo[row], colour, atol=2e-3)


def test_eye_corners_are_where_our_heads_are(head, converted):
    corners = converted.at_landmarks(converted.mean)[np.ravel(EYE_CORNERS)]
    torch.testing.assert_close(corners.mean(0), torch.tensor(bfm.EYE_ORIGIN), atol=1e-3, rtol=0)
    torch.testing.assert_close(
        corners.mean(0), at_landmarks(head, head["mean"])[np.ravel(EYE_CORNERS)].mean(0), atol=1e-3, rtol=0
    )


def test_landmarks_are_near_ours(head, converted):
    inner = np.setdiff1d(np.arange(468), FACE_OVAL)
    distance = (converted.at_landmarks(converted.mean) - at_landmarks(head, head["mean"])).norm(dim=-1)
    assert distance[inner].median() < 0.03 and distance[inner].quantile(0.95) < 0.1


def test_the_lower_lip_follows_the_jaw_and_the_upper_one_does_not(converted):
    lower, upper = list(LIPS_INNER[2:9]), list(LIPS_INNER[12:19])
    jaw_open = 24
    moved = converted.at_landmarks(converted.expression_basis[jaw_open])[:, 1]
    assert moved[lower].max() < -0.2 and moved[upper].min() > -0.1


def test_light_is_white_from_the_front_before_it_is_seen(converted):
    light = converted.illumination_mean.unflatten(0, (9, 3))
    assert torch.equal(light[:, 0], light[:, 1]) and torch.equal(light[:, 1], light[:, 2])
    assert light[2, 0] > 0 and torch.equal(light[[1, 3, 4, 5, 6, 7, 8]], torch.zeros(7, 3))


def test_light_varies_in_brightness_more_than_in_colour(converted):
    brighter, redder = torch.zeros(2, 9, 3)
    brighter[0] = 0.2
    redder[0, 0] = 0.2
    unlikely = [(converted.illumination_whitening @ change.flatten()).norm() for change in (brighter, redder)]
    assert unlikely[0] < 1 < unlikely[1]


def test_only_the_front_is_compared_with_photographs(source, converted):
    assert torch.equal(converted.face_region.nonzero().squeeze(1) + 1, torch.from_numpy(source["frontmask2_idx"][:, 0]))
    assert not converted.eyeballs.any()


def test_it_can_be_fitted(converted):
    identity = torch.zeros(1, 80)
    identity[0, 0] = 1.5
    landmarks = project(converted(identity, torch.zeros(1, 64)).landmarks, 256) * torch.tensor([1, 1, 128])
    picture = torch.full((1, 256, 256, 3), 0.5)
    found = fit(converted, landmarks, landmarks[:, :10, :2].reshape(1, 2, 5, 2), picture)
    again = project(to_camera(converted(found.shape, found.expression).landmarks, found.pose), 256)
    assert torch.isfinite(found.pack()).all()
    assert (again - landmarks)[..., :2].norm(dim=-1).median() < 2


@pytest.mark.parametrize("key", bfm.KEYS)
def test_a_missing_array_is_named(tmp_path, source, key):
    assert f"lacks ['{key}']" in refusal(tmp_path, {name: values for name, values in source.items() if name != key})


@pytest.mark.parametrize(
    "key, change, message",
    [
        ("idBase", lambda values: values[:, :79], r"`idBase` .* shape \(13290, 80\), has \(13290, 79\)"),
        ("exBase", lambda values: values[:-3], r"shape \(13290, 64\), has \(13287, 64\)"),
        ("meantex", lambda values: values[:, :-1], "`meantex`"),
        ("texBase", lambda values: values * np.nan, "`texBase` .* not finite"),
        ("tri", lambda values: values - 1, r"should hold vertices 1…4430, holds 0…4429"),
        ("tri", lambda values: values[:, ::-1], "clockwise"),
        ("keypoints", lambda values: values + 5000, "vertices 1…4430"),
        ("meanshape", lambda values: values * 1e5, "decimetres"),
    ],
)
def test_an_array_that_does_not_fit_is_named(tmp_path, source, key, change, message):
    assert re.search(message, refusal(tmp_path, source | {key: change(source[key])}))


def test_a_file_of_another_kind_is_refused(tmp_path):
    path = tmp_path / "bfm.mat"
    path.write_bytes(b"no MATLAB file" * 100)
    result = CliRunner().invoke(app, ["convert", "bfm", str(path), str(tmp_path / "out")])
    assert result.exit_code == 1 and "cannot be read as a MATLAB file" in result.output
    assert not (tmp_path / "out").exists()


def test_an_existing_folder_is_left_alone(tmp_path):
    (tmp_path / "bfm.mat").touch()
    result = CliRunner().invoke(app, ["convert", "bfm", str(tmp_path / "bfm.mat"), str(WEIGHTS / "morphable_model")])
    assert result.exit_code == 2 and "exists" in result.output


def test_without_scipy_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(ConfigurationError, match=r"diffdeid\[convert\]"):
        bfm.read_bfm(tmp_path / "bfm.mat")


def test_a_mesh_without_a_face_is_refused(source, tmp_path, monkeypatch):
    monkeypatch.setattr(landmark_placement, "SIZE", 192)
    monkeypatch.setattr(landmark_placement, "SIDES", landmark_placement.SIDES[4:5])
    flat = source["meanshape"].reshape(-1, 3) * [1, 0.02, 1]
    savemat(tmp_path / "bfm.mat", source | {"meanshape": flat.reshape(1, -1)})
    with pytest.raises(ConfigurationError, match="FaceMesh sees no face"):
        bfm.convert_bfm(tmp_path / "bfm.mat", tmp_path / "out", WEIGHTS / "face_analyser")
