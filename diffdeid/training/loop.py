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
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
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
from diffdeid.training.discriminator import PatchDiscriminator, adversarial_loss, discriminator_loss
from diffdeid.training.losses import (
    denoising_loss,
    geometry_loss,
    identity_loss,
    landmark_loss,
    lattice_loss,
    perceptual_loss,
    pixel_weight,
    predict_original,
    reconstruction_loss,
    signal_to_noise,
    style_loss,
    visibility,
)
from diffdeid.training.perceptual import load_perceptual_network
from diffdeid.training.rollout import draw_route, follow_route
from diffdeid.training.validation import denoising_errors, save_grid, visible_sample

SCHEDULER = {"beta_schedule": "linear", "prediction_type": "sample", "timestep_spacing": "trailing"}
VALIDATION_FACES, PREVIEW_FACES = 32, 6
STYLE_DEPTHS = 3  # of the perceptual network, whose Gram matrices the style loss compares
JUDGED = slice(1, 4)  # depths of the perceptual network that the discriminator sees; the first shows hardly more than pixels
WHOLE = slice(None), slice(None)

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


def mean_losses(totals: dict[str, Tensor], steps: float, step: int) -> dict[str, float]:
    """Means of losses that were summed over `steps`, rounded; raises `DiffDeIDError` if one is not finite at step `step`."""
    means = {name: float(f"{value.item() / steps:.4g}") for name, value in totals.items()}
    if not math.isfinite(sum(means.values())):
        raise DiffDeIDError(f"The loss or its gradient is not finite at step {step}. Lower `learning_rate`.")
    return means


def write_log(output: Path, entry: dict[str, Any]):
    """Show an entry, and append it to `log.jsonl` of a run folder."""
    logger.info("%s", entry)
    with open(output / "log.jsonl", "a") as log:
        log.write(json.dumps(entry) + "\n")


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
    judges, head = _build_judges(config, device), None
    if config.landmark_weight > 0:
        head = MorphableModel.from_pretrained(config.model, subfolder="morphable_model").float().to(device)
    sampler = DPMSolverMultistepScheduler.from_pretrained(config.model, subfolder="scheduler") if config.rollout > 0 else None

    # 3. optimiser
    optimizer = torch.optim.AdamW(
        denoiser.parameters(), lr=config.learning_rate, betas=(0.9, 0.99), weight_decay=config.weight_decay, fused=True
    )
    if config.compile:
        # the reconstructor takes a minute to compile and gains little
        for network in filter(None, (denoiser, judges.perceptual, judges.recogniser)):
            network.compile()
    model, optimizer = accelerator.prepare(denoiser, optimizer)
    discriminator_optimizer = None
    if judges.discriminator is not None:
        discriminator_optimizer = torch.optim.AdamW(judges.discriminator.parameters(), betas=(0.5, 0.99), weight_decay=0)
        discriminator, discriminator_optimizer = accelerator.prepare(judges.discriminator, discriminator_optimizer)

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
    generator, shared = torch.Generator(device), torch.Generator()  # one of each process, and one that is the same in all
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
        if head is not None:
            batch["marks"] = place_marks(head, MorphableCoefficients.unpack(batch["coefficients"]), config.resolution)
        noise = torch.randn(batch["image"].shape, device=device, generator=generator)
        shared.manual_seed((config.seed << 40) + state.samples)
        with accelerator.autocast():
            if torch.rand((), generator=shared) < config.rollout:
                route = draw_route(config.rollout_steps, config.rollout_free, shared)
                noisy, timesteps, snr = follow_route(model, sampler, batch, noise, route)
            else:
                timesteps = spread_timesteps(scheduler, config.batch_size, generator, rank, world)
                timesteps = torch.where(batch["exchanged"], hiding_timesteps(scheduler, timesteps), timesteps)
                noisy, snr = scheduler.add_noise(batch["image"], noise, timesteps), signal_to_noise(scheduler, timesteps)
            active = judges if state.samples >= config.perceptual_from_samples else replace(judges, perceptual=None)
            part = draw_part(config, shared)
            losses, evidence = training_losses(model, scheduler, batch, noisy, timesteps, snr, config, active, part)
        rate = state.learning_rate(config)
        losses["gradient_norm"] = descend(accelerator, model, optimizer, losses["loss"], rate, 1.0)
        if evidence is not None:
            discriminator_optimizer.zero_grad()  # the denoiser's loss has left gradients there
            with accelerator.autocast():
                losses["discriminator"] = discriminator_loss(discriminator, *evidence)
            rate *= config.discriminator_rate
            descend(accelerator, discriminator, discriminator_optimizer, losses["discriminator"], rate, 1.0)
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
            write_log(output, entry)
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


