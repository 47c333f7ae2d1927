"""Training of the identity sampler (LDS) and of the context encoder that tells it about the surroundings.

    diffdeid train lds configs/lds.json

The LDS is a diffusion over standardised vectors [z ; α] with an L1 noise loss (paper §3.2). Its condition is K, which a result
keeps of the source anyway (context, expression, pose, light and tone of the skin), or attributes, or nothing. So one network
learns p(z, α | K), p(z, α | attributes) and p(z, α). The context encoder is fitted first (fit_context.py).

It takes a quarter of an hour on a CPU, nearly all of it for the features. Mirrored faces would have the same vectors, so there is
no augmentation: training stops when the loss on held-out faces stops falling.
"""

from __future__ import annotations

import copy
import json
import logging
import math
import os
import shutil
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from diffdeid.models.context_encoder import ContextEncoderModel
from diffdeid.models.lds import LDSModel
from diffdeid.models.morphable_model import MorphableModel
from diffdeid.pipelines.pipeline_lds import LDSPipeline
from diffdeid.structures import MorphableCoefficients
from diffdeid.training.averaging import AveragedModel
from diffdeid.training.config import LDSTrainConfig
from diffdeid.training.data import FaceStore
from diffdeid.training.fit_context import fit_context, read_features, ridge

EVAL_DRAWS = 16  # noise levels per held-out face
PENALTY = 1.0  # of the ridge regression from identities to labels
GHOSTS = ("glasses", "covered_forehead")  # labels of things for which identities are refused …
SPARED = 0.1  # … and the share of people without them who are refused as well
USUAL = 0.85  # share of the training faces whose head shapes count as usual

logger = logging.getLogger(__name__)


