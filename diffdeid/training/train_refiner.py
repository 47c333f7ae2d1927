"""Training of the refiner (`RefinerModel`), which gives large faces their detail.

    diffdeid train refiner configs/refiner.json

It learns from pairs of photographed faces and the same faces as the denoiser paints them (`refiner_data.py`), by what VGG-16 sees
in both, and by a discriminator on the same features, as Real-ESRGAN does. It starts from some of the layers of that network. A
run folder holds `config.json`, `log.jsonl`, `samples-<samples>.png` (softened, refined, photographed) and
`checkpoint-<samples>/`. Each checkpoint is a folder for `RefinerModel.from_pretrained` (averaged weights) plus `state/`, from
which the same command resumes.
"""

from __future__ import annotations

import itertools
import logging
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader

from diffdeid.geometry.pixels import on_host, to_bytes
from diffdeid.models.refiner import SCALE, RefinerModel
from diffdeid.stages.refine import enlarged
from diffdeid.training.averaging import AveragedModel
from diffdeid.training.config import RefinerTrainConfig
from diffdeid.training.discriminator import PatchDiscriminator, adversarial_loss, discriminator_loss
from diffdeid.training.loop import JUDGED, STYLE_DEPTHS, TrainState, descend, mean_losses, save_checkpoint, write_log
from diffdeid.training.losses import PATCH, lattice_loss, masked_mean, perceptual_loss, style_loss
from diffdeid.training.perceptual import load_perceptual_network
from diffdeid.training.refiner_data import RefinerPairs, read_pair, split_pairs

VALIDATION_PAIRS, PREVIEW_PAIRS = 16, 4
MIDDLE = slice(80, 208)  # pixels of a pair, across and down, that are measured: most of the face
FAINT = 0.02  # of the weights of the last layer of another network, to start from
OCTAVES = 3  # of sharpness that are logged
LATTICES = 2 * SCALE, SCALE * PATCH  # pixels: the cells of the refiner, and the patches of the denoiser

logger = logging.getLogger(__name__)


