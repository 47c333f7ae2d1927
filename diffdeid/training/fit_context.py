"""Fit the head of the context encoder, which predicts identities from the surroundings of erased faces.

It is a linear map of low rank (ridge regression) from the ImageNet features of regions to z; its prediction is the context
vector. A map predicts better for the faces that it was fitted to than for new ones. So training contexts are predicted by maps
that were fitted to other people (cross-fitting); the identity sampler then learns to trust contexts as much as those of new faces
deserve.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from diffdeid.geometry.pixels import to_tensor
from diffdeid.geometry.surroundings import surroundings
from diffdeid.models.context_encoder import ContextEncoderModel
from diffdeid.structures import Face
from diffdeid.training.data import MARGIN, FaceStore

FAINT = 0.05  # standard deviation below which features are not scaled up in full, because too few faces have them
FOLDS = 5  # of the cross-fitting
SAME_PERSON = 0.8  # cosine of z_id from which on two faces are put in one fold; strangers are hardly ever so alike
PENALTIES = (1e2, 1e3, 1e4, 2e4, 4e4)  # of the ridge regression, of which the best is taken
BATCH = 32

logger = logging.getLogger(__name__)


@torch.no_grad()
def read_features(store: FaceStore, names: list[str], encoder: ContextEncoderModel, tight_sets: list[str]) -> Tensor:
    """Pooled features of the surroundings of faces, `(n, d)`; NaN for `tight_sets`, whose pictures show hardly any."""
    rows = torch.full((len(names), encoder.reduction.in_features), math.nan, device=encoder.device)
    wide = [row for row, name in enumerate(names) if store.open(name).metadata()["set"] not in tight_sets]
    for start in range(0, len(wide), BATCH):
        batch = wide[start : start + BATCH]
        pictures = to_tensor([_surroundings(store, names[row]) for row in batch], encoder.device)
        rows[batch] = encoder.pooled_features(pictures)
    return rows


def _surroundings(store: FaceStore, name: str) -> np.ndarray:
    with store.open(name) as file:
        picture, landmarks, iris = (file.get_tensor(part) for part in ("image", "landmarks", "iris"))
    margin = MARGIN * len(picture)  # from the crop proper to all of the picture
    face = Face(np.zeros(4), landmarks=landmarks + [margin, margin, 0], iris=iris + margin)
    return surroundings(picture, face)


@torch.no_grad()
def fit_context(encoder: ContextEncoderModel, features: Tensor, identity: Tensor, held_out: Tensor) -> tuple[Tensor, Tensor]:
    """Fit the head of an encoder to faces; gives the contexts of these faces and of held-out ones.

    Args:
        encoder: whose head is fitted, in place.
        features: `(n, d)` of the training faces, NaN where there are none.
        identity: `(n, 128)` z of the training faces.
        held_out: features `(m, d)` of the held-out faces.

    Returns:
        Contexts `(n, context_dim)`, each predicted by a map that was fitted to other people, and `(m, context_dim)`; NaN where
        features are NaN.
    """
    rows = (~features[:, 0].isnan()).nonzero()[:, 0]
    known, wanted = features[rows], identity[rows]
    mean, spread = known.mean(0), known.std(0).clamp(min=FAINT)
    known, centre = (known - mean) / spread, wanted.mean(0)
    wanted = wanted - centre
    folds = people(wanted + centre) % FOLDS

    predicted = {penalty: torch.empty_like(wanted) for penalty in PENALTIES}
    for fold in range(FOLDS):
        here = folds == fold
        maps = ridges(known[~here], wanted[~here], PENALTIES)
        for penalty, weights in zip(PENALTIES, maps, strict=True):
            predicted[penalty][here] = known[here] @ weights
    told = {
        penalty: 1 - ((guess - wanted).square().mean() / wanted.square().mean()).item() for penalty, guess in predicted.items()
    }
    penalty = max(told, key=told.get)
    logger.info("The surroundings tell %.3f of the variance of z, at a penalty of %g.", told[penalty], penalty)

    weights = ridge(known, wanted, penalty)
    guesses = known @ weights
    directions = torch.linalg.eigh(guesses.T @ guesses).eigenvectors[:, -encoder.config.rank :]  # of largest variance
    encoder.reduction.weight.copy_((weights @ directions / spread[:, None]).T)
    encoder.head.weight.copy_(directions)
    encoder.head.bias.copy_(centre - directions @ encoder.reduction(mean))
    context = features.new_full((len(features), encoder.config.context_dim), math.nan)
    context[rows] = predicted[penalty] + centre  # not reduced to `directions`, which were fitted to these people
    return context, encoder.read(held_out)


def people(identity: Tensor) -> Tensor:
    """A number for each embedding `(n, 128)`, the same for all that one person's embeddings connect, directly or by others."""
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
    return next(ridges(inputs, outputs, [penalty]))


def ridges(inputs: Tensor, outputs: Tensor, penalties: Sequence[float]) -> Iterator[Tensor]:
    """`ridge` at each penalty."""
    gram, products = inputs.T @ inputs, inputs.T @ outputs
    for penalty in penalties:
        lifted = gram + penalty * torch.eye(len(gram), device=gram.device)
        yield torch.cholesky_solve(products, torch.linalg.cholesky(lifted))
