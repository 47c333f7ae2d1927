import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from diffdeid.errors import ConfigurationError
from diffdeid.models.refiner import CELL, SCALE, RefinerModel
from tests.tiny import tiny_refiner


def inputs(batch: int, size: int = 64) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    faces, renders = (torch.rand(batch, 3, size, size, generator=generator) * 2 - 1 for _ in range(2))
    return faces, renders, (torch.rand(batch, 1, size, size, generator=generator) > 0.5).float()


@torch.no_grad()
def test_faces_are_twice_as_large_alone_and_in_a_batch():
    refiner, batch = tiny_refiner(), inputs(3)
    together = refiner(*batch).sample
    assert together.shape == (3, 3, 64 * SCALE, 64 * SCALE)
    alone = torch.cat([refiner(*one, return_dict=False)[0] for one in zip(*(part.split(1) for part in batch), strict=True)])
    torch.testing.assert_close(together, alone)


@torch.no_grad()
def test_what_is_added_is_detail_without_a_colour_of_its_own():
    refiner, (faces, renders, masks) = tiny_refiner(), inputs(2)
    with_more = refiner(faces, renders, masks).sample
    added = with_more - F.interpolate(faces, scale_factor=SCALE, mode="bicubic")
    assert added.abs().mean() > 0.02
    assert F.avg_pool2d(added, CELL).abs().mean() < 0.1 * added.abs().mean()
    assert (added - added[:, :1]).abs().max() < 1e-5  # the same to all colours


@torch.no_grad()
def test_half_of_the_precision_changes_the_detail_alone():
    refiner, batch = tiny_refiner(), inputs(1)
    full, half = refiner(*batch).sample, refiner.to(torch.bfloat16)(*batch).sample
    base = F.interpolate(batch[0], scale_factor=SCALE, mode="bicubic")
    assert half.dtype == torch.float32
    assert (half - full).abs().mean() < 0.02 * (full - base).abs().mean()


@torch.no_grad()
def test_renders_and_masks_are_seen():
    refiner, (faces, renders, masks) = tiny_refiner(), inputs(1)
    base = refiner(faces, renders, masks).sample
    assert not torch.allclose(base, refiner(faces, -renders, masks).sample, atol=1e-3)
    assert not torch.allclose(base, refiner(faces, renders, 1 - masks).sample, atol=1e-3)


def test_weights_survive_saving_and_others_are_refused(tmp_path):
    refiner = tiny_refiner()
    refiner.save_pretrained(tmp_path)
    again = RefinerModel.from_pretrained(tmp_path)
    for name, weight in refiner.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight)
    state = {name: weight for name, weight in refiner.state_dict().items() if name != "body.0.bias"}
    save_file(state, tmp_path / "diffusion_pytorch_model.safetensors")
    with pytest.raises(ConfigurationError, match="body.0.bias"):
        RefinerModel.from_pretrained(tmp_path)