def laid_over(refined: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """The target with the refined face in the erased region, both `(B, 3, 2 S, 2 S)`; `mask` `(B, 1, 2 S, 2 S)`."""
    return target + mask * (refined - target)


def train(config: RefinerTrainConfig | str | Path) -> Path:
    """Train, or resume the run in `config.output`; returns its last checkpoint."""
    if not isinstance(config, RefinerTrainConfig):
        config = RefinerTrainConfig.from_file(config)
    accelerator = Accelerator(mixed_precision=config.mixed_precision, cpu=not torch.cuda.is_available())
    device, output = accelerator.device, Path(config.output)
    output.mkdir(parents=True, exist_ok=True)
    config.save(output / "config.json")

    # 1. data
    names, held_out = split_pairs(config.data, config.validation_names)
    spread = held_out[:: math.ceil(len(held_out) / VALIDATION_PAIRS)]
    validation = [read_pair(Path(config.data, f"{name}.safetensors")) for name in spread]

    # 2. networks
    torch.manual_seed(config.seed)
    network = build_network(config).to(device, memory_format=torch.channels_last)
    averaged = AveragedModel(network, config.ema_decay)
    features = load_perceptual_network("vgg16", config.perceptual_weights).to(device, memory_format=torch.channels_last)
    judge = PatchDiscriminator(features.channels[JUDGED]).to(device)
    optimizers = [
        torch.optim.AdamW(part.parameters(), lr=config.learning_rate, betas=(0.5, 0.99), weight_decay=config.weight_decay)
        for part in (network, judge)
    ]
    model, judge, *optimizers = accelerator.prepare(network, judge, *optimizers)
    state = TrainState()
    accelerator.register_for_checkpointing(state, averaged)
    if checkpoint := max(output.glob("checkpoint-*"), default=None):
        accelerator.load_state(checkpoint / "state")
        logger.info("going on with %s", checkpoint)

    # 3. loop
    pairs = RefinerPairs(config.data, names, config.patch, config.seed)
    stream = iter(DataLoader(pairs, config.batch_size, sampler=itertools.count(state.samples)))
    clock = time.monotonic() - 60 * state.minutes
    next_log, next_checkpoint = state.minutes + config.log_minutes, state.minutes + config.checkpoint_minutes
    totals, steps = {}, 0
    while state.progress(config) < 1:
        # 3a. one step: the network, then the discriminator, by the same features
        batch = {name: value.to(device) for name, value in next(stream).items()}
        mask = enlarged(batch["mask"])
        rate = state.learning_rate(config)
        with accelerator.autocast():
            composite = laid_over(model(batch["face"], batch["render"], batch["mask"]).sample, batch["target"], mask)
            seen = features(composite)
            with torch.no_grad():
                wanted = features(batch["target"])
            weight = config.adversarial_weight if state.samples >= config.adversarial_from_samples else 0
            losses = refining_losses(composite, batch["target"], seen, wanted, mask, config)
            losses["adversarial"] = adversarial_loss(judge(seen[JUDGED]), mask)
            losses["loss"] = losses["loss"] + weight * losses["adversarial"]
        losses["gradient_norm"] = descend(accelerator, model, optimizers[0], losses["loss"], rate, config.max_gradient_norm)
        averaged.update(network)
        optimizers[1].zero_grad()  # the network's loss has left gradients there
        with accelerator.autocast():
            made = [one.detach() for one in seen[JUDGED]]
            losses["discriminator"] = discriminator_loss(judge, wanted[JUDGED], made, mask)
        descend(accelerator, judge, optimizers[1], losses["discriminator"], rate, config.max_gradient_norm)

        state.step += 1
        state.samples += config.batch_size
        state.minutes = (time.monotonic() - clock) / 60
        totals, steps = {name: totals.get(name, 0) + value.detach() for name, value in losses.items()}, steps + 1
        is_last = state.progress(config) >= 1

        # 3b. every few minutes: log, preview, checkpoint
        if is_last or state.minutes >= next_log:
            next_log = state.minutes + config.log_minutes
            entry = mean_losses(totals, steps, state.step)
            entry = {"samples": state.samples, "minutes": round(state.minutes, 2)} | entry
            entry["held_out"] = measure(averaged.model, features, validation)
            save_samples(output / f"samples-{state.samples:09d}.png", averaged.model, validation[:PREVIEW_PAIRS])
            write_log(output, entry)
            totals, steps = {}, 0
        if is_last or state.minutes >= next_checkpoint:
            save_checkpoint(output, accelerator, {".": averaged.model}, state.samples, config.keep_checkpoints)
            next_checkpoint = state.minutes + config.checkpoint_minutes

    accelerator.end_training()
    return max(output.glob("checkpoint-*"))


def refining_losses(
    composite: Tensor, target: Tensor, seen: list[Tensor], wanted: list[Tensor], mask: Tensor, config: RefinerTrainConfig
) -> dict[str, Tensor]:
    """The parts of the loss but the adversarial one, and their weighted sum `loss`.

    Args:
        composite, target: `(B, 3, 2 S, 2 S)` in [-1, 1].
        seen, wanted: VGG-16's features of both.
        mask: `(B, 1, 2 S, 2 S)`.
    """
    half = F.avg_pool2d(composite - target, 2), F.avg_pool2d(mask, 2)  # finer things need not lie where they lay
    losses = {
        "reconstruction": masked_mean(half[0].abs(), half[1]).mean(),
        "perceptual": perceptual_loss(seen, wanted, mask).mean(),
        "lattice": sum(lattice_loss(composite, mask, period).mean() for period in LATTICES),
        "style": style_loss(seen[:STYLE_DEPTHS], wanted[:STYLE_DEPTHS], mask).mean(),
    }
    return losses | {"loss": sum(getattr(config, f"{name}_weight") * loss for name, loss in losses.items())}


@torch.no_grad()
def measure(model: RefinerModel, features: nn.Module, pairs: list[dict[str, Tensor]]) -> dict[str, float | list[float]]:
    """The `perceptual` and the `style` distance of refined faces from photographed ones, before and after, and their `sharpness`.

    Sharpness is the mean gradient in the face in parts of that of the photo, of pictures shrunk to 1, 1/2 and 1/4.
    """
    rows = []
    for pair in pairs:
        face, render, mask = (pair[name][None, :, MIDDLE, MIDDLE].to(model.device) for name in ("face", "render", "mask"))
        doubled = slice(SCALE * MIDDLE.start, SCALE * MIDDLE.stop)
        target = pair["target"][None, :, doubled, doubled].to(model.device)
        region, wanted = enlarged(mask), features(target)
        before = F.interpolate(face, scale_factor=SCALE, mode="bicubic")
        for picture in (before, model(face, render, mask).sample):
            laid = laid_over(picture, target, region)
            seen = features(laid)
            style = style_loss(seen[:STYLE_DEPTHS], wanted[:STYLE_DEPTHS], region)
            gradients = [a / b for a, b in zip(_gradients(laid, region), _gradients(target, region), strict=True)]
            rows.append([perceptual_loss(seen, wanted, region).item(), style.item(), *gradients])
    means = np.array(rows).reshape(len(pairs), 2, -1).mean(0).T.round(4).tolist()
    return {"perceptual": means[0], "style": means[1], "sharpness": means[2:]}


def _gradients(picture: Tensor, mask: Tensor) -> list[float]:
    """The mean gradient of the light of a picture `(1, 3, S, S)` under a mask, at each octave."""
    light, result = picture.mean(1, keepdim=True), []
    for _ in range(OCTAVES):
        across, down = light.diff(dim=3)[:, :, 1:], light.diff(dim=2)[..., 1:]
        result.append(masked_mean((across.square() + down.square()).sqrt(), mask[..., 1:, 1:]).item())
        light, mask = F.avg_pool2d(light, 2), F.avg_pool2d(mask, 2)
    return result


@torch.no_grad()
def save_samples(path: Path, model: RefinerModel, pairs: list[dict[str, Tensor]]):
    """A picture with a row a pair: softened, refined, photographed."""
    rows = []
    for pair in pairs:
        face, render, mask, target = (pair[name][None].to(model.device) for name in ("face", "render", "mask", "target"))
        region = enlarged(mask)
        before = F.interpolate(face, scale_factor=SCALE, mode="bicubic")
        shown = [laid_over(one, target, region) for one in (before, model(face, render, mask).sample, target)]
        rows.append(torch.cat(shown, dim=3))
    Image.fromarray(on_host(to_bytes(torch.cat(rows, dim=2)))[0]).save(path)


def build_network(config: RefinerTrainConfig) -> RefinerModel:
    """A new network, one of SRVGG's layers, or the network of another run."""
    if config.init_from is None:
        return RefinerModel(**config.network)
    if not Path(config.init_from).exists():
        raise FileNotFoundError(f"`init_from` is `{config.init_from}`, which does not exist.")
    if Path(config.init_from).is_file():
        return from_srvgg(load_file(config.init_from), RefinerModel(**config.network))
    source = max(Path(config.init_from).glob("checkpoint-*"), default=config.init_from)
    return RefinerModel.from_pretrained(source, torch_dtype=torch.float32)


@torch.no_grad()
def from_srvgg(state: dict[str, Tensor], network: RefinerModel) -> RefinerModel:
    """Start a network from an SRVGG ×4 (tensors `body.<layer>.…`, colours 0…1): its first and last layers, and some in between.

    At the start, a cell of the network's input counts by its mean colour, neither renders nor masks count, and little is added:
    without the layers in between, it would be noise.
    """
    count = len({key.split(".")[1] for key in state}) // 2  # convolutions with a PReLU, all but the last
    between = torch.linspace(1, count - 1, network.config.num_layers).round().long().tolist()
    old = [0, 1] + [layer for number in between for layer in (2 * number, 2 * number + 1)] + [2 * count]
    for new, layer in enumerate(old):
        for name, parameter in network.body[new].named_parameters():
            value = state[f"body.{layer}.{name}"].float()
            if new == 0 and name == "weight":
                parameter.zero_()
                parameter[:, :12] = value.repeat_interleave(4, dim=1) / 8  # the mean of a cell, and half of [-1, 1]
            elif layer == 2 * count:
                parameter.copy_(FAINT * value.unflatten(0, (3, -1)).mean(0))  # one light for three colours
            elif new == 0:
                parameter.copy_(value + state["body.0.weight"].float().sum((1, 2, 3)) / 2)
            else:
                parameter.copy_(value)
    return network
