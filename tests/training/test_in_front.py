"""What lies in front of the faces that the denoiser learns from."""

from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

from diffdeid.geometry.pixels import to_tensor
from diffdeid.models.face_parser import CLASSES, FRONT
from diffdeid.stages.reconstruct import mask_crops, parse
from diffdeid.training import in_front
from diffdeid.training.in_front import KINDS, draw_in_front, find_in_front
from diffdeid.training.occluders import draw_occluder
from tests.training.conftest import disc_as_a_hand

SIZE = 128


@pytest.fixture(scope="module")
def landmarks() -> np.ndarray:
    """Those of an oval of points with a forehead, a chin, eyes and cheeks where they belong."""
    angles = np.linspace(0, 2 * np.pi, 468, endpoint=False)
    points = np.stack([64 + 36 * np.sin(angles), 64 - 46 * np.cos(angles)], axis=1)
    points[[10, 152, 168, 6, 1, 4]] = [[64, 18], [64, 110], [64, 52], [64, 55], [64, 72], [64, 72]]
    return points


class FrontAbove:
    """A face parser that finds something in front in the upper rows of each crop."""

    config = SimpleNamespace(front_threshold=0.5)

    def __init__(self, rows: int):
        self.rows = rows

    def probabilities(self, images: torch.Tensor) -> torch.Tensor:
        likely = torch.zeros(len(images), CLASSES, *images.shape[2:])
        likely[:, FRONT, : self.rows] = 1
        return likely


def test_what_is_in_front_is_found_as_the_pipelines_find_it(landmarks):
    image, parser = np.zeros((SIZE, SIZE, 3), np.uint8), FrontAbove(40)
    front = find_in_front(parser, image, landmarks)
    depths = mask_crops(landmarks[None], SIZE, keep_mouth=False)
    expected = parse(parser, to_tensor([image]), depths, [[]])[1][0, 0]
    assert front.shape == (SIZE, SIZE, 1) and front.dtype == np.uint8
    assert np.array_equal(front[..., 0] == 255, expected > 0.999) and (front[:34, 40:88] == 255).all() and not front[44:].any()


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_drawn_covers_the_face_and_is_known(landmarks, kind, monkeypatch):
    monkeypatch.setattr(in_front, "KINDS", {kind: 1.0})
    image = np.random.default_rng(0).integers(90, 110, (SIZE, SIZE, 3), dtype=np.uint8)
    already = np.zeros((SIZE, SIZE), np.uint8)
    already[:10] = 200
    hidden = 0
    for seed in range(8):
        drawn = draw_in_front(image, landmarks, already, disc_as_a_hand(), [image], np.random.default_rng(seed))
        picture, front = drawn[..., :3], drawn[..., 3]
        assert drawn.shape == (SIZE, SIZE, 4) and drawn.dtype == np.uint8
        assert (front >= already).all() and set(np.unique(front)) <= {0, 200, 255}
        hidden += (front[30:100, 40:90] == 255).sum()
        # what is known to be in front ends a little inside of what was drawn
        known = cv2.dilate(np.uint8(front == 255), np.ones((3, 3))) > 0
        assert (picture[known] != image[known]).any(axis=-1).sum() > 0.9 * known.sum() - 1
    assert hidden > 100


def test_an_unknown_kind_is_an_error():
    with pytest.raises(ValueError, match="hand, mask"):
        draw_occluder("beard", None, None, [], None)
