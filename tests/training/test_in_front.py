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
from diffdeid.training.occluders import Layer, draw_occluder, paste
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
def test_of_what_is_drawn_all_but_a_rim_is_known(landmarks, kind, monkeypatch):
    pasted = []
    monkeypatch.setattr(in_front, "KINDS", {kind: 1.0})
    monkeypatch.setattr(in_front, "paste", lambda scene, layer, rng: pasted.append(layer) or paste(scene, layer, rng))
    image = np.random.default_rng(0).integers(90, 110, (SIZE, SIZE, 3), dtype=np.uint8)
    already = np.zeros((SIZE, SIZE), np.uint8)
    already[:10] = 200
    hidden = 0
    for seed in range(20):
        drawn = draw_in_front(image, landmarks, already, disc_as_a_hand(), [image], np.random.default_rng(seed))
        picture, front = drawn[..., :3], drawn[..., 3]
        assert drawn.shape == (SIZE, SIZE, 4) and drawn.dtype == np.uint8 and (front >= already).all()
        if not pasted:  # amid the face
            assert (picture == image).all() and (front == already).all()
            continue
        region = np.uint8(pasted.pop().region)
        within, known = cv2.erode(region, np.ones((3, 3))), front == 255
        assert not (known & (within == 0)).any() and known.sum() > 0.5 * cv2.erode(region, np.ones((9, 9))).sum()
        hidden += known[30:100, 40:90].sum()
    assert hidden > 1000


def test_what_lies_amid_a_face_is_not_drawn(landmarks, monkeypatch):
    """The pipelines would take it for the face."""
    spot = np.zeros((SIZE, SIZE), np.float32)
    spot[60:76, 56:72] = 1
    monkeypatch.setattr(in_front, "draw_occluder", lambda *_: Layer(np.ones(3, np.float32), spot, spot > 0, shadow=False))
    image, front = np.full((SIZE, SIZE, 3), 100, np.uint8), np.zeros((SIZE, SIZE), np.uint8)
    drawn = draw_in_front(image, landmarks, front, disc_as_a_hand(), [image], np.random.default_rng(0))
    assert (drawn[..., :3] == image).all() and not drawn[..., 3].any()
    spot[:76, 56:72] = 1  # … but what reaches beyond it is
    drawn = draw_in_front(image, landmarks, front, disc_as_a_hand(), [image], np.random.default_rng(0))
    assert (drawn[:70, 60:68, :3] == 255).all() and (drawn[:70, 60:68, 3] == 255).all()


def test_an_unknown_kind_is_an_error():
    with pytest.raises(ValueError, match="hand, mask"):
        draw_occluder("beard", None, None, [], None)
