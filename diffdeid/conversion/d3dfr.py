"""A user's own Deep3DFaceRecon network -> a `FaceReconstructorModel` folder.

Source: `epoch_20.pth` of Deep3DFaceRecon_pytorch (Deng et al. 2019), whose morphable model is for research only. The network is
a ResNet-50 with seven 1×1 convolutions on the pooled features; its coefficients are those of the Basel model that
`diffdeid.conversion.bfm` converts. Conventions from its `models/bfm.py` and `util/preprocess.py`; no code is taken over. What is
made to fit, and how:

    picture      [0, 1], 224 pixels, focal length 1015 pixels, camera at 10 decimetres. Ours is 5 crop sizes, so a crop that takes
                 203 pixels has the same camera, and faces as large as those of its own alignment. The frame around the crop
                 repeats the crop's border.
    view         its pictures are centred 17 pixels lower in the face. Moving the picture is nearly the same as turning the camera
                 by 1°: off by 0.1 pixels of 256, at most 0.3; the light is not turned.
    rotation     Euler angles, turned into our vector in `forward`
    translation  theirs moves the mean vertex, which is their origin; our origin is elsewhere (`deep3d_pivot`)
    γ            channel-major, with constants and signs in the harmonics, and an offset: folded into the head, mean and std
    ω            zero: the network does not tell the gaze. The pipeline takes it from the iris.
"""

from __future__ import annotations

import math
import pickle
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import pad

from diffdeid.errors import ConfigurationError
from diffdeid.models.face_reconstructor import FaceReconstructorModel
from diffdeid.models.morphable_model import MorphableModel
from diffdeid.structures import MorphableCoefficients

SIZE = 224  # pixels
HEADS = (80, 64, 80, 3, 27, 2, 1)  # identity, expression, albedo, angles, γ, translation x and y, z
AMBIENT = 0.8  # γ of the constant harmonic when the network gives 0
# Its harmonics over ours: Lambert's kernel of the band (Ramamoorthi and Hanrahan 2001) times the normalising constant, and signs.
_BANDS = [
    math.pi / math.sqrt(4 * math.pi),
    2 * math.pi / math.sqrt(4 * math.pi),
    2 * math.pi / math.sqrt(8) * 3 * math.sqrt(5 / (12 * math.pi)),
]
_FACTORS = [1, -1, 1, -1, 1, -1, 0.5 / math.sqrt(3), -1, 0.5]
HARMONICS = torch.tensor(_FACTORS) * torch.tensor(_BANDS).repeat_interleave(torch.tensor([1, 3, 5]))

LICENCE = """# Licences

Converted by `diffdeid convert d3dfr` from a network of Deep3DFaceRecon, trained with the Basel Face Model: for research, under
the terms of their owners. Do not publish this folder.
"""


def convert_d3dfr(path: Path, out: Path, morphable_model: Path) -> None:
    """Write the folder `out`. `morphable_model` is what `convert_bfm` made of the Basel model of the network."""
    head = MorphableModel.from_pretrained(morphable_model)
    config = head.config
    sizes = (config.num_identity, len(config.expression_names), config.num_albedo)
    if sizes != HEADS[:3] or config.expression_bounded:
        raise ConfigurationError(
            f"`{morphable_model}` has {sizes} directions of identity, expression and albedo, "
            f"{'bounded' if config.expression_bounded else 'unbounded'}; Deep3DFaceRecon has {HEADS[:3]}, unbounded. "
            "Pass the folder that `diffdeid convert bfm` wrote."
        )
    state = read_d3dfr(path)
    model = FaceReconstructorModel(
        sample_size=SIZE,
        deep3d_pivot=tuple(head.mean.float().mean(0).tolist()),
        expression_bounded=head.config.expression_bounded,
        **_architecture(state),
    )
    try:
        model.backbone.load_state_dict(_backbone(state))
    except RuntimeError as error:
        raise ConfigurationError(f"`{path}` does not hold the ResNet-50 of Deep3DFaceRecon: {error}") from error
    model.head.load_state_dict(_head(state))
    ambient = AMBIENT * HARMONICS * (torch.arange(9) == 0)
    for buffer, values in ((model.mean, ambient), (model.std, HARMONICS)):
        MorphableCoefficients.unpack(buffer).illumination.copy_(values.repeat_interleave(3))
    model.save_pretrained(out)
    (out / "LICENSES.md").write_text(LICENCE)


