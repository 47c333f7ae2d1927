from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import lsq_linear

from diffdeid.models.expression import TOLERANCE, expression_features, keep_expression
from diffdeid.models.morphable_model import MorphableModel

CPU = torch.device("cpu")
WEIGHTS = Path(__file__).parents[2] / "weights/diffdeid/morphable_model"


@pytest.fixture(scope="module")
def model() -> MorphableModel:
    if not WEIGHTS.exists():
        pytest.skip("weights/diffdeid is not here")
    return MorphableModel.from_pretrained(WEIGHTS).float()


def random_shapes(count: int, seed: int) -> torch.Tensor:
    return torch.randn(count, 80, generator=torch.Generator().manual_seed(seed))


def likely_expressions(model: MorphableModel, count: int) -> torch.Tensor:
    """Draws from the prior of β, within its bounds."""
    noise = torch.randn(count, 52, generator=torch.Generator().manual_seed(5))
    drawn = model.expression_mean + torch.linalg.solve(model.expression_whitening, noise.mT).mT
    return torch.nn.functional.pad(drawn.clamp(0, 1), (0, 12), value=0.5)  # the last ones are unused


def features(model: MorphableModel, shape: torch.Tensor, expression: torch.Tensor) -> torch.Tensor:
    return torch.einsum("fnc,bnc->bf", expression_features(CPU), model(shape, expression).landmarks)


def test_features_only_tell_differences_of_landmarks():
    torch.testing.assert_close(expression_features(CPU).sum(1), torch.zeros(len(expression_features(CPU)), 3), atol=1e-6, rtol=0)


def test_the_expression_of_another_head_is_what_a_bounded_solver_finds(model):
    shapes, others, before = random_shapes(6, 0), random_shapes(6, 1), likely_expressions(model, 6)
    found = keep_expression(model, shapes, before, others)
    told = expression_features(CPU).flatten(1) / TOLERANCE
    by_shape, by_expression = (
        told @ model.at_landmarks(basis).flatten(1).mT for basis in (model.identity_basis, model.expression_basis)
    )
    design = torch.cat([by_expression, model.expression_whitening]).double().numpy()
    for row in range(6):
        lost = by_shape @ (shapes[row] - others[row])
        kept = before[row, :52]
        target = torch.cat([lost + by_expression @ kept, model.expression_whitening @ kept]).double().numpy()
        best = lsq_linear(design, target, (0, 1)).x
        np.testing.assert_allclose(found[row, :52].numpy(), best, atol=1e-3)
    assert (found[:, 52:] == 0.5).all()


def test_another_head_shows_the_same_expression(model):
    """Without this the difference of the heads adds to eyes, lips and brows."""
    shapes, others, before = random_shapes(40, 0), random_shapes(40, 1), likely_expressions(model, 40)
    meant = features(model, shapes, before)
    unchanged = (features(model, others, before) - meant).square().mean()
    kept = features(model, others, keep_expression(model, shapes, before, others))
    assert (kept - meant).square().mean() < 0.25 * unchanged


def test_the_same_head_keeps_its_expression(model):
    shapes, before = random_shapes(3, 0), likely_expressions(model, 3)
    torch.testing.assert_close(keep_expression(model, shapes, before, shapes), before, atol=1e-5, rtol=0)


def test_an_expression_without_bounds_is_found_too(model, tmp_path):
    """Models whose β are PCA directions have no bounds."""
    model.save_pretrained(tmp_path)
    free = MorphableModel.from_pretrained(tmp_path, expression_bounded=False).float()
    shapes, others, before = random_shapes(3, 0), random_shapes(3, 1), likely_expressions(model, 3)
    found = keep_expression(free, shapes, before, others)
    assert found.shape == before.shape and found.min() < 0
    bounded = keep_expression(model, shapes, before, others)
    meant = features(model, shapes, before)
    error, more = ((features(model, others, one) - meant).square().mean() for one in (found, bounded))
    assert error < more
