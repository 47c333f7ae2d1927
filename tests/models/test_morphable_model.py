from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffdeid.errors import ConfigurationError
from diffdeid.geometry.landmarks import LEFT_BROW, LEFT_EYE, LIPS_INNER, LIPS_OUTER, RIGHT_BROW, RIGHT_EYE
from diffdeid.geometry.renderer import vertex_normals
from diffdeid.models.morphable_model import MorphableModel
from diffdeid.training.mirror import EXPRESSION_UNITS
from tests.landmarks import FACE_OVAL
from tests.tiny import tiny_morphable_model

WEIGHTS = Path(__file__).parents[2] / "weights/diffdeid/morphable_model"
FLIP = torch.tensor([-1.0, 1, 1])
CHIN, FOREHEAD, NOSE_TIP, LIP_CORNER_LEFT = 152, 10, 1, 291


@pytest.fixture(scope="module")
def model() -> MorphableModel:
    if not WEIGHTS.exists():
        pytest.skip("weights/diffdeid is not here")
    return MorphableModel.from_pretrained(WEIGHTS)


def coefficients(batch: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, 80, generator=generator), torch.rand(batch, 64, generator=generator)


def movement(model: MorphableModel, unit: str) -> torch.Tensor:
    """Where an expression unit at 1 takes the landmarks, `(468, 3)`."""
    return model.at_landmarks(model.expression_basis[model.config.expression_names.index(unit)])


def test_no_coefficients_give_the_mean_head():
    model = tiny_morphable_model()
    output = model(torch.zeros(2, 80), torch.zeros(2, 64))
    torch.testing.assert_close(output.vertices, model.mean.expand(2, -1, -1))
    torch.testing.assert_close(output.albedo, model.albedo_mean.expand(2, -1, -1))


def test_heads_are_linear_in_the_coefficients():
    model, (identity, expression) = tiny_morphable_model(), coefficients(2)
    mixed = model(identity.mean(0, keepdim=True), expression.mean(0, keepdim=True))
    torch.testing.assert_close(mixed.vertices, model(identity, expression).vertices.mean(0, keepdim=True))


def test_slots_beyond_the_basis_are_ignored():
    model, (identity, expression) = tiny_morphable_model(), coefficients()
    torch.testing.assert_close(model(identity, expression).vertices, model(identity, expression[:, :3]).vertices)


def test_landmarks_are_on_the_surface():
    model = tiny_morphable_model()
    landmarks = model(*coefficients()).landmarks
    assert landmarks.shape == (3, 468, 3)
    radius = model.at_landmarks(model.mean).norm(dim=-1)
    assert 0.8 < radius.min() and radius.max() <= 1  # of a ball's facets


def test_weights_survive_saving(tmp_path):
    model = tiny_morphable_model()
    model.save_pretrained(tmp_path)
    loaded = MorphableModel.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded(*coefficients()).vertices, model(*coefficients()).vertices)


def test_half_precision_leaves_the_topology_alone(tmp_path, model):
    model.save_pretrained(tmp_path)
    half = MorphableModel.from_pretrained(tmp_path, torch_dtype=torch.float16)
    assert half.mean.dtype == torch.float16
    assert half.triangles.dtype == half.landmark_corners.dtype == torch.int64
    assert torch.equal(half.triangles, model.triangles)
    assert torch.equal(half.landmark_corners, model.landmark_corners)


def test_half_precision_still_computes_in_full():
    output = tiny_morphable_model().half()(*coefficients())
    assert output.vertices.dtype == output.albedo.dtype == output.landmarks.dtype == torch.float32


@pytest.mark.parametrize(
    "change, error, message",
    [
        (lambda tensors: tensors.pop("identity_basis"), ConfigurationError, "identity_basis"),
        (lambda tensors: tensors.update(surplus=torch.zeros(1)), ConfigurationError, "surplus"),
        (lambda tensors: tensors.update(mean=torch.zeros(41, 3)), ValueError, "mean"),
    ],
    ids=["missing", "extra", "misshapen"],
)
def test_weights_that_do_not_fit_are_refused(tmp_path, change, error, message):
    tiny_morphable_model().save_pretrained(tmp_path)
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(error, match=message):
        MorphableModel.from_pretrained(tmp_path)


def test_the_released_mean_head_is_symmetric(model):
    distance = torch.cdist(model.mean * FLIP, model.mean)
    assert distance.amin(1).max() < 2e-3


@pytest.mark.parametrize(
    "right, left",
    [
        pytest.param(RIGHT_EYE, LEFT_EYE, id="eyes"),
        pytest.param(RIGHT_BROW, LEFT_BROW, id="brows"),
        pytest.param(FACE_OVAL[:19], (FACE_OVAL[:1] + FACE_OVAL[:17:-1]), id="oval"),
        pytest.param(LIPS_OUTER, (LIPS_OUTER[10::-1] + LIPS_OUTER[:10:-1]), id="lips"),
    ],
)
def test_released_landmarks_are_symmetric(model, right, left):
    points = model.at_landmarks(model.mean)
    torch.testing.assert_close(points[list(right)] * FLIP, points[list(left)], atol=5e-3, rtol=0)


