"""Training of the U-Net with its texture encoder.

    diffdeid train diffdeid configs/diffdeid_128.json

On a few CPU cores, one single-threaded process per core is faster than one process with threads:

    OMP_NUM_THREADS=1 torchrun --nproc_per_node 2 -m diffdeid.training.loop configs/diffdeid_128.json

A run folder holds `config.json`, `log.jsonl`, `samples-<samples>.png` and `checkpoint-<samples>/`. Each checkpoint is a diffusers
folder with averaged weights (`unet/`, `texture_encoder/`, `scheduler/`) plus `state/`, from which the same command resumes.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from diffusers import DDIMScheduler
from torch import Tensor, nn
from torch.utils.data import DataLoader

from diffdeid.errors import DiffDeIDError
from diffdeid.models.conditioning import place_marks
from diffdeid.models.face_recognition import FaceRecognitionModel
from diffdeid.models.face_reconstructor import FaceReconstructorModel
from diffdeid.models.morphable_model import MorphableModel
from diffdeid.models.texture_encoder import TextureEncoderModel
from diffdeid.models.unet import DiffDeIDUNet2DModel
from diffdeid.structures import MorphableCoefficients
from diffdeid.training.attention_mesh import AttentionMesh
from diffdeid.training.averaging import AveragedModel
from diffdeid.training.config import TrainConfig
from diffdeid.training.data import EXCHANGED, TURNED_NAME, FaceStore, TrainingFaces, ValidationFaces, network_inputs
from diffdeid.training.losses import (
    denoising_loss,
    geometry_loss,
    identity_loss,
    landmark_loss,
    perceptual_loss,
    pixel_weight,
    predict_original,
    reconstruction_loss,
    signal_to_noise,
)
from diffdeid.training.perceptual import load_perceptual_network
from diffdeid.training.validation import denoising_errors, save_grid, visible_sample

SCHEDULER = {"beta_schedule": "linear", "prediction_type": "sample", "timestep_spacing": "trailing"}
VALIDATION_FACES, PREVIEW_FACES = 32, 6

logger = logging.getLogger(__name__)


class Denoiser(nn.Module):
    """The two trained networks as one module."""

    def __init__(self, unet: DiffDeIDUNet2DModel, texture_encoder: TextureEncoderModel):
        super().__init__()
        self.unet, self.texture_encoder = unet, texture_encoder

    def forward(self, sample: Tensor, timesteps: Tensor, batch: dict[str, Tensor]) -> Tensor:
        texture = self.texture_encoder(batch["masked_texture"])
        conditions = (batch["spatial_conditions"], batch["identity"], batch["coefficients"])
        return self.unet(sample, timesteps, *conditions, texture, batch["video"]).sample


@dataclass
class TrainState:
    """How far a run is, over all its sessions and processes."""

    step: int = 0
    samples: int = 0
    minutes: float = 0.0

    def state_dict(self) -> dict:
        return asdict(self)

    def load_state_dict(self, state: dict):
        vars(self).update(state)

    def progress(self, config: TrainConfig) -> float:
        """How much of the run is done: 0 at the start, 1 at the end."""
        return max(self.samples / config.max_samples, self.minutes / (config.max_minutes or math.inf))

    def learning_rate(self, config: TrainConfig) -> float:
        """Linear warm-up, then half a cosine down to a hundredth."""
        warmup = min(1.0, (self.samples + 1) / (config.warmup_samples + 1))
        decay = 0.01 + 0.99 * (1 + math.cos(math.pi * min(self.progress(config), 1.0))) / 2
        return config.learning_rate * warmup * decay


def descend(
    accelerator: Accelerator, model: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor, rate: float, max_norm: float
) -> Tensor:
    """One step of the optimiser at a learning rate; gives the norm of the gradient before it was clipped."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    accelerator.backward(loss)
    norm = accelerator.clip_grad_norm_(model.parameters(), max_norm)
    optimizer.step()
    optimizer.zero_grad()
    return norm


