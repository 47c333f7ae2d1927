"""Training of the identity sampler (LDS): diffusion over standardised vectors [z ; α] with an L1 noise loss (paper §3.2).

    diffdeid train lds configs/lds.json

Takes minutes on a CPU. The folder it writes loads with `LDSPipeline.from_pretrained`. Mirrored faces would have the same
vectors, so there is nothing to augment: training stops when held-out faces stop gaining.
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

from diffdeid.models.lds import LDSModel
from diffdeid.pipelines.pipeline_lds import LDSPipeline
from diffdeid.training.averaging import AveragedModel
from diffdeid.training.config import LDSTrainConfig
from diffdeid.training.data import FaceStore

EVAL_DRAWS = 16  # noise levels per held-out face

logger = logging.getLogger(__name__)


def train(config: LDSTrainConfig | str | Path) -> Path:
    """Train; returns the folder of the pipeline, whose weights are those of the lowest held-out loss."""
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

    # 2. model
    torch.manual_seed(config.seed)
    scheduler = DDIMScheduler(beta_schedule="linear", timestep_spacing="trailing", clip_sample=False)
    labels = read_labels(config.attributes, set(train_names)) if config.attributes else {}
    glasses = labels.pop("glasses", None)
    model = LDSModel(**config.model, attribute_names=tuple(labels)).to(device)
    identity = vectors[:, : model.config.identity_dim]
    for row, values in enumerate(labels.values()):
        learn_direction(model, row, identity, *labelled(train_names, values))
    if glasses is not None:
        learn_glasses(model, identity, *labelled(train_names, glasses))
    attributes, validation_attributes = (
        model.attributes(rows[:, : model.config.identity_dim]) if labels else None for rows in (vectors, validation)
    )
    model.mean.copy_(vectors.mean(0))
    model.std.copy_(vectors.std(0).clamp(min=1e-4))  # directions that nobody uses stay unused
    vectors, validation = ((values - model.mean) / model.std for values in (vectors, validation))
    averaged = AveragedModel(model, config.ema_decay)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.max_steps)

    # 3. loop
    generator = torch.Generator(device).manual_seed(config.seed)
    best, best_loss, waited, running = None, float("inf"), 0, 0.0
    for step in range(1, config.max_steps + 1):
        chosen = torch.randint(len(vectors), (config.batch_size,), device=device, generator=generator)
        asked = None
        if labels:
            anybody = torch.rand(config.batch_size, 1, device=device, generator=generator) < config.attribute_dropout
            asked = attributes[chosen].masked_fill(anybody, math.nan)
        loss = noise_loss(model, scheduler, vectors[chosen], asked, generator)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        averaged.update(model)
        running = running + loss.detach()
        if step % config.eval_steps:
            continue

        with torch.no_grad():
            fixed = torch.Generator(device).manual_seed(config.seed)
            asked = validation_attributes.repeat(EVAL_DRAWS, 1) if labels else None
            held_out_loss = noise_loss(averaged.model, scheduler, validation.repeat(EVAL_DRAWS, 1), asked, fixed).item()
        entry = {"step": step, "loss": round(running.item() / config.eval_steps, 4), "validation_loss": round(held_out_loss, 4)}
        running = 0.0
        logger.info("%s", entry)
        with open(output / "log.jsonl", "a") as log:
            log.write(json.dumps(entry) + "\n")
        if held_out_loss < best_loss:
            best, best_loss, waited = copy.deepcopy(averaged.model), held_out_loss, 0
        else:
            waited += 1
            if waited == config.patience:
                break

    # 4. save
    folder, unfinished = output / "pipeline", output / "unfinished-pipeline"
    LDSPipeline(best.cpu(), scheduler).save_pretrained(unfinished)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(unfinished, folder)
    return folder


def read_vectors(store: FaceStore, names: list[str]) -> Tensor:
    """[z ; α] of the faces, `(n, 208)`."""
    if not names:
        raise ValueError("`validation_names` leaves no face to train on or none to validate with.")
    rows = []
    for name in names:
        with store.open(name) as file:
            rows.append(np.concatenate([file.get_tensor("identity"), file.get_tensor("coefficients")[:80]]))
    return torch.from_numpy(np.stack(rows))


def read_labels(path: str | Path, names: set[str]) -> dict[str, dict[str, float]]:
    """Label -> name -> number, of those of `names` that have it, from JSON lines like `{"name": "a.jpg", "age": 34}`."""
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


def learn_glasses(model: LDSModel, identity: Tensor, chosen: list[int], worn: Tensor) -> None:
    """Fit what tells labelled faces with glasses (1) from those without (0), of whom one in 20 may seem to wear them."""
    if set(worn.tolist()) != {0.0, 1.0}:
        raise ValueError(f"Labels `glasses` must be 0 for some faces and 1 for others, got {sorted(set(worn.tolist()))}.")
    identity, worn = identity[chosen], worn.to(identity)
    model.glasses_direction.copy_(find_direction(identity, worn))
    model.glasses_limit.copy_((identity[worn == 0] @ model.glasses_direction).quantile(0.95))


def find_direction(identity: Tensor, known: Tensor) -> Tensor:
    """The direction `(d,)` along which embeddings `(n, d)` change with what is known of them `(n,)`, by ridge regression."""
    known = known.to(identity)
    return ridge(identity - identity.mean(0), (known - known.mean())[:, None])[:, 0]


def ridge(inputs: Tensor, outputs: Tensor) -> Tensor:
    """The linear map `(d, k)` from inputs `(n, d)` to outputs `(n, k)`, least squares with a penalty of 1."""
    gram = inputs.T @ inputs + torch.eye(inputs.shape[1], device=inputs.device)
    return torch.cholesky_solve(inputs.T @ outputs, torch.linalg.cholesky(gram))


def noise_loss(
    model: LDSModel, scheduler: DDIMScheduler, vectors: Tensor, attributes: Tensor | None, generator: torch.Generator
) -> Tensor:
    """Mean absolute error of the predicted noise, at noise levels spread evenly over the batch."""
    spread = torch.randperm(len(vectors), device=vectors.device, generator=generator)
    positions = (spread + torch.rand(len(vectors), device=vectors.device, generator=generator)) / len(vectors)
    timesteps = (positions * scheduler.config.num_train_timesteps).long()
    noise = torch.randn(vectors.shape, device=vectors.device, generator=generator)
    return (model(scheduler.add_noise(vectors, noise, timesteps), timesteps, attributes).sample - noise).abs().mean()
