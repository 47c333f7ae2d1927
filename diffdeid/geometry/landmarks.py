"""Index lists of the 468 FaceMesh landmarks (MediaPipe, Apache-2.0). Right is the person's right."""

import numpy as np

LIPS_OUTER = (61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291, 409, 270, 269, 267, 0, 37, 39, 40, 185)
LIPS_INNER = (78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308, 415, 310, 311, 312, 13, 82, 81, 80, 191)
LOWER_LIP_INNER, UPPER_LIP_INNER = LIPS_INNER[1:10], LIPS_INNER[:10:-1]  # without the corners; same index: one above the other
RIGHT_EYE = (33, 7, 163, 144, 145, 153, 154, 155, 133, 173, 157, 158, 159, 160, 161, 246)
LEFT_EYE = (263, 249, 390, 373, 374, 380, 381, 382, 362, 398, 384, 385, 386, 387, 388, 466)
RIGHT_BROW = (46, 53, 52, 65, 55, 107, 66, 105, 63, 70)
LEFT_BROW = (276, 283, 282, 295, 285, 336, 296, 334, 293, 300)
NOSE_BRIDGE = (168, 6, 197, 195, 5, 4, 1)
NOSE_BASE = (129, 98, 97, 2, 326, 327, 358)

EYE_CORNERS = ((33, 133), (362, 263))  # right, left; each from the picture's left to its right


def lip_gap(landmarks: np.ndarray) -> float:
    """The distance between the middles of the lips, in the units of the landmarks `(468, 2+)`."""
    upper, lower = landmarks[[UPPER_LIP_INNER[4], LOWER_LIP_INNER[4]], :2]
    return float(np.linalg.norm(upper - lower))


def frontality(landmarks: np.ndarray) -> float:
    """How frontally a face with `(468, 3)` landmarks is seen: 1 is straight, 0.06 has the tip of the nose in front of a cheek."""
    nose, *cheeks = landmarks[[1, 234, 454], :2]
    across = cheeks[1] - cheeks[0]
    place = (nose - cheeks[0]) @ across / max(across @ across, 1e-6)  # of the nose between the cheeks, 0…1
    sides = sorted([place, 1 - place])
    return float(((1 + sides[0] / sides[1]) / 2) ** 4)