def train(config: TrainConfig | str | Path, on_checkpoint: Callable[[Path], None] | None = None) -> Path:
    """Train, or resume the run in `config.output`; returns its last checkpoint. `on_checkpoint` is called with each new one.

    The random numbers of a step depend only on the seed and the step, so an interrupted run ends with the weights of an
    uninterrupted one (if `max_samples` and not `max_minutes` ends it, and with the same number of processes).

    Raises:
        DiffDeIDError: the loss is not finite.
        ValueError: `validation_names` leaves no face to train on or none to validate with.
    """
    started = time.monotonic()
    if not isinstance(config, TrainConfig):
        config = TrainConfig.from_file(config)
    accelerator = Accelerator(mixed_precision=config.mixed_precision, cpu=not torch.cuda.is_available())
    device, rank, world = accelerator.device, accelerator.process_index, accelerator.num_processes
    output = Path(config.output)
    if accelerator.is_main_process:
        output.mkdir(parents=True, exist_ok=True)
        config.save(output / "config.json")
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")

    # 1. data
    store = FaceStore(config.data)
    train_names, held_out = store.split(config.validation_names)
    drawn_names = train_names + [name for suffix in (EXCHANGED, TURNED_NAME) for name in store.made(train_names, suffix)]
    faces = TrainingFaces(
        store,
        drawn_names,
        config.set_weights,
        config.open_mouth_weight,
        config.turned_weight,
        config.keep_mouth,
        config.identity_dropout,
        config.still_frames,
        config.seed,
        not config.faces_on_device,
    )
    on_device = store.stack(drawn_names, device) if config.faces_on_device else None
    validation, seen = (
        _fixed_batches(store, names, config, device) if accelerator.is_main_process else [] for names in (held_out, train_names)
    )

    # 2. models
    torch.manual_seed(config.seed)
    scheduler = DDIMScheduler(**SCHEDULER | config.scheduler)
    denoiser = _build_model(config).to(device, memory_format=torch.channels_last)
    averaged = AveragedModel(denoiser, config.ema_decay)
    perceptual = None
    if config.perceptual_weight > 0:
        perceptual = load_perceptual_network(config.perceptual_network, config.perceptual_weights)
        perceptual.to(device, memory_format=torch.channels_last)
    recogniser = None
    if config.identity_weight > 0:
        recogniser = FaceRecognitionModel.from_pretrained(config.model, subfolder="face_recognition")
        recogniser.float().eval().requires_grad_(False).to(device)
    reconstructor = None
    if config.geometry_weight > 0:
        reconstructor = FaceReconstructorModel.from_pretrained(config.model, subfolder="reconstructor")
        reconstructor.float().eval().requires_grad_(False).to(device)
    mesh = None
    if config.landmark_weight > 0:
        mesh = AttentionMesh(Path(config.model, "face_analyser", "attention_mesh.onnx")).to(device)
        head = MorphableModel.from_pretrained(config.model, subfolder="morphable_model").float().to(device)

    # 3. optimiser
    optimizer = torch.optim.AdamW(
        denoiser.parameters(), lr=config.learning_rate, betas=(0.9, 0.99), weight_decay=config.weight_decay, fused=True
    )
    if config.compile:
        for network in filter(None, (denoiser, perceptual, recogniser)):  # the reconstructor takes a minute and gains little
            network.compile()
    model, optimizer = accelerator.prepare(denoiser, optimizer)

    # 4. resume
    state = TrainState()
    accelerator.register_for_checkpointing(state, averaged)
    if checkpoints := sorted(output.glob("checkpoint-*")):
        accelerator.load_state(checkpoints[-1] / "state")
        logger.info("going on with %s", checkpoints[-1])

    # 5. loop
    loader = iter(
        DataLoader(
            faces,
            batch_size=config.batch_size,
            sampler=itertools.count(state.samples + rank, world),
            num_workers=config.num_workers,
            pin_memory=device.type == "cuda",
        )
    )
    generator = torch.Generator(device)
    model.train()
    totals: dict[str, Tensor] = {}
    logged = time.monotonic()
    minutes_before, logged_step = state.minutes, state.step
    next_preview, next_checkpoint = 0.0, state.minutes + config.checkpoint_minutes
    while state.progress(config) < 1:
        # 5a. one step
        generator.manual_seed((config.seed << 40) + state.samples + rank)
        drawn = {name: value.to(device, non_blocking=True) for name, value in next(loader).items()}
        if on_device is not None:
            drawn |= {name: values[drawn["index"]] for name, values in on_device.items()}
        batch = network_inputs(drawn, config.resolution, config.hidden_inputs)
        if mesh is not None:
            batch["marks"] = place_marks(head, MorphableCoefficients.unpack(batch["coefficients"]), config.resolution)
        timesteps = spread_timesteps(scheduler, config.batch_size, generator, rank, world)
        timesteps = torch.where(batch["exchanged"], hiding_timesteps(scheduler, timesteps), timesteps)
        noise = torch.randn(batch["image"].shape, device=device, generator=generator)
        active = perceptual if state.samples >= config.perceptual_from_samples else None
        with accelerator.autocast():
            judges = active, recogniser, reconstructor, mesh
            losses = training_losses(model, scheduler, batch, timesteps, noise, config, *judges)
        rate = state.learning_rate(config)
        losses["gradient_norm"] = descend(accelerator, model, optimizer, losses["loss"], rate, 1.0)
        averaged.update(denoiser)

        state.step += 1
        state.samples += config.batch_size * world
        state.minutes = _shared(minutes_before + (time.monotonic() - started) / 60, accelerator)
        totals = {name: totals.get(name, 0) + value.detach() for name, value in losses.items()}
        if state.step % config.log_steps and state.progress(config) < 1:
            continue

        # 5b. every few steps: log, preview, checkpoint
        steps, now = state.step - logged_step, time.monotonic()
        entry = {"step": state.step, "samples": state.samples, "minutes": round(state.minutes, 2)}
        entry |= {name: float(f"{value.item() / steps:.4g}") for name, value in totals.items()}
        entry |= {"learning_rate": float(f"{state.learning_rate(config):.4g}")}
        entry |= {"samples_per_second": round(steps * config.batch_size * world / (now - logged), 1)}
        if not math.isfinite(entry["loss"] + entry["gradient_norm"]):
            raise DiffDeIDError(f"The loss or its gradient is not finite at step {state.step}. Lower `learning_rate`.")
        is_last = state.progress(config) >= 1
        if is_last or state.minutes >= next_preview:
            if accelerator.is_main_process:
                with accelerator.autocast():
                    entry["validation"] = denoising_errors(averaged.model, scheduler, validation)
                    entry["seen"] = denoising_errors(averaged.model, scheduler, seen)
                    preview = {name: value[:PREVIEW_FACES] for name, value in validation[0].items()}
                    save_grid(output / f"samples-{state.samples:09d}.png", averaged.model, scheduler, preview)
            next_preview = state.minutes + config.preview_minutes
        if accelerator.is_main_process:
            with open(output / "log.jsonl", "a") as log:
                log.write(json.dumps(entry) + "\n")
            logger.info("%s", entry)
        if is_last or state.minutes >= next_checkpoint:
            networks = {"unet": averaged.model.unet, "texture_encoder": averaged.model.texture_encoder}
            save_checkpoint(output, accelerator, networks | {"scheduler": scheduler}, state.samples, config.keep_checkpoints)
            if on_checkpoint is not None and accelerator.is_main_process:
                on_checkpoint(max(output.glob("checkpoint-*")))
            next_checkpoint = state.minutes + config.checkpoint_minutes
        totals, logged_step, logged = {}, state.step, time.monotonic()

    accelerator.end_training()
    return max(output.glob("checkpoint-*"))