def draw_part(config: TrainConfig, generator: torch.Generator) -> tuple[slice, slice]:
    """Draw which rows and columns the perceptual network looks at: a square somewhere in the face, in all crops the same."""
    if config.perceptual_part is None:
        return WHOLE
    border = config.resolution // 8  # hardly any face is there
    room = config.resolution - config.perceptual_part - border
    starts = (border + torch.rand(2, generator=generator) * (room + 1 - border)).long().tolist()
    return tuple(slice(start, start + config.perceptual_part) for start in starts)


def hiding_timesteps(scheduler: DDIMScheduler, timesteps: Tensor) -> Tensor:
    """Timesteps mapped into the last eighth of the schedule, whose noise leaves nothing of a face."""
    steps = scheduler.config.num_train_timesteps
    return steps - steps // 8 + timesteps // 8


@dataclass(frozen=True)
class Judges:
    """The networks that the losses ask about results; those whose loss has no weight are `None`."""

    perceptual: nn.Module | None = None
    recogniser: nn.Module | None = None
    reconstructor: nn.Module | None = None
    mesh: nn.Module | None = None
    discriminator: nn.Module | None = None


class Evidence(NamedTuple):
    """What a discriminator learns from: features of photos and of results, and where they are faces, `(B, 1, S, S)`."""

    real: list[Tensor]
    generated: list[Tensor]
    region: Tensor


def training_losses(
    model: nn.Module,
    scheduler: DDIMScheduler,
    batch: dict[str, Tensor],
    noisy: Tensor,
    timesteps: Tensor,
    snr: Tensor,
    config: TrainConfig,
    judges: Judges = Judges(),
    part: tuple[slice, slice] = WHOLE,
) -> tuple[dict[str, Tensor], Evidence | None]:
    """The parts of the loss on a batch with their weighted sum `loss`, and what a discriminator learns from it.

    Nobody knows how `exchanged` faces should look, so the losses that compare pictures accept every result for them.

    Args:
        noisy: noisy pictures `(B, 3, S, S)`.
        timesteps: `(B,)`.
        snr: `(B,)`, how much of the photo is in them: its signal-to-noise ratio.
        part: the rows and columns that the perceptual network looks at.
    """
    image, weight = batch["image"], pixel_weight(batch, config.opening_weight)
    sample = visible_sample(noisy, batch)
    predicted = predict_original(scheduler, model(sample, timesteps, batch).float(), sample, timesteps)
    composite, known = visible_sample(predicted, batch), ~batch["exchanged"]
    target = torch.where(known[:, None, None, None], image, composite.detach())
    losses = {
        "denoising": denoising_loss(predicted, target, weight, snr),
        "reconstruction": reconstruction_loss(composite, target, weight, snr),
    }
    if config.lattice_weight > 0:
        losses["lattice"] = lattice_loss(predicted, batch["mask"]).mean()
    evidence = None
    if judges.perceptual is not None:
        seen, region = judges.perceptual(composite[..., *part]), weight[..., *part]
        with torch.no_grad():
            wanted = judges.perceptual(image[..., *part])
        counts = known * visibility(snr)
        losses["perceptual"] = (counts * perceptual_loss(seen, wanted, region)).mean()
        if config.style_weight > 0:
            losses["style"] = (counts * style_loss(seen[:STYLE_DEPTHS], wanted[:STYLE_DEPTHS], region)).mean()
        if judges.discriminator is not None:
            losses["adversarial"] = adversarial_loss(judges.discriminator(seen[JUDGED]), region)
            evidence = Evidence(wanted[JUDGED], [one.detach() for one in seen[JUDGED]], region)
    if judges.recogniser is not None:
        losses["identity"] = identity_loss(judges.recogniser, composite, batch)
    if judges.reconstructor is not None:
        losses["geometry"] = geometry_loss(judges.reconstructor, composite, image, batch["exchanged"])
    if judges.mesh is not None:
        losses["landmark"] = landmark_loss(judges.mesh, composite, batch)
    total = sum(getattr(config, f"{name}_weight") * loss for name, loss in losses.items())
    return losses | {"loss": total}, evidence


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


def _build_judges(config: TrainConfig, device: torch.device) -> Judges:
    perceptual = recogniser = reconstructor = mesh = discriminator = None
    if config.perceptual_weight > 0:
        perceptual = load_perceptual_network(config.perceptual_network, config.perceptual_weights)
        perceptual.to(device, memory_format=torch.channels_last)
    if config.adversarial_weight > 0:
        discriminator = PatchDiscriminator(perceptual.channels[JUDGED]).to(device)
    if config.identity_weight > 0:
        recogniser = FaceRecognitionModel.from_pretrained(config.model, subfolder="face_recognition")
        recogniser.float().eval().requires_grad_(False).to(device)
    if config.geometry_weight > 0:
        reconstructor = FaceReconstructorModel.from_pretrained(config.model, subfolder="reconstructor")
        reconstructor.float().eval().requires_grad_(False).to(device)
    if config.landmark_weight > 0:
        mesh = AttentionMesh(Path(config.model, "face_analyser", "attention_mesh.onnx")).to(device)
    return Judges(perceptual, recogniser, reconstructor, mesh, discriminator)


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