def train(config: LDSTrainConfig | str | Path) -> Path:
    """Train; returns the folder of the pipeline, with the weights of the lowest held-out loss.

    The folder `context_encoder` is written beside it.
    """
    if not isinstance(config, LDSTrainConfig):
        config = LDSTrainConfig.from_file(config)
    output = Path(config.output)
    output.mkdir(parents=True, exist_ok=True)
    config.save(output / "config.json")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    # 1. data
    store = FaceStore(config.data)
    train_names, held_out = store.split(config.validation_names)
    vectors, validation = (read_vectors(store, names).to(device) for names in (train_names, held_out))
    coefficients, held_out_coefficients = (read_coefficients(store, names, device) for names in (train_names, held_out))

    # 2. context encoder
    torch.manual_seed(config.seed)
    encoder = ContextEncoderModel.from_pretrained(config.trunk, subfolder="context_encoder").float().to(device)
    features, held_out_features = (read_features(store, names, encoder, config.tight_sets) for names in (train_names, held_out))
    identity_dim = encoder.config.context_dim  # the context is an expected embedding
    context, held_out_context = fit_context(encoder, features, vectors[:, :identity_dim], held_out_features)

    # 3. model
    scheduler = DDIMScheduler(beta_schedule="linear", timestep_spacing="trailing", clip_sample=False)
    labels = read_labels(config.attributes, set(train_names)) if config.attributes else {}
    ghosts = {name: labels.pop(name) for name in GHOSTS if name in labels}
    sizes = {
        "context_dim": encoder.config.context_dim,
        "tone_dim": MorphableModel.load_config(config.trunk, subfolder="morphable_model")["num_tone"],
    }
    settings = sizes | {"attribute_names": tuple(labels), "ghost_names": tuple(ghosts)} | config.model
    model = LDSModel(**settings).to(device)
    identity = vectors[:, :identity_dim]
    for row, values in enumerate(labels.values()):
        learn_direction(model, row, identity, *labelled(train_names, values))
    for row, (name, values) in enumerate(ghosts.items()):
        learn_ghost(model, row, name, identity, *labelled(train_names, values))
    model.mean.copy_(vectors.mean(0))
    model.std.copy_(vectors.std(0).clamp(min=1e-4))  # so that unused directions stay unused
    unusual = (vectors - model.mean)[:, identity_dim:] / model.std[identity_dim:]
    model.shape_limit.copy_(unusual.square().mean(dim=1).sqrt().quantile(USUAL))
    conditions = model.conditions(context, coefficients, model.attributes(identity) if labels else None)
    learn_spread(model, conditions)
    held_out_tellings = {"anybody": None, "K": model.conditions(held_out_context, held_out_coefficients).repeat(EVAL_DRAWS, 1)}
    if labels:
        seem = model.conditions(attributes=model.attributes(validation[:, :identity_dim]))
        held_out_tellings["attributes"] = seem.repeat(EVAL_DRAWS, 1)
    vectors, validation = ((values - model.mean) / model.std for values in (vectors, validation))
    averaged = AveragedModel(model, config.ema_decay)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.max_steps)

    # 4. loop
    generator = torch.Generator(device).manual_seed(config.seed)
    best, best_loss, waited, running = None, float("inf"), 0, 0.0
    for step in range(1, config.max_steps + 1):
        chosen = torch.randint(len(vectors), (config.batch_size,), device=device, generator=generator)
        told = forget(model, conditions[chosen], config, generator)
        loss = noise_loss(model, scheduler, vectors[chosen], told, generator)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        averaged.update(model)
        running = running + loss.detach()
        if step % config.eval_steps:
            continue

        losses = {}
        for name, told in held_out_tellings.items():
            fixed = torch.Generator(device).manual_seed(config.seed)
            with torch.no_grad():
                loss = noise_loss(averaged.model, scheduler, validation.repeat(EVAL_DRAWS, 1), told, fixed)
            losses[f"validation_loss, {name}"] = round(loss.item(), 4)
        entry = {"step": step, "loss": round(running.item() / config.eval_steps, 4)} | losses
        running = 0.0
        logger.info("%s", entry)
        with open(output / "log.jsonl", "a") as log:
            log.write(json.dumps(entry) + "\n")
        held_out_loss = sum(losses.values())
        if held_out_loss < best_loss:
            best, best_loss, waited = copy.deepcopy(averaged.model), held_out_loss, 0
        else:
            waited += 1
            if waited == config.patience:
                break

    # 5. save
    folder, unfinished = output / "pipeline", output / "unfinished-pipeline"
    encoder.cpu().half().save_pretrained(output / "context_encoder")
    LDSPipeline(best.cpu(), scheduler).save_pretrained(unfinished)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(unfinished, folder)
    return folder


def read_vectors(store: FaceStore, names: list[str]) -> Tensor:
    """Read [z ; α] of the faces, `(n, 208)`."""
    if not names:
        raise ValueError("`validation_names` leaves no face to train on or none to validate with.")
    rows = []
    for name in names:
        with store.open(name) as file:
            rows.append(np.concatenate([file.get_tensor("identity"), file.get_tensor("coefficients")[:80]]))
    return torch.from_numpy(np.stack(rows))


def read_coefficients(store: FaceStore, names: list[str], device: torch.device) -> MorphableCoefficients:
    """Read the reconstructed ρ of the faces."""
    rows = []
    for name in names:
        with store.open(name) as file:
            rows.append(file.get_tensor("fit"))
    return MorphableCoefficients.unpack(torch.from_numpy(np.stack(rows)).to(device))


def learn_spread(model: LDSModel, conditions: Tensor) -> None:
    """Set the model's mean and standard deviation of the conditions, from where they are known."""
    known = ~conditions.isnan()
    count = known.sum(0).clamp(min=1)
    mean = conditions.nan_to_num().sum(0) / count
    deviation = ((conditions - mean).nan_to_num().square().sum(0) / count).sqrt()
    model.condition_mean.copy_(mean)
    model.condition_std.copy_(torch.where(deviation > 1e-4, deviation, torch.ones_like(deviation)))  # unused conditions stay zero


