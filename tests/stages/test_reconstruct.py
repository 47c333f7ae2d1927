"""Crops, and things in them that lie in front of the face."""

import numpy as np
import pytest
import torch

from diffdeid.geometry.align import ffhq_matrix
from diffdeid.geometry.mask import signed_distance
from diffdeid.models.face_parser import CLASSES, FaceParserModel
from diffdeid.models.morphable_model import MorphableModel
from diffdeid.stages.compose import lay_over_crops
from diffdeid.stages.reconstruct import crop_face, find_what_is_in_front, mask_crops, parse, with_glasses
from diffdeid.structures import Face
from tests.conftest import ROOT

SIZE, FACTOR = 64, 0.8


@pytest.fixture(scope="module")
def points() -> np.ndarray:
    """Landmarks of the mean face, 100 pixels high."""
    model = MorphableModel.from_pretrained(ROOT / "weights/diffdeid", subfolder="morphable_model").float()
    points = model.at_landmarks(model.mean).numpy() * np.float32([1, -1, -1])
    low, high = points.min(axis=0), points.max(axis=0)
    return (points - low) / (high - low)[1] * 100 + np.float32([60, 50, 0])


@pytest.mark.parametrize("chin", [0, 20, 60])
def test_every_landmark_lies_in_the_crop(points, chin):
    points = points.copy()
    points[152, 1] += chin  # under a wide-open mouth
    crop = crop_face(np.zeros((240, 240, 3), np.uint8), Face(np.float32([60, 50, 140, 150]), landmarks=points), SIZE, FACTOR)
    placed = crop.to_crop(points)[:, :2]
    assert (placed >= 0).all() and (placed <= SIZE).all()
    depths = mask_crops(placed[None], SIZE, False)
    _, opacity = lay_over_crops(torch.zeros(1, 3, SIZE, SIZE), torch.zeros(1, 3, SIZE, SIZE), depths)
    rows, columns = placed.round().astype(int).clip(0, SIZE - 1).T[::-1]
    assert (opacity[0, 0, rows, columns] > 0.1).all()  # the outermost lie in the soft edge
    assert (opacity[0, 0, rows, columns] > 0.9).float().mean() > 0.97


def test_a_crop_that_holds_the_face_is_that_of_ffhq(points):
    points = points.copy()
    points[:, 1] = 90 + 0.6 * (points[:, 1] - 90)  # a low face
    face = Face(np.float32([60, 50, 140, 150]), landmarks=points)
    np.testing.assert_allclose(
        crop_face(np.zeros((240, 240, 3), np.uint8), face, SIZE, FACTOR).matrix, ffhq_matrix(points, SIZE, FACTOR)
    )


def test_what_is_in_front_fades_in_from_the_threshold():
    depths = -torch.ones(1, 1, 8, 8)
    told = torch.full((1, 1, 8, 8), 0.79)
    told[..., :3], told[..., 3:6] = 1.0, 0.85
    front = find_what_is_in_front(told, 0.8, depths, [[]])
    torch.testing.assert_close(front[0, 0, 0], torch.tensor([1, 1, 0.5, 0.5, 0.5, 0, 0, 0]))


