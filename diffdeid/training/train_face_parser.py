"""Training of the face parser (`FaceParserModel`), which tells a face from things in front of it.

    OMP_NUM_THREADS=1 diffdeid train face-parser configs/face_parser.json

It learns from labelled crops, over which hands, masks, things, cloth, caps and hair are drawn (`face_parser_data.py`). A pixel
of skin that is taken for something in front of it would stay in the result. So such errors cost extra, the worst of them most,
and the measure is how much is found in front at a threshold that keeps hardly any skin. The first blocks of the encoder keep
their ImageNet weights. A run folder holds `config.json`, `log.jsonl`, the landmarks of the crops, and `checkpoint-<samples>/`.
Each checkpoint is a folder for `FaceParserModel.from_pretrained` (averaged weights) plus `state/`, from which the same command
resumes.
"""

from __future__ import annotations

import itertools
import logging
import time
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader

from diffdeid.geometry.align import ffhq_matrix
from diffdeid.geometry.mask import erased
from diffdeid.geometry.pixels import from_bytes
from diffdeid.models.context_encoder import ContextEncoderModel
from diffdeid.models.face_analyser import FaceAnalyserModel
from diffdeid.models.face_parser import FACE, FRONT, FaceParserModel
from diffdeid.training.averaging import AveragedModel
from diffdeid.training.config import FaceParserTrainConfig
from diffdeid.training.face_parser_data import (
    CROP_FACTOR,
    KINDS,
    UNKNOWN,
    LabelledFace,
    OccludedFaces,
    find_landmarks,
    is_held_out,
    photograph,
    place,
    read_faces,
)
from diffdeid.training.loop import TrainState, descend, mean_losses, save_checkpoint, write_log

FROZEN_BLOCKS = 3  # of the encoder; the gradients of its finest layers would take a third of the time
KEPT_SKIN = 1e-3  # share of the skin in the erased region that may be taken for something in front
BORDER = 2  # pixels; skin that is this near to something else does not count, because labels are not finer
WORST = 0.02  # share of the skin in a batch whose errors count most
HARD_WEIGHT = 0.1  # of these errors

logger = logging.getLogger(__name__)


def parsing_loss(logits: Tensor, classes: Tensor, erased_region: Tensor, config: FaceParserTrainConfig) -> dict[str, Tensor]:
    """The parts of the loss and their weighted sum `loss`.

    Args:
        logits: `(B, 4, S, S)`.
        classes: `(B, S, S)` int64, `UNKNOWN` where the class is not known.
        erased_region: `(B, S, S)` float, 1 where the face is to be erased.
    """
    log_probability = logits.log_softmax(1)
    known = (classes != UNKNOWN).float()
    weight = known * (1 + (config.erased_weight - 1) * erased_region)
    chosen = log_probability.gather(1, classes.clamp(max=FRONT)[:, None])[:, 0]
    entropy = -(weight * chosen).sum() / weight.sum()
    inner = inner_skin(classes, 1) & erased_region.bool()
    kept = F.softplus(logits[:, FRONT] - logits[:, :FRONT].logsumexp(1))[inner]  # -log of the probability of anything else
    worst = kept.topk(max(1, int(WORST * len(kept)))).values if len(kept) else kept
    losses = {"entropy": entropy, "skin": kept.sum() / max(1, len(kept)), "worst_skin": worst.sum() / max(1, len(worst))}
    return losses | {"loss": entropy + config.skin_weight * losses["skin"] + HARD_WEIGHT * losses["worst_skin"]}


def inner_skin(classes: Tensor, border: int = BORDER) -> Tensor:
    """Skin farther than `border` pixels from pixels of another known class, `(B, S, S)` bool."""
    other = ((classes != FACE) & (classes != UNKNOWN)).float()[:, None]
    near = F.max_pool2d(other, 2 * border + 1, stride=1, padding=border)[:, 0]
    return (classes == FACE) & (near == 0)


