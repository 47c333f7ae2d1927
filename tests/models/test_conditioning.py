from dataclasses import replace
from pathlib import Path

import pytest
import torch

from diffdeid.geometry.camera import project, to_camera
from diffdeid.geometry.eyes import gaze_from_iris
from diffdeid.geometry.landmarks import LIPS_OUTER
from diffdeid.models.conditioning import exchange_shape, place_marks, render_conditions
from diffdeid.models.morphable_model import MorphableModel
from diffdeid.structures import MorphableCoefficients

WEIGHTS = Path(__file__).parents[2] / "weights/diffdeid/morphable_model"


@pytest.fixture(scope="module")
def model() -> MorphableModel:
    if not WEIGHTS.exists():
        pytest.skip("weights/diffdeid is not here")
    return MorphableModel.from_pretrained(WEIGHTS)


@pytest.fixture
def people() -> MorphableCoefficients:
    """Two turned, smiling, overexposed heads."""
    torch.manual_seed(0)
    people = MorphableCoefficients.unpack(0.2 * torch.randn(2, 261))
    light = torch.tensor([1.2, 0.3, 0.3, 0.3, 0, 0, 0, 0, 0]).repeat_interleave(3).expand(2, 27)
    return replace(people, expression=people.expression.clamp_min(0), illumination=light)


def test_maps_are_eight_pictures_between_minus_one_and_one(model, people):
    conditions = render_conditions(model, people, 64)
    assert conditions.maps.shape == (2, 8, 64, 64) and conditions.maps.dtype == torch.float32
    assert conditions.landmarks.shape == (2, 468, 2)
    low, high = conditions.maps.aminmax(dim=-1)
    assert low.min() == -1 and high.max() <= 1 + 1e-6
    assert (conditions.maps[:, [0, 1, 2, 6, 7]].amax((2, 3)) > 0.5).all()  # nothing is empty


def test_the_last_map_shows_the_openings_of_eyes_and_mouth(model, people):
    conditions = render_conditions(model, people, 256)
    upper, lower = conditions.landmarks[:, 13], conditions.landmarks[:, 14]  # in the middle of the inner lips
    apart = (lower - upper).norm(dim=1)
    assert apart.max() > 3  # pixels
    row = int(apart.argmax())
    column, line = ((upper + lower) / 2)[row].long().tolist()
    assert conditions.maps[row, 7, line, column] == pytest.approx(0, abs=0.01)
    assert (conditions.maps[:, 7] > 0.9).any()  # irises


def test_the_render_is_black_and_without_normals_beside_the_head(model, people):
    maps = render_conditions(model, people, 64).maps
    beside = (maps[:, 3:6] == 0).all(1)
    assert 0.1 < beside.float().mean() < 0.9
    assert (maps[:, :3].transpose(0, 1)[:, beside] == -1).all()


def test_landmarks_are_where_the_head_is(model, people):
    conditions = render_conditions(model, people, 64, margin=4)
    head = model(people.shape, people.expression)
    expected = project(to_camera(head.landmarks, people.pose), 64)[..., :2] + 4
    torch.testing.assert_close(conditions.landmarks, expected)


def test_marks_are_the_landmarks_of_the_maps_and_irises_that_look_where_the_gaze_says(model, people):
    marks = place_marks(model, people, 64)
    landmarks = marks[:, :468]
    torch.testing.assert_close(landmarks, render_conditions(model, people, 64).landmarks)
    iris = marks[:, 468:, None].expand(-1, -1, 5, -1)
    torch.testing.assert_close(gaze_from_iris(landmarks, iris), people.gaze.clamp(-0.5, 0.5), atol=1e-4, rtol=0)


def test_the_middle_of_a_wide_picture_is_the_crop(model, people):
    wide, crop = render_conditions(model, people, 128, margin=8).maps, render_conditions(model, people, 128).maps
    different = ((wide[..., 8:-8, 8:-8] - crop).abs() > 0.02).float().mean()
    assert wide.shape[-2:] == (144, 144) and different < 1e-3  # rounding moves a few silhouette pixels


def test_a_batch_gives_what_singles_give(model, people):
    both = render_conditions(model, people, 64).maps
    for index in range(2):
        single = MorphableCoefficients.unpack(people.pack()[[index]])
        torch.testing.assert_close(render_conditions(model, single, 64).maps[0], both[index], atol=1e-3, rtol=0)


def test_another_identity_leaves_the_anchor_in_place_and_changes_the_shape(model, people):
    changed = exchange_shape(model, people, people.shape + 2, LIPS_OUTER)

    def landmarks(coefficients):
        return to_camera(model(coefficients.shape, coefficients.expression).landmarks, coefficients.pose)

    before, after = landmarks(people), landmarks(changed)
    torch.testing.assert_close(after[:, LIPS_OUTER, :2].mean(1), before[:, LIPS_OUTER, :2].mean(1), atol=1e-4, rtol=0)
    assert (after - before).norm(dim=-1).amax(1).min() > 0.05
    torch.testing.assert_close(changed.pose[:, [0, 1, 2, 5]], people.pose[:, [0, 1, 2, 5]])


def test_the_same_identity_changes_nothing(model, people):
    same = exchange_shape(model, people, people.shape, LIPS_OUTER)
    torch.testing.assert_close(same.pack(), people.pack())


def test_another_identity_keeps_everything_else(model, people):
    changed = exchange_shape(model, people, -people.shape, LIPS_OUTER)
    for name in ("albedo", "illumination", "gaze"):
        assert torch.equal(getattr(changed, name), getattr(people, name))
