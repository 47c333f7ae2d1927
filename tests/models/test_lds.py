import pytest
import torch
from safetensors.torch import load_file, save_file

from diffdeid.errors import ConfigurationError
from diffdeid.models.lds import LDSModel
from diffdeid.structures import MorphableCoefficients
from tests.tiny import perturb, tiny_lds


@torch.no_grad()
def test_noise_has_the_shape_of_the_sample_and_depends_on_time():
    lds, sample = perturb(tiny_lds()), torch.randn(3, 208)
    assert lds(sample, 5).sample.shape == (3, 208)
    assert not torch.allclose(lds(sample, 5).sample, lds(sample, 900, return_dict=False)[0])


@torch.no_grad()
def test_a_batch_gives_what_singles_give():
    lds, sample, timestep = perturb(tiny_lds()), torch.randn(3, 208), torch.tensor([1, 50, 900])
    singles = torch.cat([lds(sample[i : i + 1], timestep[i]).sample for i in range(3)])
    torch.testing.assert_close(lds(sample, timestep).sample, singles, atol=1e-5, rtol=0)


def known(lds, count=2, seed=0, **more):
    """Conditions of random people; everything but the attributes is known."""
    generator = torch.Generator().manual_seed(seed)
    coefficients = MorphableCoefficients.unpack(torch.randn(count, 261, generator=generator))
    return lds.conditions(torch.randn(count, 128, generator=generator), coefficients, **more)


def test_gradients_reach_every_parameter():
    lds = perturb(tiny_lds())
    conditions = known(lds, attributes=torch.randn(2, 2))
    lds(torch.randn(2, 208), 5, conditions).sample.square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in lds.parameters())


@torch.no_grad()
def test_what_is_not_known_does_not_count():
    lds, sample, conditions = perturb(tiny_lds()), torch.randn(2, 208), known(tiny_lds())
    conditions[1] = torch.nan
    told, nothing = lds(sample, 5, conditions).sample, lds(sample, 5).sample
    torch.testing.assert_close(told[1], nothing[1])
    assert not torch.allclose(told[0], nothing[0], atol=1e-3)


@torch.no_grad()
def test_a_group_with_a_gap_is_not_known():
    lds, sample = perturb(tiny_lds()), torch.randn(1, 208)
    whole, gap = known(lds, 1), known(lds, 1)
    whole[:, :128], gap[:, 3] = torch.nan, torch.nan
    torch.testing.assert_close(lds(sample, 5, whole).sample, lds(sample, 5, gap).sample)


@pytest.mark.parametrize("group", range(5))
@torch.no_grad()
def test_every_group_of_conditions_counts(group):
    lds, sample = perturb(tiny_lds()), torch.randn(1, 208)
    conditions = known(lds, 1)
    start = sum(lds.condition_sizes[:group])
    other = conditions.clone()
    other[:, start : start + lds.condition_sizes[group]] += 1
    assert not torch.allclose(lds(sample, 5, conditions).sample, lds(sample, 5, other).sample, atol=1e-4)


def test_conditions_hold_nothing_of_the_shape_and_of_the_skin_but_its_tone():
    """α and the rest of δ tell who somebody is, so K does not contain them."""
    lds, context = tiny_lds(), torch.zeros(1, 128)
    packed = torch.randn(1, 261)
    other = packed.clone()
    other[:, :80] += 1
    other[:, 80 + 64 + lds.config.tone_dim : 80 + 64 + 80] += 1
    other[:, -4:] += 1  # gaze
    one, two = (lds.conditions(context, MorphableCoefficients.unpack(values)) for values in (packed, other))
    torch.testing.assert_close(one, two, equal_nan=True)
    assert one.shape == (1, lds.condition_dim) and one[:, -2:].isnan().all() and one[:, :-2].isfinite().all()


@torch.no_grad()
def test_statistics_travel_with_the_weights(tmp_path):
    lds = perturb(tiny_lds())
    lds.mean.normal_()
    lds.std.uniform_(0.5, 2)
    lds.save_pretrained(tmp_path)
    loaded = LDSModel.from_pretrained(tmp_path)
    assert torch.equal(loaded.mean, lds.mean)
    assert torch.equal(loaded.std, lds.std)


def test_weights_without_statistics_are_refused(tmp_path):
    tiny_lds().save_pretrained(tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    del tensors["std"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ConfigurationError, match="std"):
        LDSModel.from_pretrained(tmp_path)
