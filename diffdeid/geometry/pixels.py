"""Pixels as files have them and as networks take them, and the way from an accelerator to the host.

Bytes are uint8 `(…, S, S, 3)`; networks take float32 `(B, 3, S, S)` in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def to_tensor(pictures: Sequence[np.ndarray] | np.ndarray, device: torch.device | str = "cpu") -> Tensor:
    """Pictures `(S, S, 3)` of bytes -> `(B, 3, S, S)` in [-1, 1]."""
    return from_bytes(torch.from_numpy(np.stack(pictures)).to(device))


def from_bytes(pictures: Tensor) -> Tensor:
    """`(B, S, S, 3)` of bytes -> `(B, 3, S, S)` in [-1, 1]."""
    return pictures.permute(0, 3, 1, 2).float() / 127.5 - 1


def to_bytes(pictures: Tensor) -> Tensor:
    """`(B, 3, S, S)` in [-1, 1], and what is beyond is cut off -> `(B, S, S, 3)` of bytes."""
    return ((pictures.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).contiguous()


def on_host(tensor: Tensor) -> np.ndarray:
    """A tensor for OpenCV, onnxruntime and files. The stages copy nothing to the host but by this, and a test sees to that."""
    return tensor.detach().cpu().numpy()
