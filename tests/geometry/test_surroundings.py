from dataclasses import replace

import cv2
import numpy as np
import pytest

from diffdeid.geometry.align import ffhq_matrix, invert, warp
from diffdeid.geometry.mask import face_region
from diffdeid.geometry.surroundings import ERASED, surroundings
from diffdeid.structures import Face, FaceCrop


def face_at(x, y, height=100.0, turn=0.0):
    """A face of 468 landmarks within an upright ellipse."""
    rng = np.random.default_rng(0)
    angles, radii = rng.uniform(0, 2 * np.pi, 468), np.sqrt(rng.uniform(0, 1, 468))
    points = np.stack([0.35 * radii * np.cos(angles), 0.5 * radii * np.sin(angles)], axis=1)
    places = {33: (-0.2, -0.12), 133: (-0.08, -0.12), 362: (0.08, -0.12), 263: (0.2, -0.12), 61: (-0.12, 0.25), 291: (0.12, 0.25)}
    places |= {10: (0, -0.5), 152: (0, 0.5)}
    for index, place in places.items():
        points[index] = place
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    points = height * points @ rotation.T + (x, y)
    box = np.concatenate([points.min(0), points.max(0)]).astype(np.float32)
    return Face(box, landmarks=np.concatenate([points, np.zeros((468, 1))], axis=1), iris=np.zeros((2, 5, 2)))


@pytest.fixture
def picture():
    return np.random.default_rng(1).integers(0, 256, (400, 500, 3), dtype=np.uint8)


def scribble(picture, face, value):
    """Change all pixels of the region in which a face is painted anew, by the mask of its crop."""
    changed, matrix = picture.copy(), ffhq_matrix(face.landmarks, 256)
    mask = face_region(FaceCrop(None, matrix).to_crop(face.landmarks), 256)
    changed[warp(mask, invert(matrix), picture.shape[1::-1], cv2.BORDER_CONSTANT) > 0.02] = value
    return changed


@pytest.mark.parametrize("place", [(250, 200), (20, 200), (250, 380), (490, 10)], ids=["inside", "left", "bottom", "corner"])
@pytest.mark.parametrize("height", [6.0, 12.0, 40.0, 100.0, 300.0])
@pytest.mark.parametrize("turn", [0.0, 0.7])
def test_no_erased_pixel_reaches_the_crop(picture, place, height, turn):
    """Neither by interpolation, nor by reflection at the border of the picture."""
    face = face_at(*place, height, turn)
    crops = [surroundings(scribble(picture, face, value), face) for value in (0, 255)]
    assert (crops[0] == crops[1]).all()


def test_other_faces_are_erased_with_landmarks_or_without(picture):
    face, other = face_at(200, 200), face_at(290, 190)
    for second in (other, replace(other, landmarks=None)):
        crops = [surroundings(scribble(picture, other, value), face, [face, second]) for value in (0, 255)]
        assert (crops[0] == crops[1]).all()
    assert (surroundings(scribble(picture, other, 0), face) != surroundings(scribble(picture, other, 255), face)).any()


def test_what_is_around_stays(picture):
    smooth = np.full_like(picture, 200)
    crop = surroundings(smooth, face_at(250, 200))
    assert (crop[112, 112] == ERASED).all() and (crop[:10, :10] == 200).all() and crop.shape == (224, 224, 3)


def test_the_picture_is_left_as_it_was(picture):
    before = picture.copy()
    surroundings(picture, face_at(250, 200))
    assert (picture == before).all()


def test_a_face_beside_the_picture_has_no_surroundings(picture):
    assert (surroundings(picture, face_at(5000, 200)) == ERASED).all()