def test_the_edge_of_what_is_in_front_is_a_soft_line_and_no_staircase():
    """Seen at twice the size, hair that was cut out along pixels had a staircase of two pixels beside the new face."""
    rows, columns = np.mgrid[:256, :256]
    hair = columns < 100 + 2 * (rows // 8)  # an outline in steps of two pixels
    told = torch.from_numpy(np.float32(hair))[None, None]
    front = find_what_is_in_front(told, 0.8, -torch.ones(1, 1, 256, 256), [[]])[0, 0].numpy()
    assert (front[hair == 0] == 0).all()  # nothing of the face beside it stays
    assert (front[columns < 91 + rows // 4] > 0.99).all()
    assert np.abs(np.diff(front, axis=1)).max() < 0.6
    ends = front[32:-32].sum(axis=1)  # where it ends in each row
    assert np.abs(np.diff(ends)).max() < 1.2  # and not 2


@pytest.mark.parametrize("width", [4, 5, 6, 8, 12])
def test_thin_things_in_front_stay(width):
    told = torch.zeros(1, 1, 256, 256)
    told[..., 100 : 100 + width] = 1  # a strand of hair, or a cord
    front = find_what_is_in_front(told, 0.8, -torch.ones(1, 1, 256, 256), [[]])[0, 0]
    assert (front.amax(dim=1) > 0.9).all()


def test_what_does_not_reach_beyond_the_face_is_the_face():
    depths, told = -torch.ones(2, 1, 16, 16), torch.zeros(2, 1, 16, 16)
    depths[:, :, 4:12, 4:12] = 3
    told[:, :, 7:9, 7:9] = 1  # an island
    told[1, :, 6:9, :9] = 1  # a hand that comes from the left
    front = find_what_is_in_front(told, 0.5, depths, [[], []])
    assert not front[0].any()
    assert front[1, 0, 7, :8].all() and front[1].sum() == 8  # less its outline


def test_the_mouth_that_is_kept_is_no_way_out_of_the_face():
    depths, told = -torch.ones(1, 1, 16, 16), torch.zeros(1, 1, 16, 16)
    depths[:, :, 2:14, 2:14] = 3
    depths[:, :, 9:11, 6:10] = -1  # the mouth
    told[:, :, 6:11, 5:11] = 1
    assert not find_what_is_in_front(told, 0.5, depths, [[]]).any()


class Blind(torch.nn.Module):
    """A parser that gives NaN."""

    config = FaceParserModel(front_threshold=0.8).config

    def probabilities(self, images):
        return torch.full((len(images), CLASSES, *images.shape[2:]), torch.nan)


@pytest.mark.parametrize("parser", [None, Blind()])
def test_what_is_not_known_is_painted(parser):
    depths = torch.randn(2, 1, 8, 8)
    erased, front = parse(parser, torch.rand(2, 3, 8, 8), depths, [[], []])
    assert torch.equal(erased, depths) and not front.any()


def test_what_is_in_front_is_finite_whatever_the_threshold_is():
    assert find_what_is_in_front(torch.ones(1, 1, 8, 8), 1.0, -torch.ones(1, 1, 8, 8), [[]]).isfinite().all()


def test_glasses_that_reach_beyond_the_face_are_erased_with_it():
    face, likely = np.zeros((SIZE, SIZE), np.float32), torch.zeros(4, 1, SIZE, SIZE)
    face[16:48, 16:48] = 1
    depths = torch.from_numpy(signed_distance(face)).repeat(4, 1, 1, 1)
    likely[:3, :, 20:28, 20:44] = 0.9
    likely[0, :, 20:24, 20:] = 0.3  # an arm of them, and what touches it
    likely[1, :, 20:24, 52:56] = 0.9  # someone else's
    likely[3, :, 20:24, 40:56] = 0.9  # nobody wears so little
    grown = with_glasses(depths, likely)
    assert torch.equal(grown[1:], depths[1:])
    assert (grown[0, 0, 20:24, 20:54] > 0).all() and (grown[0, 0][face > 0] > 0).all()
    assert not (grown[0, 0, :, 60:] > 0).any() and not (grown[0, 0, 32:, 48:] > 0).any()
    torch.testing.assert_close(grown[0, 0], torch.from_numpy(signed_distance((grown[0, 0] > 0).float().numpy())))


@pytest.mark.parametrize("edge", [20, 40])
def test_a_mouth_near_the_outline_is_no_way_out_of_the_face(edge):
    """In profiles, the mouth, whose inside is kept, may be near to the background."""
    face = np.zeros((256, 256), np.float32)
    face[40:216, 40:216] = 1
    face[150:170, 40 + edge : 140] = 0  # the mouth
    told = torch.zeros(1, 1, 256, 256)
    told[..., 145:175, 40 + edge - 6 : 150] = 1
    assert not find_what_is_in_front(told, 0.5, torch.from_numpy(signed_distance(face))[None, None], [[]]).any()


def test_a_new_face_lies_behind_what_is_in_front():
    images, faces, front = torch.rand(1, 3, 16, 16), torch.rand(1, 3, 16, 16), torch.zeros(1, 1, 16, 16)
    depths = torch.full((1, 1, 16, 16), 9.0)
    front[..., :8], front[..., 8] = 1, 0.5
    laid, opacity = lay_over_crops(faces, images, depths, front)
    assert torch.equal(laid[..., :8], images[..., :8]) and not opacity[..., :8].any()
    torch.testing.assert_close(laid[..., 9:], faces[..., 9:])
    torch.testing.assert_close(laid[..., 8], (images + faces)[..., 8] / 2)
