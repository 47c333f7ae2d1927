import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from torch.utils.data import default_collate

from diffdeid.training.data import FaceStore, ValidationFaces, network_inputs
from diffdeid.training.losses import signal_to_noise
from diffdeid.training.rollout import CONDITIONS, Route, draw_route, follow_route
from diffdeid.training.validation import visible_sample


class Painter(torch.nn.Module):
    """Paints grey, a bit lighter each time, and remembers what it was given."""

    def __init__(self):
        super().__init__()
        self.given = []

    def forward(self, sample, timesteps, batch):
        self.given.append((sample, timesteps))
        return torch.full_like(sample, 0.1 * len(self.given))


@pytest.fixture
def batch(store):
    faces = ValidationFaces(FaceStore(store), ["face 0", "face 1"])
    return network_inputs(default_collate([faces[0], faces[1]]), 32)


@pytest.fixture
def scheduler():
    settings = {"prediction_type": "sample", "use_lu_lambdas": True, "timestep_spacing": "trailing"}
    return DPMSolverMultistepScheduler(beta_schedule="linear", **settings)


def test_routes_end_at_every_step_but_the_first():
    generator = torch.Generator().manual_seed(0)
    routes = [draw_route([4, 8], 0.5, generator) for _ in range(2000)]
    assert {(route.steps, route.stop) for route in routes} == {(4, n) for n in (1, 2, 3)} | {(8, n) for n in range(1, 8)}
    assert all(route.start == 0 or 1 <= route.stop - route.start <= 2 for route in routes)
    late = [route for route in routes if route.stop > 2]
    assert sum(route.start == 0 for route in late) / len(late) == pytest.approx(0.5, abs=0.05)


def test_a_route_from_pure_noise_is_the_sampling_itself(batch, scheduler):
    noise = torch.randn(batch["image"].shape, generator=torch.Generator().manual_seed(0))
    painter = Painter()
    sample, timesteps, snr = follow_route(painter, scheduler, batch, noise, Route(4, 0, 3))

    expected, again = noise, Painter()
    scheduler.set_timesteps(4)
    for t in scheduler.timesteps[:3]:
        expected = scheduler.step(again(visible_sample(expected, batch), t, batch), t, expected).prev_sample
    torch.testing.assert_close(sample, expected)
    assert timesteps.tolist() == [scheduler.timesteps[3].item()] * 2
    assert snr.tolist() == [pytest.approx(CONDITIONS)] * 2  # nothing of the photo is in there


def test_a_route_may_begin_at_a_photo_under_noise(batch, scheduler):
    noise, painter = torch.randn(batch["image"].shape, generator=torch.Generator().manual_seed(0)), Painter()
    *_, snr = follow_route(painter, scheduler, batch, noise, Route(8, 4, 5))
    scheduler.set_timesteps(8)
    entry = scheduler.timesteps[[4, 4]]
    ((given, timesteps),) = painter.given
    torch.testing.assert_close(given, visible_sample(scheduler.add_noise(batch["image"], noise, entry), batch))
    assert timesteps.tolist() == entry.tolist()
    torch.testing.assert_close(snr, signal_to_noise(scheduler, entry))


def test_the_route_leaves_no_gradients(batch, scheduler):
    layer = torch.nn.Conv2d(3, 3, 1)
    sample, *_ = follow_route(
        lambda seen, t, batch: layer(seen), scheduler, batch, torch.randn_like(batch["image"]), Route(4, 0, 2)
    )
    assert not sample.requires_grad