def test_released_triangles_face_outwards(model):
    a, b, c = model.mean[model.triangles].unbind(1)
    assert (a * torch.linalg.cross(b, c)).sum() > 0  # the volume
    normals = vertex_normals(model.mean[None], model.triangles)[0]
    assert model.at_landmarks(normals)[NOSE_TIP, 2] > 0.5


def test_released_landmarks_have_barycentric_weights(model):
    assert model.landmark_weights.min() >= 0
    torch.testing.assert_close(model.landmark_weights.sum(1), torch.ones(468), atol=1e-3, rtol=0)
    assert model.landmark_corners.max() < model.config.num_vertices


def test_released_expressions_are_the_arkit_units(model):
    names = model.config.expression_names
    assert names == sorted(names) == EXPRESSION_UNITS and len(set(names)) == 52


def test_an_opening_jaw_lowers_the_chin_and_not_the_forehead(model):
    moved = movement(model, "jawOpen")
    assert moved[CHIN, 1] < -0.1
    assert moved[FOREHEAD].norm() < 0.01


@pytest.mark.parametrize("unit", ["eyeBlink", "eyeWide", "browDown", "browOuterUp", "cheekSquint", "mouthSmile", "noseSneer"])
def test_one_sided_units_move_their_side_of_the_person(model, unit):
    x = model.at_landmarks(model.mean)[:, 0]  # the person's left is on the right
    left, right = (movement(model, unit + side).norm(dim=-1) for side in ("Left", "Right"))
    assert left[x > 0].sum() > 3 * left[x < 0].sum()
    assert right[x < 0].sum() > 3 * right[x > 0].sum()


@pytest.mark.parametrize("unit", [name for name in EXPRESSION_UNITS if name.endswith("Left")])
def test_left_units_mirror_the_right_ones(model, unit):
    names = model.config.expression_names
    left, right = (model.expression_basis[names.index(name)] for name in (unit, unit.replace("Left", "Right")))
    twin = torch.cdist(model.mean * FLIP, model.mean).argmin(1)
    torch.testing.assert_close(left[twin] * FLIP, right, atol=0.015, rtol=0)


def test_released_identities_are_symmetric(model):
    twin = torch.cdist(model.mean * FLIP, model.mean).argmin(1)
    torch.testing.assert_close(model.identity_basis[:, twin] * FLIP, model.identity_basis, atol=3e-3, rtol=0)


@pytest.mark.parametrize(
    "unit, landmark, direction",
    [
        ("eyeBlinkLeft", 386, (0, -1, 0)),  # upper lid
        ("eyeWideLeft", 386, (0, 1, 0)),
        ("browInnerUp", 336, (0, 1, 0)),
        ("browDownLeft", 296, (0, -1, 0)),
        ("mouthSmileLeft", LIP_CORNER_LEFT, (1, 1, 0)),
        ("mouthFrownLeft", LIP_CORNER_LEFT, (0, -1, 0)),
        ("mouthLeft", 0, (1, 0, 0)),
        ("jawLeft", CHIN, (1, 0, 0)),
        ("jawForward", CHIN, (0, 0, 1)),
        ("cheekPuff", 425, (0, 0, 1)),
    ],
)
def test_units_move_what_they_are_named_after(model, unit, landmark, direction):
    assert movement(model, unit)[landmark] @ torch.tensor(direction).float() > 0.01


def test_random_heads_have_the_size_of_heads(model):
    identity = torch.randn(200, 80, generator=torch.Generator().manual_seed(0))
    landmarks = model(identity, torch.zeros(200, 64)).landmarks
    width, height, depth = (landmarks.amax(1) - landmarks.amin(1)).unbind(-1)  # decimetres, ear to ear and hair to chin
    assert 1.1 < width.min() and width.max() < 1.8
    assert 1.3 < height.min() and height.max() < 2.1
    assert 0.5 < depth.min() and depth.max() < 1.3
    assert width.std() > 0.02 and height.std() > 0.02


def test_released_inner_lips_meet_and_each_moves_with_its_own_lip(model):
    lower, upper = list(LIPS_INNER[1:10]), list(LIPS_INNER[:10:-1])
    points, opened = model.at_landmarks(model.mean), movement(model, "jawOpen")
    gap = (points[upper] - points[lower])[:, 1]
    assert gap.max() < 0.03  # decimetres, of a closed mouth
    assert (opened[lower, 1] < opened[upper, 1] - 0.1).all()