def forget(model: LDSModel, conditions: Tensor, config: LDSTrainConfig, generator: torch.Generator) -> Tensor:
    """Drop conditions at random: some people keep none, others only their attributes, the rest only K.

    Each group of K is dropped at times as well.
    """
    drawn = torch.rand(len(conditions), 1 + len(model.condition_sizes), device=conditions.device, generator=generator)
    kind, parts = drawn[:, :1], drawn[:, 1:]
    by_attributes = kind < config.by_attributes
    dropped = torch.where(by_attributes, torch.ones_like(parts, dtype=torch.bool), parts < config.condition_dropout)
    dropped[:, -1:] = ~by_attributes
    dropped |= kind > 1 - config.unconditional
    sizes = torch.tensor(model.condition_sizes, device=dropped.device)
    return conditions.masked_fill(dropped.repeat_interleave(sizes, dim=1), math.nan)


def read_labels(path: str | Path, names: set[str]) -> dict[str, dict[str, float]]:
    """Read labels for faces among `names` from JSON lines like `{"name": "a.jpg", "age": 34}`: label -> name -> number."""
    labels: dict[str, dict[str, float]] = {}
    for row in map(json.loads, Path(path).read_text().splitlines()):
        if (name := row.pop("name")) in names:
            for label, value in row.items():
                labels.setdefault(label, {})[name] = float(value)
    if not labels:
        raise ValueError(f"`{path}` has no labels for the faces to train on.")
    return labels


def labelled(names: list[str], values: dict[str, float]) -> tuple[list[int], Tensor]:
    """Which of the names have a label, and the labels."""
    chosen = [index for index, name in enumerate(names) if name in values]
    return chosen, torch.tensor([values[names[index]] for index in chosen])


def learn_direction(model: LDSModel, row: int, identity: Tensor, chosen: list[int], known: Tensor) -> None:
    """Fit an attribute to the labelled faces, and scale it to mean 0 and deviation 1 over all faces."""
    direction = find_direction(identity[chosen], known)
    values = identity @ direction
    model.attribute_directions[row] = direction / values.std()
    model.attribute_offsets[row] = -values.mean() / values.std()


def learn_ghost(model: LDSModel, row: int, name: str, identity: Tensor, chosen: list[int], worn: Tensor) -> None:
    """Fit a direction and a limit that tell faces that wear something (1) from others (0), of whom one in 10 may exceed it."""
    if set(worn.tolist()) != {0.0, 1.0}:
        raise ValueError(f"Labels `{name}` must be 0 for some faces and 1 for others, got {sorted(set(worn.tolist()))}.")
    identity, worn = identity[chosen], worn.to(identity)
    model.ghost_directions[row] = find_direction(identity, worn)
    model.ghost_limits[row] = (identity[worn == 0] @ model.ghost_directions[row]).quantile(1 - SPARED)


def find_direction(identity: Tensor, known: Tensor) -> Tensor:
    """The direction `(d,)` along which embeddings `(n, d)` change with labels `known` `(n,)`, by ridge regression."""
    known = known.to(identity)
    return ridge(identity - identity.mean(0), (known - known.mean())[:, None], PENALTY)[:, 0]


def noise_loss(
    model: LDSModel, scheduler: DDIMScheduler, vectors: Tensor, conditions: Tensor | None, generator: torch.Generator
) -> Tensor:
    """Mean absolute error of the predicted noise, at noise levels spread evenly over the batch."""
    spread = torch.randperm(len(vectors), device=vectors.device, generator=generator)
    positions = (spread + torch.rand(len(vectors), device=vectors.device, generator=generator)) / len(vectors)
    timesteps = (positions * scheduler.config.num_train_timesteps).long()
    noise = torch.randn(vectors.shape, device=vectors.device, generator=generator)
    return (model(scheduler.add_noise(vectors, noise, timesteps), timesteps, conditions).sample - noise).abs().mean()