@dataclass
class HeldOut:
    """Held-out crops of one kind: `images` `(n, S, S, 3)` uint8; `(n, S, S)`: `classes`, `erased` and the `wanted` pixels."""

    images: Tensor
    classes: Tensor
    erased: Tensor
    wanted: Tensor


def held_out_crops(faces: list[LabelledFace], hands: np.ndarray, size: int, seed: int) -> dict[str, HeldOut]:
    """The crops of held-out faces: as they are ("labelled hair"), and occluded by each of `KINDS`."""
    drawn = OccludedFaces(faces, hands, size, seed)
    groups = {}
    for kind in ("none", *KINDS):
        rows = []
        for number, face in enumerate(faces if kind in ("none", "hand") else faces[::3]):
            rng = np.random.default_rng((seed, number, len(groups)))
            scene = place(face, ffhq_matrix(face.landmarks, size, CROP_FACTOR), size)
            wanted = scene.classes == FRONT if kind == "none" else drawn.occlude(scene, kind, rng)
            image = scene.image * 255 if kind == "none" else photograph(scene.image, rng)
            rows.append((image.astype(np.uint8), scene.classes, erased(scene.landmarks, size) > 0, wanted))
        images, classes, regions, wanted = (torch.from_numpy(np.stack(part)) for part in zip(*rows, strict=True))
        groups["labelled hair" if kind == "none" else kind] = HeldOut(images, classes, regions, wanted)
    return groups


@torch.no_grad()
def measure(model: FaceParserModel, groups: dict[str, HeldOut]) -> dict[str, float]:
    """Measure how much is found in front at the threshold that keeps `KEPT_SKIN`.

    Returns:
        `threshold`; `kept_at_borders`, the share of all skin that is kept at it, also next to something else; and for each
        group, the share of the wanted pixels in the erased region that is found.
    """
    found = {
        name: torch.cat([model.front(from_bytes(part))[:, 0] for part in group.images.split(8)]) for name, group in groups.items()
    }
    inner = torch.cat([found[name][inner_skin(group.classes) & group.erased] for name, group in groups.items()])
    skin = torch.cat([found[name][(group.classes == FACE) & group.erased] for name, group in groups.items()])
    threshold = inner.sort(descending=True).values[int(KEPT_SKIN * len(inner))].item()
    results = {"threshold": threshold, "kept_at_borders": (skin > threshold).float().mean().item()}
    for name, group in groups.items():
        results[name] = (found[name][group.wanted & group.erased] > threshold).float().mean().item()
    return {name: float(f"{value:.4g}") for name, value in results.items()}


