"""Conversions between the pixels of files and those of networks, and copies from an accelerator to the host.

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
    """`(B, 3, S, S)`, clipped to [-1, 1] -> `(B, S, S, 3)` of bytes."""
    return ((pictures.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).contiguous()


def on_host(tensor: Tensor) -> np.ndarray:
    """A tensor as an array for OpenCV, onnxruntime and files. A test makes sure that the stages copy by this function only."""
    return tensor.detach().cpu().numpy()
