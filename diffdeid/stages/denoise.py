"""Stage 5: noise -> faces (paper §3.3)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from diffusers import SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from diffdeid.models.unet import DiffDeIDUNet2DModel
from diffdeid.stages.condition import Conditions
from diffdeid.structures import FaceBatch


@dataclass(frozen=True)
class Callbacks:
    """Functions that are called while faces are painted.

    Attributes:
        progress: wraps the time steps, for progress bars.
        on_step: may change the latents after every step: number of the step, time step, latents -> latents. An error in it ends
            the work, whereas other errors only cover the face.
        guidance_scale: called before every step; its value replaces the option of that name.
    """

    progress: Callable[[Iterable], Iterable] = iter
    on_step: Callable[[int, Tensor, Tensor], Tensor] | None = None
    guidance_scale: Callable[[], float] | None = None


NO_CALLBACKS = Callbacks()


class CallbackError(BaseException):
    """Carries an error of a callback past the handlers that would cover a face because of it."""


def prepare_latents(
    unet: DiffDeIDUNet2DModel, scheduler: SchedulerMixin, size: int, generators: Sequence[torch.Generator], device: torch.device
) -> Tensor:
    """Pure noise `(B, 3, S, S)`, one generator for each face, always in float32; it holds nothing of the source."""
    shape = (1, unet.config.in_channels, size, size)
    noise = [randn_tensor(shape, generator=one, device=device, dtype=torch.float32) for one in generators]
    return torch.cat(noise) * scheduler.init_noise_sigma


def denoise(
    unet: DiffDeIDUNet2DModel,
    scheduler: SchedulerMixin,
    latents: Tensor,
    batch: FaceBatch,
    conditions: Conditions,
    guidance_scale: float,
    callbacks: Callbacks = NO_CALLBACKS,
) -> Tensor:
    """Noise -> faces `(B, 3, S, S)`; outside the masks the network sees the picture.

    The network works in its own precision; its predictions are summed up in that of the latents.

    Args:
        scheduler: with its time steps set.
        latents: `(B, 3, S, S)` from `prepare_latents`.
        batch: the source faces, whose images and masks are used.
        conditions: of the new faces.
        guidance_scale: 1 is off; larger values exaggerate the identity (classifier-free guidance) at twice the cost.
        callbacks: functions to call meanwhile.
    """
    conditional = [x.to(unet.dtype) for x in (conditions.maps, conditions.embedding, conditions.coefficients)]
    unconditional = [conditional[0], torch.zeros_like(conditional[1]), conditional[2]]
    for step, t in enumerate(callbacks.progress(scheduler.timesteps)):
        # 1. predict, with and without the identity when guided
        seen = batch.masks * scheduler.scale_model_input(latents, t) + (1 - batch.masks) * batch.images
        seen = seen.to(unet.dtype)
        prediction = unet(seen, t, *conditional, conditions.texture).sample.to(latents.dtype)
        scale = guidance_scale if callbacks.guidance_scale is None else callbacks.guidance_scale()
        if scale != 1:
            uncond = unet(seen, t, *unconditional, conditions.texture).sample
            prediction = uncond + scale * (prediction - uncond)

        # 2. x_t -> x_t-1
        latents = scheduler.step(prediction, t, latents).prev_sample
        if callbacks.on_step is not None:
            try:
                latents = callbacks.on_step(step, t, latents)
            except Exception as error:
                raise CallbackError from error
    return latents
