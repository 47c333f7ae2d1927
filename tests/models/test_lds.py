import pytest
import torch
from safetensors.torch import load_file, save_file

from diffdeid.errors import ConfigurationError
from diffdeid.models.lds import LDSModel
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


def test_gradients_reach_every_parameter():
    lds = perturb(tiny_lds())
    lds(torch.randn(2, 208), 5, torch.randn(2, 2)).sample.square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in lds.parameters())


@torch.no_grad()
def test_attributes_that_are_not_a_number_ask_for_anybody():
    lds, sample, attributes = perturb(tiny_lds()), torch.randn(2, 208), torch.tensor([[0.5, -1.0], [torch.nan, 0.0]])
    asked, anybody = lds(sample, 5, attributes).sample, lds(sample, 5).sample
    torch.testing.assert_close(asked[1], anybody[1])
    assert not torch.allclose(asked[0], anybody[0], atol=1e-3)


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
