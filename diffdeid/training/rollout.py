"""Noisy pictures as the sampler meets them, for training at its few steps.

Noise added to a photo leaves a sharp photo beneath. The sampler's own pictures are different: what lies beneath them is what the
network painted at the steps before, and that is blurred where noise hid everything. A network that never met such pictures takes
the blur for the photo's. So here the sampler itself takes the first steps, from a photo under noise, and the network is trained
on what it meets then, as in adversarial diffusion distillation (Sauer et al. 2023, arXiv:2311.17042), without a teacher.
"""

from __future__ import annotations

from copy import copy
from typing import NamedTuple

import torch
from diffusers import SchedulerMixin
from torch import Tensor, nn

from diffdeid.training.losses import signal_to_noise
from diffdeid.training.validation import visible_sample

CONDITIONS = 0.1  # signal-to-noise ratio of a photo that tells as much of it as the conditions do


class Route(NamedTuple):
    """Which steps of the sampler are taken: a photo under noise enters at step `start`, and step `stop` is trained.

    Attributes:
        steps: of the whole sampling.
        start: 0 is pure noise.
        stop: `start` is an ordinary denoising step.
    """

    steps: int
    start: int
    stop: int


def draw_route(numbers_of_steps: list[int], free: float, generator: torch.Generator) -> Route:
    """Draw a route that ends at any step but the first.

    Args:
        numbers_of_steps: of samplings, one of which is chosen.
        free: share of routes that begin with pure noise; the others begin at most two steps before they stop.
        generator: of the random numbers.
    """
    which, where, how, back = torch.rand(4, generator=generator, device=generator.device).tolist()
    steps = numbers_of_steps[int(which * len(numbers_of_steps))]
    stop = 1 + int(where * (steps - 1))
    return Route(steps, 0 if how < free else max(stop - 1 - int(2 * back), 0), stop)


@torch.no_grad()
def follow_route(
    model: nn.Module, scheduler: SchedulerMixin, batch: dict[str, Tensor], noise: Tensor, route: Route
) -> tuple[Tensor, Tensor, Tensor]:
    """Take the sampler's steps up to the one that is trained.

    Args:
        model: the denoiser.
        scheduler: of the pipeline, with which results are made.
        batch: from `network_inputs`.
        noise: `(B, 3, S, S)`.
        route: the steps.

    Returns:
        What the network meets there, `(B, 3, S, S)`; the time steps `(B,)`; the signal-to-noise ratio `(B,)` at which the photo
        entered, which tells how much of it is in there; at least `CONDITIONS`.
    """
    scheduler, count = copy(scheduler), len(noise)
    scheduler.set_timesteps(route.steps, device=noise.device)
    scheduler.set_begin_index(route.start)
    entry = scheduler.timesteps[route.start].expand(count)
    sample = noise if route.start == 0 else scheduler.add_noise(batch["image"], noise, entry)
    for t in scheduler.timesteps[route.start : route.stop]:
        seen = visible_sample(sample, batch)
        sample = scheduler.step(model(seen, t.expand(count), batch).float(), t, sample).prev_sample
    entered = signal_to_noise(scheduler, entry) * (route.start > 0)
    return sample, scheduler.timesteps[route.stop].expand(count), entered.clamp(min=CONDITIONS)