def spread_timesteps(scheduler: DDIMScheduler, count: int, generator: torch.Generator, rank: int, world: int) -> Tensor:
    """Random timesteps `(count,)`, one from each of `count * world` equal parts of the schedule over all processes."""
    offsets = torch.rand(count, device=generator.device, generator=generator)
    parts = torch.arange(count, device=generator.device) * world + rank
    return ((parts + offsets) / (count * world) * scheduler.config.num_train_timesteps).long()


def hiding_timesteps(scheduler: DDIMScheduler, timesteps: Tensor) -> Tensor:
    """Timesteps mapped into the last eighth of the schedule, whose noise leaves nothing of a face."""
    steps = scheduler.config.num_train_timesteps
    return steps - steps // 8 + timesteps // 8


def training_losses(
    model: nn.Module,
    scheduler: DDIMScheduler,
    batch: dict[str, Tensor],
    timesteps: Tensor,
    noise: Tensor,
    config: TrainConfig,
    perceptual: nn.Module | None = None,
    recogniser: nn.Module | None = None,
    reconstructor: nn.Module | None = None,
    mesh: nn.Module | None = None,
) -> dict[str, Tensor]:
    """The parts of the loss on a batch, and their weighted sum `loss`.

    Nobody knows how `exchanged` faces should look, so the losses that compare pictures accept every result for them.
    """
    image, weight = batch["image"], pixel_weight(batch, config.eye_weight)
    sample = visible_sample(scheduler.add_noise(image, noise, timesteps), batch)
    predicted = predict_original(scheduler, model(sample, timesteps, batch).float(), sample, timesteps)
    composite, snr = visible_sample(predicted, batch), signal_to_noise(scheduler, timesteps)
    target = torch.where(batch["exchanged"][:, None, None, None], composite.detach(), image)
    losses = {
        "denoising": denoising_loss(predicted, target, weight, snr),
        "reconstruction": reconstruction_loss(composite, target, weight, snr),
    }
    total = config.denoising_weight * losses["denoising"] + config.reconstruction_weight * losses["reconstruction"]
    if perceptual is not None:
        losses["perceptual"] = perceptual_loss(perceptual, composite, target, weight, snr)
        total = total + config.perceptual_weight * losses["perceptual"]
    if recogniser is not None:
        losses["identity"] = identity_loss(recogniser, composite, batch)
        total = total + config.identity_weight * losses["identity"]
    if reconstructor is not None:
        losses["geometry"] = geometry_loss(reconstructor, composite, image)
        total = total + config.geometry_weight * losses["geometry"]
    if mesh is not None:
        losses["landmarks"] = landmark_loss(mesh, composite, batch)
        total = total + config.landmark_weight * losses["landmarks"]
    return losses | {"loss": total}


