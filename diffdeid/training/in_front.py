"""What lies in front of the faces of a store: what the face parser finds in the photos, and what is drawn over them in training.

The denoiser sees it, and paints the face behind it. The pipelines show the same of it, see `FaceBatch.masks`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from diffdeid.geometry.mask import erased, signed_distance
from diffdeid.geometry.pixels import on_host, to_tensor
from diffdeid.models.face_parser import FACE, FRONT, FaceParserModel
from diffdeid.stages.reconstruct import find_what_is_in_front, parse
from diffdeid.training.occluders import Scene, draw_occluder, paste

KINDS = {"hand": 0.45, "mask": 0.1, "thing": 0.15, "cloth": 0.15, "cap": 0.15}  # shares of what is drawn
LEAST_SEEN = 0.5  # share of what is drawn over a face that the pipelines must see; they take things amid a face for the face


@torch.no_grad()
def find_in_front(parser: FaceParserModel, image: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """How much of each pixel of a picture `(S, S, 3)` uint8 is in front of its face, as the pipelines see it, 0…255.

    Hands are not searched for. Fingers that the parser takes for skin count as the face.

    Args:
        parser: the released face parser.
        image: a crop with its margin, whose side is a multiple of 32.
        landmarks: `(468, 2+)` in its pixels.

    Returns:
        `(S, S, 1)` uint8.
    """
    _, front = parse(parser, to_tensor([image]), _depths(landmarks, len(image)), [[]])
    return on_host((255 * front[0]).round().byte()).transpose(1, 2, 0)


def _depths(landmarks: np.ndarray, size: int) -> torch.Tensor:
    return torch.from_numpy(np.float32(signed_distance(erased(landmarks, size))))[None, None]


def draw_in_front(
    image: np.ndarray,
    landmarks: np.ndarray,
    front: np.ndarray,
    hands: np.ndarray,
    textures: Sequence[np.ndarray],
    rng: np.random.Generator,
) -> np.ndarray:
    """Draw something over a face, unless the pipelines would not see that it is in front.

    Args:
        image: `(S, S, 3)` uint8.
        landmarks: `(468, 2+)` in its pixels.
        front: `(S, S)` uint8, what is in front already.
        hands: of `hand_pictures.py`.
        textures: pictures from which surfaces are cut.
        rng: of what is drawn.

    Returns:
        `(S, S, 4)` uint8: the picture, and how much of each pixel of it is in front.
    """
    scene = Scene(np.float32(image) / 255, np.where(front > 127, FRONT, FACE).astype(np.uint8), landmarks[:, :2])
    layer = draw_occluder(rng.choice(list(KINDS), p=list(KINDS.values())), scene, hands, textures, rng)
    depths = _depths(landmarks, len(image))
    likely = torch.from_numpy(np.float32(layer.region))[None, None]
    drawn = on_host(find_what_is_in_front(likely, 0.5, depths, [[]])[0, 0])
    over = layer.region & (depths[0, 0].numpy() > 0)
    if drawn[over].sum() < LEAST_SEEN * over.sum():
        return np.dstack([image, front])
    paste(scene, layer, rng)
    picture = (255 * scene.image).round().clip(0, 255).astype(np.uint8)
    return np.dstack([picture, np.maximum(front, (255 * drawn).round().astype(np.uint8))])
