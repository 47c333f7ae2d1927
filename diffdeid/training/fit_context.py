"""Fitting the head of the context encoder: reading identities off what surrounds erased faces.

A linear map (ridge regression) from ImageNet features to z: what it predicts is the context vector. A map knows more of the faces
that it was fitted to than of new ones. So training contexts are predicted by maps that were fitted to other people
(cross-fitting): the identity sampler then trusts contexts as much as those of new faces deserve.
"""

from __future__ import annotations

import logging
import math

import numpy as np
import torch
from torch import Tensor

from diffdeid.geometry.surroundings import surroundings
from diffdeid.models.context_encoder import ContextEncoderModel
from diffdeid.structures import Face
from diffdeid.training.data import MARGIN, FaceStore

FOLDS = 5  # of the cross-fitting
SAME_PERSON = 0.8  # cosine of z_id from which on two faces are not told apart by folds; strangers are hardly ever so alike
PENALTIES = (1e2, 3e2, 1e3, 3e3, 1e4, 3e4)  # of the ridge regression, of which the best is taken
BATCH = 32

logger = logging.getLogger(__name__)


@torch.no_grad()
def read_features(store: FaceStore, names: list[str], encoder: ContextEncoderModel, tight_sets: list[str]) -> Tensor:
    """Pooled features of the surroundings of the faces, `(n, d)`; NaN for sets whose pictures show hardly any."""
    rows = torch.full((len(names), encoder.config.feature_channels), math.nan, device=encoder.device)
    wide = [row for row, name in enumerate(names) if store.open(name).metadata()["set"] not in tight_sets]
    for start in range(0, len(wide), BATCH):
        batch = wide[start : start + BATCH]
        crops = np.stack([_surroundings(store, names[row]) for row in batch])
        pictures = torch.from_numpy(crops).permute(0, 3, 1, 2).to(encoder.device, torch.float32) / 127.5 - 1
        rows[batch] = encoder.pooled_features(pictures)
    return rows


def _surroundings(store: FaceStore, name: str) -> np.ndarray:
    with store.open(name) as file:
        picture, landmarks = file.get_tensor("image"), file.get_tensor("landmarks")
    landmarks = landmarks + [MARGIN * len(picture), MARGIN * len(picture), 0]  # from the crop proper to all of the picture
    return surroundings(picture, Face(np.zeros(4), landmarks=landmarks))


@torch.no_grad()
def fit_context(encoder: ContextEncoderModel, features: Tensor, identity: Tensor, held_out: Tensor) -> tuple[Tensor, Tensor]:
    """Fit the head of an encoder to faces, and give the contexts of these and of the held-out faces.

    Args:
        features: `(n, d)` of the training faces, NaN where there are none; `held_out` `(m, d)` alike.
        identity: `(n, 128)` z of the training faces.

    Returns:
        `(n, context_dim)`, each predicted by a map that was fitted to other people, and `(m, context_dim)`; NaN where features
        are.
    """
    rows = (~features[:, 0].isnan()).nonzero()[:, 0]
    known, wanted = features[rows], identity[rows]
    mean, spread = known.mean(0), known.std(0).clamp(min=1e-6)
    known, centre = (known - mean) / spread, wanted.mean(0)
    wanted = wanted - centre
    folds = people(wanted + centre) % FOLDS

    def crossed(penalty: float) -> Tensor:
        predicted = torch.empty_like(wanted)
        for fold in range(FOLDS):
            here = folds == fold
            predicted[here] = known[here] @ ridge(known[~here], wanted[~here], penalty)
        return predicted

    told = {penalty: 1 - ((crossed(penalty) - wanted).square().mean() / wanted.square().mean()).item() for penalty in PENALTIES}
    penalty = max(told, key=told.get)
    logger.info("The surroundings tell %.3f of the variance of z, at a penalty of %g.", told[penalty], penalty)
    weights = ridge(known, wanted, penalty)
    encoder.head.weight.copy_((weights / spread[:, None]).T)
    encoder.head.bias.copy_(centre - (mean / spread) @ weights)
    context = features.new_full((len(features), encoder.config.context_dim), math.nan)
    context[rows] = crossed(penalty) + centre
    return context, encoder.head(held_out)


def people(identity: Tensor) -> Tensor:
    """A number for each of the embeddings `(n, 128)`, the same for those that are one person's or joined by others that are."""
    numbers = torch.arange(len(identity), device=identity.device)
    near = [(rows @ identity.T > SAME_PERSON) for rows in identity.split(1024)]
    while True:
        spread = torch.cat([torch.where(part, numbers, len(numbers)).amin(1) for part in near])
        if (spread == numbers).all():
            break
        numbers = spread
    _, dense = numbers.unique(return_inverse=True)
    return dense


def ridge(inputs: Tensor, outputs: Tensor, penalty: float) -> Tensor:
    """The linear map `(d, k)` from inputs `(n, d)` to outputs `(n, k)`, least squares with a penalty on its size."""
    gram = inputs.T @ inputs + penalty * torch.eye(inputs.shape[1], device=inputs.device)
    return torch.cholesky_solve(inputs.T @ outputs, torch.linalg.cholesky(gram))