def read_d3dfr(path: Path) -> dict[str, Tensor]:
    """Read the tensors of `net_recon`; nothing but tensors and plain values is unpickled.

    Raises:
        ConfigurationError: the file is not a ResNet-50 of Deep3DFaceRecon, or holds more than tensors.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ConfigurationError(
            f"`{path}` is not a file that torch reads, or holds more than tensors, which is refused: loading it could run code."
        ) from error
    state = content.get("net_recon") if isinstance(content, dict) else None
    if not isinstance(state, dict):
        raise ConfigurationError(f"`{path}` has no `net_recon`. Expected `epoch_20.pth` of Deep3DFaceRecon_pytorch.")
    last = "backbone.layer4.0.conv3.weight"
    needed = ["backbone.conv1.weight", *(f"backbone.layer{stage}.0.conv3.weight" for stage in (1, 2, 3)), last]
    needed += [f"final_layers.{i}.{tensor}" for i in range(len(HEADS)) for tensor in ("weight", "bias")]
    if missing := [key for key in needed if key not in state]:
        raise ConfigurationError(f"`net_recon` in `{path}` lacks {missing}. Expected the ResNet-50 of Deep3DFaceRecon.")
    for i, size in enumerate(HEADS):
        key, shape = f"final_layers.{i}.weight", (size, len(state[last]), 1, 1)
        if state[key].shape != shape:
            raise ConfigurationError(f"`{key}` in `{path}` should have shape {shape}, has {tuple(state[key].shape)}.")
    return state


def _architecture(state: dict[str, Tensor]) -> dict[str, int | tuple[int, ...]]:
    stages = [f"backbone.layer{stage}." for stage in (1, 2, 3, 4)]
    return {
        "embedding_size": len(state["backbone.conv1.weight"]),
        "hidden_sizes": tuple(len(state[f"{stage}0.conv3.weight"]) for stage in stages),
        "depths": tuple(sum(key.startswith(stage) and key.endswith(".conv3.weight") for key in state) for stage in stages),
    }


def _backbone(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename torchvision's parameters to those of our `backbone`."""
    renamed = {}
    for key, value in state.items():
        if not key.startswith("backbone."):
            continue
        *place, module, tensor = key.split(".")[1:]
        kind = "convolution" if module.startswith("conv") or module == "0" else "normalization"
        if not place:  # conv1, bn1
            parent = "embedder.embedder"
        else:  # layer1.0.conv1, layer1.0.downsample.0
            parent = f"encoder.stages.{int(place[0][-1]) - 1}.layers.{place[1]}."
            parent += "shortcut" if place[-1] == "downsample" else f"layer.{int(module[-1]) - 1}"
        renamed[f"{parent}.{kind}.{tensor}"] = value
    return renamed


def _head(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The seven output layers as one, in the order of ρ; the weights of the gaze are zero."""
    identity, expression, albedo, angles, light, *translation = torch.arange(sum(HEADS)).split(HEADS)
    light = light.unflatten(0, (3, 9)).T.flatten()  # harmonic-major
    order = torch.cat([identity, expression, albedo, light, angles, *translation])
    weight = torch.cat([state[f"final_layers.{i}.weight"].flatten(1) for i in range(len(HEADS))])[order]
    bias = torch.cat([state[f"final_layers.{i}.bias"] for i in range(len(HEADS))])[order]
    gaze = MorphableCoefficients.SIZES[-1]
    return {"weight": pad(weight, (0, 0, 0, gaze)), "bias": pad(bias, (0, gaze))}
