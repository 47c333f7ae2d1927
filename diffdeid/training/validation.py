"""Observing a model while it trains: errors at fixed noise levels, and a grid of samples."""

from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler
from PIL import Image
from torch import Tensor, nn

from diffdeid.geometry.pixels import on_host, to_bytes
from diffdeid.training.losses import masked_mean, predict_original, signal_to_noise

LOG_SNRS = (-6.0, -3.0, -1.0, 1.0)


def visible_sample(noisy: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """The input of the network: noise inside the mask, the picture outside."""
    return batch["mask"] * noisy + (1 - batch["mask"]) * batch["image"]


@torch.no_grad()
def denoising_errors(model: nn.Module, scheduler: DDIMScheduler, batches: list[dict[str, Tensor]]) -> dict[str, float]:
    """Mean squared error of x̂0 inside the mask at each of `LOG_SNRS`, with the same noise every time."""
    levels = signal_to_noise(scheduler, torch.arange(scheduler.config.num_train_timesteps)).log()
    errors = {}
    for log_snr in LOG_SNRS:
        timestep, per_face = (levels - log_snr).abs().argmin(), []
        for index, batch in enumerate(batches):
            noise = torch.randn(batch["image"].shape, generator=torch.Generator().manual_seed(index)).to(batch["image"].device)
            timesteps = timestep.repeat(len(noise)).to(noise.device)
            sample = visible_sample(scheduler.add_noise(batch["image"], noise, timesteps), batch)
            predicted = predict_original(scheduler, model(sample, timesteps, batch), sample, timesteps)
            per_face.append(masked_mean((predicted - batch["image"]) ** 2, batch["mask"]))
        errors[f"{log_snr:g}"] = round(torch.cat(per_face).mean().item(), 5)
    return errors


@torch.no_grad()
def sample_faces(model: nn.Module, scheduler: DDIMScheduler, batch: dict[str, Tensor], num_inference_steps: int = 8) -> Tensor:
    """Fill in the erased faces by DDIM from fixed noise, `(B, 3, H, W)` in [-1, 1]."""
    scheduler = DDIMScheduler.from_config(scheduler.config)
    scheduler.set_timesteps(num_inference_steps, device=batch["image"].device)
    noisy = torch.randn(batch["image"].shape, generator=torch.Generator().manual_seed(0)).to(batch["image"].device)
    for timestep in scheduler.timesteps:
        sample = visible_sample(noisy, batch)
        noisy = scheduler.step(model(sample, timestep, batch), timestep, sample).prev_sample
    return visible_sample(noisy, batch)


def save_grid(path: Path, model: nn.Module, scheduler: DDIMScheduler, batch: dict[str, Tensor]):
    """Write a picture with a row per face: real, masked, render, own identity, its neighbour's identity, no identity."""
    identities = (batch["identity"], batch["identity"].roll(1, dims=0), torch.zeros_like(batch["identity"]))
    columns = [batch["image"], batch["masked_texture"][:, :3], batch["spatial_conditions"][:, 1:4]]
    columns += [sample_faces(model, scheduler, batch | {"identity": identity}) for identity in identities]
    Image.fromarray(np.concatenate(on_host(to_bytes(torch.cat(columns, dim=3))))).save(path)