def save_checkpoint(output: Path, accelerator: Accelerator, parts: dict[str, Any], samples: int, keep: int):
    """Write a checkpoint under a temporary name, rename it, and remove all but the newest `keep`.

    `parts` have `save_pretrained`; their names are subfolders, and "." is the checkpoint itself. The state to resume from is in
    `state/`.
    """
    folder, unfinished = output / f"checkpoint-{samples:09d}", output / "unfinished-checkpoint"
    accelerator.save_state(unfinished / "state")
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        for name, part in parts.items():
            part.save_pretrained(unfinished / name)
        shutil.rmtree(folder, ignore_errors=True)
        unfinished.rename(folder)
        for old in sorted(output.glob("checkpoint-*"))[:-keep]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()


def _build_model(config: TrainConfig) -> Denoiser:
    if config.init_from is None:
        return Denoiser(DiffDeIDUNet2DModel(**config.unet), TextureEncoderModel(**config.texture_encoder))
    source = max(Path(config.init_from).glob("checkpoint-*"), default=config.init_from)
    unet = DiffDeIDUNet2DModel.from_pretrained(source, subfolder="unet")
    return Denoiser(unet, TextureEncoderModel.from_pretrained(source, subfolder="texture_encoder"))


def _fixed_batches(store: FaceStore, names: list[str], config: TrainConfig, device: torch.device) -> list[dict[str, Tensor]]:
    """Evenly spaced faces as inputs of the networks."""
    if not names:
        raise ValueError("`validation_names` leaves no face to train on or none to validate with.")
    spread = names[:: math.ceil(len(names) / VALIDATION_FACES)]
    loader = DataLoader(ValidationFaces(store, spread), batch_size=16)
    batches = ({name: value.to(device) for name, value in batch.items()} for batch in loader)
    return [network_inputs(batch, config.resolution, config.hidden_inputs) for batch in batches]


def _shared(minutes: float, accelerator: Accelerator) -> float:
    """The minutes by the main process's clock, so that all processes agree on what is due."""
    return broadcast_object_list([minutes])[0] if accelerator.num_processes > 1 else minutes


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    train(sys.argv[1])
