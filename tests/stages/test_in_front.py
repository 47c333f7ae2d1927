"""Hands and masks in front of a face stay, and no face is mistaken for one."""

import cv2
import numpy as np
import pytest
import torch

from diffdeid.geometry.hand import hand_silhouette
from diffdeid.geometry.mask import signed_distance
from diffdeid.geometry.pixels import to_tensor
from diffdeid.io.images import read_image
from diffdeid.stages.reconstruct import crop_face, find_hands, find_what_is_in_front, mask_crops, parse
from tests.conftest import ROOT

TOP, LEFT = 110, 215


@pytest.fixture(scope="module")
def waving(astronaut) -> tuple[np.ndarray, np.ndarray]:
    """The astronaut with a hand in front of her cheek, and where the hand is, both 512×512."""
    picture = np.asarray(read_image(astronaut).image).copy()
    hand = cv2.imread(str(ROOT / "tests/assets/hand.png"), cv2.IMREAD_UNCHANGED)[::-1, ::-1]
    alpha = np.zeros(picture.shape[:2], np.float32)
    where = np.s_[TOP : TOP + hand.shape[0], LEFT : LEFT + hand.shape[1]]
    alpha[where] = hand[..., 3] / 255
    picture[where] = alpha[where][..., None] * hand[..., 2::-1] + (1 - alpha[where][..., None]) * picture[where]
    return picture, alpha


def cropped(pipeline, picture):
    (face,) = [face for face in pipeline.face_analyser(picture) if face.landmarks is not None]
    crop = crop_face(picture, face, 256, 0.8)
    return crop, to_tensor([crop.image], "cpu"), mask_crops(crop.to_crop(face.landmarks)[None], 256, False)


@torch.no_grad()
def test_a_hand_before_a_face_is_in_front(pipeline, waving):
    picture, alpha = waving
    crop, images, depths = cropped(pipeline, picture)
    hands = find_hands(pipeline.hand_finder, [picture], [crop])
    assert len(hands[0]) == 1
    placed = cv2.warpAffine(cv2.erode(alpha, np.ones((5, 5))), crop.matrix, (256, 256))
    hiding = (placed > 0.9) & (depths[0, 0].numpy() > 0)
    assert hiding.sum() > 1000
    front = parse(pipeline.face_parser, images, depths, hands)[1][0, 0].numpy()
    assert front[hiding].mean() > 0.9
    skin = (cv2.warpAffine(cv2.dilate(alpha, np.ones((9, 9))), crop.matrix, (256, 256)) == 0) & (depths[0, 0].numpy() > 0)
    skin[:120] = False  # there is her hair
    assert front[skin].mean() < 0.03
    blind = parse(pipeline.face_parser, images, depths, find_hands(None, [picture], [crop]))[1][0, 0].numpy()
    assert blind[hiding].mean() < 0.6


def test_it_is_still_there_before_the_new_face(pipeline, waving):
    picture, alpha = waving
    result = pipeline(picture, generator=torch.Generator().manual_seed(0))
    assert [face.method for face in result.faces[0]] == ["diffusion"]
    changed = np.abs(np.asarray(result.images[0]).astype(int) - picture).max(axis=2)
    assert (changed[cv2.erode(alpha, np.ones((7, 7))) > 0.99] <= 1).mean() > 0.95


def test_results_depend_on_the_settings_of_the_hand_finder(pipeline):
    finder, before = pipeline.hand_finder, pipeline.engine.digest()
    kept = finder.config.hand_threshold
    finder.register_to_config(hand_threshold=0.5)
    changed = pipeline.engine.digest()
    finder.register_to_config(hand_threshold=kept)
    assert changed != before == pipeline.engine.digest()


@torch.no_grad()
def test_a_face_that_is_taken_for_a_hand_is_erased(pipeline, waving):
    """The parser sees hardly anything in front there, except hair, which is in front."""
    picture, _ = waving
    crop, images, depths = cropped(pipeline, picture)
    hands = find_hands(pipeline.hand_finder, [picture], [crop])
    inside = hand_silhouette(hands[0][0], 256) > 0
    assert not find_what_is_in_front(torch.full_like(depths, 0.05), 0.8, depths, hands).any()
    found = find_what_is_in_front(torch.full_like(depths, 0.2), 0.8, depths, hands)[0, 0].numpy()
    assert found[cv2.erode(inside.astype(np.uint8), np.ones((5, 5))) > 0].all() and not found[~inside].any()
    hair = torch.full_like(depths, 0.03)
    hair[..., 200:] = 1  # it hangs over half of the silhouette
    assert inside[:, 200:].any() and inside[:, :200].any()
    assert not find_what_is_in_front(hair, 0.8, depths, hands)[..., :200].any()


@pytest.mark.parametrize(("gap", "stays"), [(6, True), (14, False)])
def test_a_mask_that_ends_at_the_chin_is_in_front(gap, stays):
    """The erased region reaches below chin and mask. Something that ends above the chin may be the shadow of a beard."""
    circle, mask = (np.zeros((256, 256), np.uint8) for _ in range(2))
    cv2.circle(circle, (128, 128), 100, 1, -1)
    cv2.circle(mask, (128, 128), 100 - gap, 1, -1)
    mask[:140] = 0
    depths = torch.from_numpy(np.float32(signed_distance(circle)))[None, None]
    front = find_what_is_in_front(torch.from_numpy(np.float32(mask))[None, None], 0.8, depths, [[]])
    assert front[0, 0, 180, 128] == stays