def train(config: FaceParserTrainConfig | str | Path) -> Path:
    """Train, or resume the run in `config.output`; returns its last checkpoint.

    As in `loop.train`, an interrupted run ends with the weights of an uninterrupted one.
    """
    if not isinstance(config, FaceParserTrainConfig):
        config = FaceParserTrainConfig.from_file(config)
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    device, output = accelerator.device, Path(config.output)
    output.mkdir(parents=True, exist_ok=True)
    config.save(output / "config.json")
    cv2.setNumThreads(1)

    # 1. data
    landmarks = read_landmarks(config.data, config.model, output / "landmarks.npz")
    hands = np.load(config.hands)
    names = sorted(set(landmarks) - set(config.false_labels))
    faces = read_faces(config.data, landmarks, [name for name in names if not is_held_out(name)])
    held_out = read_faces(config.data, landmarks, [name for name in names if is_held_out(name)])
    if config.more_data is not None:
        landmarks = read_landmarks(config.more_data, config.model, output / "more_landmarks.npz")
        faces += read_faces(config.more_data, landmarks, sorted(landmarks))
    logger.info("%d faces, %d held out", len(faces), len(held_out))

    # 2. network
    torch.manual_seed(config.seed)
    network = build_network(config).to(device, memory_format=torch.channels_last)
    for block in (network.stem, *network.blocks[:FROZEN_BLOCKS]):
        block.requires_grad_(False)
    groups = held_out_crops(held_out, hands[::10], network.config.sample_size, config.seed + 1)
    averaged = AveragedModel(network, config.ema_decay)
    learned = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True)
    model, optimizer = accelerator.prepare(network, optimizer)
    state = TrainState()
    accelerator.register_for_checkpointing(state, averaged)
    if checkpoint := max(output.glob("checkpoint-*"), default=None):
        accelerator.load_state(checkpoint / "state")
        logger.info("going on with %s", checkpoint)

    # 3. loop
    hands = np.delete(hands, np.arange(0, len(hands), 10), axis=0)
    samples = OccludedFaces(faces, hands, network.config.sample_size, config.seed)
    stream = iter(DataLoader(samples, config.batch_size, sampler=itertools.count(state.samples)))
    clock = time.monotonic() - 60 * state.minutes
    next_log, next_checkpoint = state.minutes + config.log_minutes, state.minutes + config.checkpoint_minutes
    totals, steps = {}, 0
    model.train()
    while state.progress(config) < 1:
        # 3a. one step
        batch = {name: value.to(device) for name, value in next(stream).items()}
        logits = model(from_bytes(batch["image"]).contiguous(memory_format=torch.channels_last)).logits
        row, column = state.step % 2, state.step // 2 % 2  # by turns: a loss on all pixels takes longer
        lattice = (..., slice(row, None, 2), slice(column, None, 2))
        losses = parsing_loss(logits[lattice], batch["classes"][lattice].long(), batch["erased"][lattice].float(), config)
        rate = state.learning_rate(config)
        losses["gradient_norm"] = descend(accelerator, model, optimizer, losses["loss"], rate, config.max_gradient_norm)
        averaged.update(network)

        state.step += 1
        state.samples += config.batch_size
        state.minutes = (time.monotonic() - clock) / 60
        totals, steps = {name: totals.get(name, 0) + value.detach() for name, value in losses.items()}, steps + 1
        is_last = state.progress(config) >= 1

        # 3b. every few minutes: log, checkpoint
        if is_last or state.minutes >= next_log:
            next_log = state.minutes + config.log_minutes
            entry = mean_losses(totals, steps, state.step)
            entry = {"samples": state.samples, "minutes": round(state.minutes, 2)} | entry
            entry["held_out"] = measure(averaged.model, groups)
            averaged.model.register_to_config(front_threshold=entry["held_out"]["threshold"])
            write_log(output, entry)
            totals, steps = {}, 0
        if is_last or state.minutes >= next_checkpoint:
            save_checkpoint(output, accelerator, {".": averaged.model}, state.samples, config.keep_checkpoints)
            next_checkpoint = state.minutes + config.checkpoint_minutes

    accelerator.end_training()
    return max(output.glob("checkpoint-*"))


def read_landmarks(folder: str, model: str, path: Path) -> dict[str, np.ndarray]:
    """The landmarks of the labelled crops of a folder, which are found once and kept in a file."""
    if not path.exists():
        analyser = FaceAnalyserModel.from_pretrained(model, subfolder="face_analyser")
        np.savez(path, **find_landmarks(folder, analyser))
    with np.load(path) as file:
        return dict(file)


def build_network(config: FaceParserTrainConfig) -> FaceParserModel:
    """A new network on ImageNet's trunk, or the network of another run."""
    if config.init_from is not None:
        source = max(Path(config.init_from).glob("checkpoint-*"), default=config.init_from)
        return FaceParserModel.from_pretrained(source, torch_dtype=torch.float32)
    network = FaceParserModel()
    trunk = ContextEncoderModel.from_pretrained(config.model, subfolder="context_encoder").float()
    network.stem.load_state_dict(trunk.stem.state_dict())
    network.blocks.load_state_dict(trunk.blocks[: len(network.blocks)].state_dict())
    return network
