import math
from pathlib import Path

import pytest
import torch

from diffdeid.geometry.camera import project, to_camera
from diffdeid.geometry.eyes import eye_coordinates, eye_frame, gaze_directions, gaze_from_iris, iris_centres, paint_eyes
from diffdeid.geometry.landmarks import EYE_CORNERS
from diffdeid.geometry.renderer import render
from diffdeid.models.morphable_model import MorphableModel
from tests.tiny import icosphere

WEIGHTS = Path(__file__).parents[2] / "weights/diffdeid/morphable_model"
SIZE = 256
GAZES = [(0, 0, 0, 0), (0.15, 0, 0.15, 0), (-0.15, 0, -0.15, 0), (0, 0.1, 0, 0.1), (0.1, -0.1, -0.1, 0)]
LIGHT = torch.tensor([[0.9] * 3 + [0.0] * 24])


def two_balls() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """A head that is a pair of eyeballs and a triangle of skin above: vertices, triangles, eyeballs, landmarks."""
    ball, triangles = icosphere(2)
    right = torch.tensor([-0.31, 0.3, 0.55])
    skin = torch.tensor([[-0.3, 0.6, 0.5], [0.3, 0.6, 0.5], [0.0, 0.9, 0.5]])
    vertices = torch.cat([0.15 * ball + right, 0.15 * ball + right * torch.tensor([-1, 1, 1]), skin])
    count = len(ball)
    triangles = torch.cat([triangles, triangles + count, torch.tensor([[2 * count, 2 * count + 1, 2 * count + 2]])])
    eyeballs = torch.tensor([1] * count + [2] * count + [0] * 3, dtype=torch.uint8)
    landmarks = torch.zeros(468, 3)
    landmarks[list(sum(EYE_CORNERS, ()))] = torch.tensor(
        [[-0.46, 0.3, 0.62], [-0.16, 0.3, 0.68], [0.16, 0.3, 0.68], [0.46, 0.3, 0.62]]
    )
    return vertices[None], triangles, eyeballs, landmarks[None]


def released_head() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    if not WEIGHTS.exists():
        pytest.skip("weights/diffdeid is not here")
    model = MorphableModel.from_pretrained(WEIGHTS)
    head = model(torch.zeros(1, 80), torch.zeros(1, 64))
    return head.vertices, model.triangles, model.eyeballs, head.landmarks


