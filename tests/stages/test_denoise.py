"""What painted faces may hold of their sources."""

from types import SimpleNamespace

import torch
from diffusers import DDIMScheduler

from diffdeid.stages.condition import Conditions
from diffdeid.stages.denoise import denoise

SIZE = 32


class Copying:
    """A denoiser that paints what it sees; trained ones do so outside of the mask."""

    dtype = torch.float32

    def __call__(self, seen, *_):
        return SimpleNamespace(sample=seen)


def test_what_is_seen_in_front_is_no_part_of_a_face():
    """Later stages and frames move faces, and would show the copy of a hand, or of the source's skin, elsewhere."""
    images = torch.rand(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)).round() * 2 - 1
    depths = torch.full((1, 1, SIZE, SIZE), -1.0)
    depths[..., 4:28, 4:28] = 1
    masks = (depths > 0).float()
    masks[..., 10:20, 10:20] = 0
    scheduler = DDIMScheduler(prediction_type="sample", clip_sample=False)
    scheduler.set_timesteps(1)
    painted, nothing = torch.full_like(images, 0.3), torch.zeros(1)
    conditions = Conditions(nothing, nothing, nothing, None)
    face = denoise(Copying(), scheduler, painted, SimpleNamespace(images=images, depths=depths, masks=masks), conditions, 1.0)
    torch.testing.assert_close(face[..., 4:28, 4:28], painted[..., 4:28, 4:28])
    assert torch.equal(face[..., :4, :], images[..., :4, :])
