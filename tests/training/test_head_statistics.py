import pytest
import torch

from diffdeid.errors import ConfigurationError
from diffdeid.geometry.camera import DISTANCE, FOCAL, project, to_camera
from diffdeid.models.fitting import HeadFit
from diffdeid.training.head_statistics import (
    landmark_residuals,
    learn_expression,
    learn_identity,
    mean_offsets,
    mirror_twins,
    probabilistic_pca,
)
from tests.tiny import tiny_morphable_model


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_twins_are_mirror_images():
    right = torch.rand(5, 3, generator=generator()) + 0.1
    points = torch.cat([right, right * torch.tensor([-1, 1, 1]), torch.tensor([[0.0, 2, 3]])])
    assert mirror_twins(points).tolist() == [5, 6, 7, 8, 9, 0, 1, 2, 3, 4, 10]


def test_a_lopsided_head_has_no_twins():
    with pytest.raises(ConfigurationError, match="symmetric"):
        mirror_twins(torch.tensor([[1.0, 0, 0], [0.9, 0.1, 0], [-1.1, 0, 0]]))


def test_a_known_subspace_is_found_in_data_with_gaps():
    directions = torch.linalg.qr(torch.randn(40, 3, generator=generator())).Q.mT * torch.tensor([[3.0], [2], [1]])
    values = torch.randn(600, 3, generator=generator()) @ directions
    values += 0.05 * torch.randn(values.shape, generator=generator())
    seen = (torch.rand(values.shape, generator=generator()) < 0.6).float()
    found, variances = probabilistic_pca(torch.where(seen > 0, values, 99.0), seen, 3, noise=0.05, rounds=20)
    torch.testing.assert_close(found.mT @ found, directions.mT @ directions, atol=0.6, rtol=0)
    torch.testing.assert_close(variances, torch.tensor([9.0, 4, 1]), atol=0.9, rtol=0)


def test_learned_identities_are_standard_again_and_draw_the_same_heads():
    model = tiny_morphable_model()
    spread = torch.linspace(2, 0.1, 80)
    scores = torch.randn(4000, 80, generator=generator()) * spread + 0.3
    before = model(scores[:50], torch.zeros(50, 64)).vertices
    old_basis, old_mean = model.identity_basis.clone(), model.mean.clone()
    learn_identity(model, scores, torch.zeros(80, 80))
    # the new α of the same heads
    design = model.identity_basis.flatten(1).mT
    offsets = (old_mean - model.mean).flatten() + (scores @ old_basis.flatten(1))
    again = torch.linalg.lstsq(design, offsets.mT).solution.mT
    torch.testing.assert_close(model(again[:50], torch.zeros(50, 64)).vertices, before, atol=1e-3, rtol=0)
    torch.testing.assert_close(again.mT.cov(), torch.eye(80), atol=0.05, rtol=0)


def test_the_expression_prior_whitens_what_it_learned_from_and_is_the_same_left_and_right():
    model = tiny_morphable_model()
    model.config["expression_names"][:] = ["mouthSmileLeft", "mouthSmileRight", "jawOpen"]
    smile = torch.rand(5000, 1, generator=generator())
    beta = torch.cat([smile, 0.8 * smile, 0.2 * torch.rand(5000, 1, generator=generator())], dim=1)
    learn_expression(model, beta, 1e-3 * torch.eye(3), torch.tensor([1, 0, 2]))
    assert model.expression_mean[0] == model.expression_mean[1]
    both = torch.cat([beta, beta[:, [1, 0, 2]]]) + 1e-3**0.5 * torch.randn(10000, 3, generator=generator())
    whitened = (both - model.expression_mean) @ model.expression_whitening.mT
    torch.testing.assert_close(whitened.mT.cov(), torch.eye(3), atol=0.1, rtol=0)


def test_misplaced_landmarks_are_noticed():
    model = tiny_morphable_model()
    wanted = 0.05 * torch.randn(468, 3, generator=generator())
    pose = torch.cat([0.4 * torch.randn(200, 3, generator=generator()), torch.zeros(200, 3)], dim=1)
    nobody = torch.zeros(200, 80), torch.zeros(200, 64)
    truth = model(*nobody).landmarks + wanted
    seen = project(to_camera(truth, pose), 256)
    fitted = HeadFit(*nobody, pose, torch.zeros(200, 1, 1))
    residuals = landmark_residuals(model, fitted, seen, 256)
    assert residuals.abs().mean() == pytest.approx(0.05 * (2 / torch.pi) ** 0.5, rel=0.3)
    assert (FOCAL, DISTANCE) == (5.0, 10.0)
    torch.testing.assert_close(mean_offsets(fitted, residuals, ridge=0.1), wanted, atol=0.025, rtol=0)
