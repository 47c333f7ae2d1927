import math
from pathlib import Path

import pytest
import torch

from diffdeid.geometry.camera import DISTANCE, FOCAL, project, to_camera
from diffdeid.geometry.eyes import eye_frame, gaze_from_iris
from diffdeid.geometry.landmarks import LEFT_EYE, RIGHT_EYE
from diffdeid.geometry.renderer import render
from diffdeid.geometry.rotation import rotation_matrix, rotation_vector
from diffdeid.models.fitting import fit, fit_appearance, fit_shape_and_pose, refine_shape_and_pose
from diffdeid.models.morphable_model import MorphableModel

WEIGHTS = Path(__file__).parents[2] / "weights/diffdeid/morphable_model"
SIZE = 256


@pytest.fixture(scope="module")
def model() -> MorphableModel:
    if not WEIGHTS.exists():
        pytest.skip("weights/diffdeid is not here")
    return MorphableModel.from_pretrained(WEIGHTS)


def people(yaw: float = 0.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """α, β and p of four, turned by `yaw` degrees and a little more."""
    generator = torch.Generator().manual_seed(0)
    expression = torch.zeros(4, 64)
    expression[:, :51] = (torch.rand(4, 51, generator=generator) - 0.8).clamp_min(0) * 3
    pose = torch.randn(4, 6, generator=generator) * 0.15
    pose[:, 1] += math.radians(yaw)
    return torch.randn(4, 80, generator=generator) * 0.5, expression, pose


def seen(model: MorphableModel, identity: torch.Tensor, expression: torch.Tensor, pose: torch.Tensor) -> torch.Tensor:
    """Landmarks as FaceMesh would give them, z in pixels."""
    points = project(to_camera(model(identity, expression).landmarks, pose), SIZE)
    return points * torch.tensor([1, 1, FOCAL * SIZE / DISTANCE]) - torch.tensor([0, 0, FOCAL * SIZE])


def iris_at(landmarks: torch.Tensor, gaze: torch.Tensor) -> torch.Tensor:
    """Iris points `(B, 2, 5, 2)` whose centres are where ω points."""
    centre, along, width = eye_frame(landmarks)
    across = torch.stack([-along[..., 1], along[..., 0]], dim=-1)
    x, y = gaze.view(-1, 2, 2, 1).unbind(2)
    return (centre + width * (x * along + y * across))[:, :, None].repeat(1, 1, 5, 1)


@pytest.mark.parametrize("yaw", [0, 25, 50, -50])
def test_known_heads_are_recovered(model, yaw):
    *shape, pose = people(yaw)
    landmarks = seen(model, *shape, pose)
    found = fit_shape_and_pose(model, landmarks, SIZE)
    fitted_pose = found.pose
    error = (seen(model, found.shape, found.expression, fitted_pose) - landmarks)[..., :2].norm(dim=-1)
    turn = rotation_vector(rotation_matrix(fitted_pose[:, :3]) @ rotation_matrix(pose[:, :3]).mT).norm(dim=-1)
    assert error.mean(1).max() < 0.9  # pixels; these expressions are rarer than the prior expects
    assert torch.rad2deg(turn).max() < 1.2
    torch.testing.assert_close(fitted_pose[:, 3:], pose[:, 3:], atol=0.1, rtol=0)


def test_a_large_expression_is_recognised(model):
    names = model.config.expression_names
    expression = torch.zeros(2, 64)
    expression[0, names.index("jawOpen")] = expression[1, names.index("mouthSmileLeft")] = 0.8
    fitted = fit_shape_and_pose(model, seen(model, torch.zeros(2, 80), expression, torch.zeros(2, 6)), SIZE).expression
    unusual = fitted[:, : len(names)] - model.expression_mean  # nothing says where eyes look: those units stay at their means
    assert unusual.argmax(1).tolist() == expression.argmax(1).tolist()


def test_the_change_of_identity_is_a_part_of_every_movement(model):
    """α absorbs a part of the movement, so somebody else's face moves correctly only if their α changes with it."""
    identity, expression, pose = people()
    found = fit_shape_and_pose(model, seen(model, identity[:1].expand(4, -1), expression, pose), SIZE)

    def movement(identity: torch.Tensor, expression: torch.Tensor, pose: torch.Tensor) -> torch.Tensor:
        landmarks = seen(model, identity, expression, pose)[..., :2]
        return landmarks - landmarks[:1]

    true = movement(torch.zeros(4, 80), expression, pose)  # what somebody else's face should do
    changes = found.shape - found.shape[:1]
    errors = [(movement(shape, found.expression, found.pose) - true).norm(dim=-1).mean() for shape in (0 * changes, changes)]
    assert errors[1] < 0.7 * errors[0]


def test_lids_close_as_far_as_the_landmarks_say(model):
    """Each landmark by itself may err by millimetres; lids that are that near to one another may not."""
    identity, expression, pose = people()
    landmarks = seen(model, identity, torch.zeros_like(expression), pose)
    eyes, places = (RIGHT_EYE, LEFT_EYE), (slice(9, 16), slice(7, 0, -1))
    upper, lower = ([index for eye in eyes for index in eye[place]] for place in places)
    open_eyes = (landmarks[:, upper, 1] - landmarks[:, lower, 1]).abs().mean()
    landmarks[:, upper] += 0.9 * (landmarks[:, lower] - landmarks[:, upper])
    fitted = fit_shape_and_pose(model, landmarks, 256)
    found = seen(model, fitted.shape, fitted.expression, fitted.pose)
    left = (found[:, upper, 1] - found[:, lower, 1]).abs().mean()
    assert left < 0.35 * open_eyes


def test_expressions_stay_in_range(model):
    identity, expression, pose = people()
    for beyond in (-expression, 3 * expression):
        fitted = fit_shape_and_pose(model, seen(model, identity, beyond, pose), SIZE).expression
        assert fitted.shape == (4, 64) and fitted.min() >= 0 and fitted.max() <= 1
        assert not fitted[:, 52:].any()


def test_the_fit_does_not_depend_on_the_resolution(model):
    landmarks = seen(model, *people())
    large, small = (fit_shape_and_pose(model, landmarks / scale, SIZE // scale) for scale in (1, 4))
    for name in ("shape", "expression", "pose"):
        torch.testing.assert_close(getattr(small, name), getattr(large, name), atol=1e-3, rtol=0)


def test_noise_moves_the_pose_little(model):
    landmarks = seen(model, *people())
    noise = torch.randn(landmarks.shape, generator=torch.Generator().manual_seed(0))
    clean, noisy = (fit_shape_and_pose(model, points, SIZE).pose for points in (landmarks, landmarks + noise))
    assert torch.rad2deg((noisy - clean)[:, :3].abs()).max() < 1.5


@pytest.mark.parametrize(
    "landmarks",
    [torch.full((1, 468, 3), 128.0), torch.zeros(1, 468, 3), torch.linspace(0, 256, 468)[None, :, None].expand(1, 468, 3)],
    ids=["one point", "the corner", "a line"],
)
def test_degenerate_landmarks_give_finite_coefficients(model, landmarks):
    assert fit(model, landmarks, torch.zeros(1, 2, 5, 2), torch.rand(1, 64, 64, 3)).pack().isfinite().all()


def test_an_iris_in_the_middle_looks_ahead_and_one_to_the_right_looks_right():
    landmarks = torch.zeros(1, 468, 3)
    landmarks[0, [33, 133, 362, 263], 0] = torch.tensor([60.0, 100, 150, 190])
    iris = torch.tensor([[80.0, 0], [180, 4]])[None, :, None].repeat(1, 1, 5, 1)
    torch.testing.assert_close(gaze_from_iris(landmarks, iris), torch.tensor([[0, 0, 0.25, 0.1]]))


def test_gaze_survives_the_round_trip(model):
    landmarks = seen(model, *people(25))
    gaze = torch.rand(4, 4, generator=torch.Generator().manual_seed(0)) - 0.5
    torch.testing.assert_close(gaze_from_iris(landmarks, iris_at(landmarks, gaze)), gaze, atol=1e-4, rtol=0)


def lit_people(model: MorphableModel) -> tuple[torch.Tensor, ...]:
    """Vertices in camera space, γ, δ and the pictures of four people with different skins under a light from the right."""
    identity, expression, pose = people()
    generator = torch.Generator().manual_seed(1)
    skin = torch.zeros(4, 80)
    skin[:, :6] = torch.randn(4, 6, generator=generator)
    light = model.illumination_mean.repeat(4, 1)
    light[:, 9:12] = 0.15
    head = model(identity, expression, skin)
    vertices = to_camera(head.vertices, pose)
    return vertices, light, skin, render(vertices, head.albedo, light, model.triangles, SIZE)


def test_skin_and_light_explain_the_picture_in_spite_of_dark_hair(model):
    vertices, _, _, truth = lit_people(model)
    picture = truth.image.clamp(0, 1)
    covered = picture.clone()
    covered[:, :80] = 0.05
    for shown, limit in ((picture, 0.015), (covered, 0.04)):
        found = fit_appearance(model, vertices, shown)
        head = model(torch.zeros(4, 80), torch.zeros(4, 64), found.albedo)
        again = render(vertices, head.albedo, found.illumination, model.triangles, SIZE)
        face = truth.mask & (truth.normals[..., 2] > 0.5)
        face[:, :85] = False
        face[:, :, :60] = face[:, :, 196:] = False
        assert (again.image - picture)[face].abs().mean() < limit


@pytest.mark.parametrize("tone", [-1.5, 1.5])
def test_dark_skin_is_told_from_dim_light(model, tone):
    """Fitting skin and light in turns would explain all brightness by the light."""
    vertices, *_ = lit_people(model)
    skin = torch.zeros(4, 80)
    skin[:, 0] = tone
    light = model.illumination_mean.float().repeat(4, 1)
    head = model(torch.zeros(4, 80), torch.zeros(4, 64), skin)
    picture = render(vertices, head.albedo, light, model.triangles, SIZE).image.clamp(0, 1)
    found = fit_appearance(model, vertices, picture)
    torch.testing.assert_close(found.albedo[:, 0], skin[:, 0], atol=0.5, rtol=0)


def test_pixels_correct_what_noisy_landmarks_get_wrong(model):
    landmarks, truth = seen(model, *people()), lit_people(model)[3]
    noisy = landmarks + 2 * torch.randn(landmarks.shape, generator=torch.Generator().manual_seed(0))
    before = fit_shape_and_pose(model, noisy, SIZE)
    vertices = to_camera(model(before.shape, before.expression).vertices, before.pose)
    appearance = fit_appearance(model, vertices, truth.image.clamp(0, 1))
    after = refine_shape_and_pose(model, before, appearance, truth.image.clamp(0, 1))
    errors = []
    for found in (before, after):
        error = seen(model, found.shape, found.expression, found.pose) - landmarks
        errors.append(error[..., :2].norm(dim=-1).mean(1))
    assert (errors[1] < errors[0]).all()
    assert torch.equal(after.expression, before.expression)


def test_a_picture_without_edges_moves_nothing(model):
    fitted = fit_shape_and_pose(model, seen(model, *people()), SIZE)
    grey = torch.full((4, 64, 64, 3), 0.5)
    vertices = to_camera(model(fitted.shape, fitted.expression).vertices, fitted.pose)
    after = refine_shape_and_pose(model, fitted, fit_appearance(model, vertices, grey), grey)
    torch.testing.assert_close(after.shape, fitted.shape)
    torch.testing.assert_close(after.pose, fitted.pose)


def test_appearance_goes_on_where_it_stopped(model):
    vertices, _, _, truth = lit_people(model)
    picture = truth.image.clamp(0, 1)
    whole = fit_appearance(model, vertices, picture, rounds=3)
    parts = fit_appearance(model, vertices, picture, rounds=2, start=fit_appearance(model, vertices, picture, rounds=1))
    for name in ("albedo", "illumination", "weight"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name), atol=1e-4, rtol=1e-4)


def test_without_a_picture_skin_and_light_are_the_likeliest(model):
    far_away = to_camera(model(torch.zeros(1, 80), torch.zeros(1, 64)).vertices, torch.tensor([[0, 3.1, 0, 0, 0, 0.0]]))
    found = fit_appearance(model, far_away, torch.rand(1, 64, 64, 3))  # the back of the head shows no face
    assert not found.weight.any() and not found.albedo.any()
    torch.testing.assert_close(found.illumination[0], model.illumination_mean.float(), atol=1e-3, rtol=0)


def test_a_rendered_picture_is_reconstructed(model):
    identity, expression, pose = people()
    light = torch.tensor([0.9, 0.1, 0.1, 0.2, 0, 0, 0, 0, 0])[:, None] * torch.tensor([1.1, 1, 0.9])
    landmarks, gaze = seen(model, identity, expression, pose), torch.full((4, 4), 0.1)

    def picture(identity, expression, pose, illumination, skin=None):
        head = model(identity, expression, skin)
        return render(to_camera(head.vertices, pose), head.albedo, illumination, model.triangles, SIZE)

    truth = picture(identity, expression, pose, light.flatten().expand(4, 27))
    found = fit(model, landmarks, iris_at(landmarks, gaze), truth.image.clamp(0, 1))
    again = picture(found.shape, found.expression, found.pose, found.illumination, found.albedo)
    face = truth.mask & again.mask & (truth.normals[..., 2] > 0.5)
    assert (again.image - truth.image.clamp(0, 1))[face].abs().mean() < 0.02
    torch.testing.assert_close(found.gaze, gaze, atol=1e-4, rtol=0)


def test_what_lies_beside_the_face_does_not_count(model):
    landmarks = seen(model, *people()) * 0.6 + 40
    reach = 14  # pixels beyond the landmarks where the mesh still counts as face
    low, high = landmarks[..., :2].amin((0, 1)).int() - reach, landmarks[..., :2].amax((0, 1)).int() + reach + 1
    picture = torch.rand(4, SIZE, SIZE, 3)
    other = torch.ones_like(picture)
    other[:, low[1] : high[1], low[0] : high[0]] = picture[:, low[1] : high[1], low[0] : high[0]]
    iris = iris_at(landmarks, torch.zeros(4, 4))
    assert torch.equal(fit(model, landmarks, iris, picture).pack(), fit(model, landmarks, iris, other).pack())


def test_a_batch_gives_what_singles_give(model):
    landmarks = seen(model, *people(10))
    iris, pictures = iris_at(landmarks, torch.zeros(4, 4)), torch.rand(4, 64, 64, 3)
    singles = [fit(model, landmarks[[i]] / 4, iris[[i]] / 4, pictures[[i]]).pack() for i in range(4)]
    torch.testing.assert_close(fit(model, landmarks / 4, iris / 4, pictures).pack(), torch.cat(singles), atol=1e-3, rtol=0)