def turned(head, pitch: float, yaw: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Vertices and landmarks in camera space; degrees."""
    pose = torch.tensor([[math.radians(pitch), math.radians(yaw), 0.05, 0.02, -0.1, -0.5]])
    return to_camera(head[0], pose), to_camera(head[3], pose)


def pupils(vertices: torch.Tensor, triangles: torch.Tensor, eyeballs: torch.Tensor, eyes: torch.Tensor) -> torch.Tensor:
    """Mean place of the black pixels of each eyeball, without lids in front of it, `(2, 2)`, right eye first."""
    means = []
    for eye in (1, 2):
        ball = triangles[(eyeballs[triangles] == eye).all(1)]
        picture = render(vertices, torch.ones_like(vertices), LIGHT, ball, SIZE, eyes=eyes)
        row, column = ((picture.albedo[0, ..., 0] < 0.1) & picture.mask[0]).nonzero(as_tuple=True)
        means.append(torch.stack([column, row], dim=1).float().mean(0) + 0.5)
    return torch.stack(means)


@pytest.mark.parametrize("gaze", GAZES)
@pytest.mark.parametrize(("pitch", "yaw"), [(0, 0), (0, 40), (0, -40), (15, 20), (-15, -20)])
@pytest.mark.parametrize("head", [two_balls, released_head])
def test_irises_are_rendered_where_the_gaze_puts_them(head, pitch, yaw, gaze):
    head, gaze = head(), torch.tensor([gaze])
    vertices, landmarks = turned(head, pitch, yaw)
    eyes = eye_coordinates(vertices, landmarks, head[2], gaze)
    expected = iris_centres(project(landmarks, SIZE), gaze)[0]
    assert (pupils(vertices, *head[1:3], eyes) - expected).norm(dim=1).max() < 1


def test_a_gaze_to_the_right_and_down_moves_both_irises_so():
    *head, landmarks = two_balls()
    ahead, aside = (
        pupils(*head, eye_coordinates(head[0], landmarks, head[2], torch.tensor([gaze]))) for gaze in ([0.0] * 4, [0.1] * 4)
    )
    width = eye_frame(project(landmarks, SIZE))[2][0]
    torch.testing.assert_close(aside - ahead, 0.1 * width.expand(2, 2), atol=0.6, rtol=0)


def test_gaze_survives_the_round_trip():
    landmarks, gaze = project(turned(two_balls(), 10, 30)[1], SIZE), torch.tensor([[0.1, -0.2, 0.3, 0.05]])
    iris = iris_centres(landmarks, gaze)[:, :, None].expand(-1, -1, 5, -1)
    torch.testing.assert_close(gaze_from_iris(landmarks, iris), gaze)


def test_the_gaze_meets_the_line_of_sight_on_the_eyeball():
    generator = torch.Generator().manual_seed(0)
    centres = 0.5 * torch.randn(50, 2, 3, generator=generator)
    radii = 0.1 + 0.1 * torch.rand(50, 2, generator=generator)
    towards = torch.nn.functional.normalize(torch.randn(50, 2, 3, generator=generator) + torch.tensor([0, 0, 2]), dim=-1)
    camera = torch.tensor([0, 0, 10.0])
    points = centres + radii[..., None] * towards
    seen = (towards * (camera - points)).sum(-1) > 0  # the camera sees this side of the ball
    found = gaze_directions(centres, radii, project(points, SIZE)[..., :2], SIZE)
    assert seen.sum() > 80
    torch.testing.assert_close(found[seen], towards[seen], atol=1e-3, rtol=0)


def test_an_iris_beside_the_eyeball_is_on_its_rim():
    centre = torch.zeros(1, 2, 3)
    direction = gaze_directions(centre, torch.full((1, 2), 0.15), torch.tensor([[[200.0, 128], [128, 200]]]), SIZE)
    torch.testing.assert_close(direction, torch.tensor([[[1.0, 0, 0], [0, -1, 0]]]), atol=0.06, rtol=0)


@pytest.mark.parametrize("head", [two_balls, released_head])
def test_skin_is_left_untouched(head):
    vertices, triangles, eyeballs, landmarks = head()
    eyes = eye_coordinates(vertices, landmarks, eyeballs, torch.zeros(1, 4))
    assert not eyes[:, eyeballs == 0].any()
    torch.testing.assert_close(eyes[:, eyeballs > 0].norm(dim=-1), torch.ones(1, int((eyeballs > 0).sum())))
    albedo = torch.full_like(vertices, 0.7)
    skin = triangles[(eyeballs[triangles] == 0).all(1)]
    with_eyes, without = (render(vertices, albedo, LIGHT, skin, SIZE, eyes=choice).image for choice in (eyes, None))
    assert without.any() and torch.equal(with_eyes, without)


def test_a_head_without_eyeballs_has_no_irises():
    vertices, triangles, eyeballs, landmarks = two_balls()
    eyes = eye_coordinates(vertices, landmarks, torch.zeros_like(eyeballs), torch.zeros(1, 4))
    albedo = torch.rand_like(vertices)
    assert torch.equal(paint_eyes(albedo, eyes), albedo)


def test_a_batch_gives_what_singles_give():
    head = two_balls()
    posed = [turned(head, 0, yaw) for yaw in (-20, 30)]
    gaze = torch.tensor(GAZES[1:3])
    batch = eye_coordinates(*(torch.cat(parts) for parts in zip(*posed, strict=True)), head[2], gaze)
    singles = [eye_coordinates(*parts, head[2], gaze[[index]]) for index, parts in enumerate(posed)]
    torch.testing.assert_close(batch, torch.cat(singles))
