"""Training of the reconstructor (ResNet-50, as in Deep3DFaceRecon, Deng et al. 2019) and of the head mesh.

    diffdeid train reconstructor configs/reconstructor.json

On a few CPU cores, one single-threaded process per core:

    OMP_NUM_THREADS=1 torchrun --nproc_per_node 2 -m diffdeid.training.train_reconstructor configs/reconstructor.json

The teacher is the fit to FaceMesh landmarks (`models/fitting.py`), so there is more supervision than in the paper: coefficients,
landmarks, irises, and the colours of the face's vertices, compared without a rasteriser. Jitter and mirroring move the labels
along (`reconstructor_data.py`). All pictures stay in memory. A run folder holds `config.json`, `log.jsonl` and
`checkpoint-<samples>/`. Each checkpoint is a folder for `FaceReconstructorModel.from_pretrained` (averaged weights) plus
`state/`, from which the same command resumes.
"""

from __future__ import annotations

import itertools
import logging
import math
import sys
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import cv2
import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.functional import smooth_l1_loss
from torch.utils.data import DataLoader, default_collate

from diffdeid.geometry.camera import project, to_camera
from diffdeid.geometry.eyes import iris_centres
from diffdeid.geometry.landmarks import EYE_CORNERS
from diffdeid.geometry.lighting import shade
from diffdeid.geometry.pixels import from_bytes
from diffdeid.geometry.renderer import vertex_normals
from diffdeid.geometry.rotation import rotation_matrix, rotation_vector
from diffdeid.io.files import put, temporary_name
from diffdeid.models.context_encoder import ContextEncoderModel
from diffdeid.models.face_reconstructor import FaceReconstructorModel
from diffdeid.models.fitting import sample_vertices
from diffdeid.models.morphable_model import MorphableModel
from diffdeid.structures import MorphableCoefficients
from diffdeid.training.averaging import AveragedModel
from diffdeid.training.config import ReconstructorTrainConfig
from diffdeid.training.data import FaceStore
from diffdeid.training.head_renders import render_heads
from diffdeid.training.loop import TrainState, descend, mean_losses, save_checkpoint, write_log
from diffdeid.training.mirror import ORDER, SIGN
from diffdeid.training.reconstructor_data import (
    ReconstructorFaces,
    draw_jitter,
    jittered_labels,
    landmark_twins,
    mirrored,
    picture_landmarks,
    plain_batches,
    read_faces,
)

RENDERS_A_FACE = 1.5  # rendered heads for each training face
HELD_OUT_RENDERS = 0.02  # of the renders
FROZEN_BLOCKS = 5  # of an ImageNet trunk, those up to an eighth of the size of the picture
STD_FLOOR = 0.01  # least standard deviation, for coefficients that are (almost) unused
DEPTH_SHARE = 0.2  # weight of the landmarks' depth error beside that in the picture, because FaceMesh guesses depth
LARGE_ERROR = 0.05  # crop sizes; above it, the square of a landmark's error outweighs the error
FACELESS_ERROR = 0.3  # crop sizes; expected error of landmarks where there is no face
DOUBT_WEIGHT = 0.1  # of the loss on the expected error
PHOTOMETRIC_STRIDE = 4  # every fourth sample takes part in the photometric loss, which costs more than all others
VERTEX_STRIDE = 3  # of the face's vertices, every third takes part in the photometric loss
FACING = 0.2  # z of the normal above which a vertex counts as seen

logger = logging.getLogger(__name__)


class ReconstructionLoss(nn.Module):
    """The loss on reconstructed coefficients.

    Args:
        model: the morphable head.
        mean, std: `(261,)`, by which coefficients are standardised.
        config: holds the weights.
    """

    def __init__(self, model: MorphableModel, mean: Tensor, std: Tensor, config: ReconstructorTrainConfig):
        super().__init__()
        self.model, self.config = model, config
        self.register_buffer("mean", mean.clone())
        self.register_buffer("std", std.clone())
        self.register_buffer("region", model.face_region.nonzero()[::VERTEX_STRIDE, 0])
        sizes, names = torch.tensor(MorphableCoefficients.SIZES), [group.name for group in fields(MorphableCoefficients)]
        weights = torch.tensor([config.coefficient_weights.get(name, 1.0) for name in names])
        self.register_buffer("weight", (weights / sizes).repeat_interleave(sizes))
        coloured = torch.tensor([name in ("albedo", "illumination") for name in names])
        self.register_buffer("coloured", coloured.repeat_interleave(sizes).float())

    def forward(
        self, coefficients: MorphableCoefficients, batch: dict[str, Tensor], expected_error: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The parts of the loss and their weighted sum `loss`; `batch` has labels, `picture`, `grey` and `face`."""
        config, packed, face = self.config, coefficients.pack(), batch["face"]
        number = face.sum().clamp_min(1)
        errors = smooth_l1_loss((packed - self.mean) / self.std, (batch["coefficients"] - self.mean) / self.std, reduction="none")
        known = 1 - batch["grey"][:, None] * self.coloured  # grey pictures do not tell colours
        head = self.model(coefficients.shape, coefficients.expression, coefficients.albedo)
        landmarks = picture_landmarks(head.landmarks, coefficients.pose)
        distance = (landmarks - batch["landmarks"])[..., :2].norm(dim=-1)
        depth = relative_depth(landmarks) - relative_depth(batch["landmarks"])
        iris = iris_centres(landmarks, coefficients.gaze) - batch["iris"]
        off = (distance + distance.square() / LARGE_ERROR).mean(1) + DEPTH_SHARE * depth.abs().mean(1)
        some = slice(None, None, PHOTOMETRIC_STRIDE)
        losses = {
            "coefficients": ((errors * known * self.weight).sum(1) * face).sum() / number,
            "landmarks": (off * face).sum() / number,
            "photometric": self.photometric(head.vertices[some], head.albedo[some], packed[some], batch, some),
            "gaze": (iris.norm(dim=-1).mean(1) * face).sum() / number,
        }
        total = (
            losses["coefficients"]
            + config.landmark_weight * losses["landmarks"]
            + config.photometric_weight * losses["photometric"]
            + config.gaze_weight * losses["gaze"]
        )
        if expected_error is not None:  # the likelihood of a Laplace distribution (Kendall and Gal 2017)
            truth = torch.where(face > 0, distance.detach().mean(1), FACELESS_ERROR)
            losses["doubt"] = (truth / expected_error + expected_error.log()).mean()
            total = total + DOUBT_WEIGHT * losses["doubt"]
        return losses | {"loss": total}

    def photometric(self, vertices: Tensor, albedo: Tensor, packed: Tensor, batch: dict[str, Tensor], some: slice) -> Tensor:
        """Mean absolute difference, 0…1, between lit skin and `some` of the pictures, at vertices that face the camera."""
        coefficients, picture = MorphableCoefficients.unpack(packed), batch["picture"][some]
        vertices = to_camera(vertices, coefficients.pose)
        normals = vertex_normals(vertices, self.model.triangles)[:, self.region]
        points = project(vertices[:, self.region], 1)[..., :2]
        difference = shade(albedo[:, self.region], normals, coefficients.illumination) - sample_vertices(picture / 255, points)
        seen = (normals[..., 2] > FACING).float() * batch["face"][some, None]
        return (difference.abs().mean(-1) * seen).sum() / seen.sum().clamp_min(1)


def relative_depth(landmarks: Tensor) -> Tensor:
    """Depth `(B, 468)` of landmarks against their mean."""
    return landmarks[..., 2] - landmarks[..., 2].mean(1, keepdim=True)


@torch.no_grad()
def evaluate(
    predict: Callable[[dict[str, Tensor]], MorphableCoefficients], objective: ReconstructionLoss, batches: list[dict[str, Tensor]]
) -> dict[str, float]:
    """Mean errors of the predictions for `plain_batches`.

    Returns:
        `landmarks_percent` of the distance between the eyes (in three dimensions, because in profiles it vanishes in the
        picture), `pose_degrees` and `gaze` (eye widths) against the fit, `photometric` (0…1), and the `loss`.
    """
    errors = []
    for batch in batches:
        coefficients, fitted = predict(batch), MorphableCoefficients.unpack(batch["coefficients"])
        head = objective.model(coefficients.shape, coefficients.expression)
        distance = picture_landmarks(head.landmarks, coefficients.pose) - batch["landmarks"]
        eyes = batch["landmarks"][:, torch.tensor(EYE_CORNERS)].mean(2)  # (B, 2, 3)
        turn = rotation_matrix(coefficients.pose[:, :3]).mT @ rotation_matrix(fitted.pose[:, :3])
        entry = {
            "landmarks_percent": 100 * distance[..., :2].norm(dim=-1).mean(1) / (eyes[:, 0] - eyes[:, 1]).norm(dim=-1),
            "pose_degrees": rotation_vector(turn).norm(dim=-1).rad2deg(),
            "gaze": (coefficients.gaze - fitted.gaze).unflatten(-1, (2, 2)).norm(dim=-1).mean(1),
        }
        losses = objective(coefficients, batch)
        errors.append(entry | {name: losses[name].expand(len(eyes)) for name in ("photometric", "loss")})
    return {name: float(f"{torch.cat([entry[name] for entry in errors]).mean().item():.4g}") for name in errors[0]}


def train(config: ReconstructorTrainConfig | str | Path) -> Path:
    """Train, or resume the run in `config.output`; returns its last checkpoint.

    As in `loop.train`, an interrupted run ends with the weights of an uninterrupted one.
    """
    if not isinstance(config, ReconstructorTrainConfig):
        config = ReconstructorTrainConfig.from_file(config)
    accelerator = Accelerator(mixed_precision=config.mixed_precision, cpu=not torch.cuda.is_available())
    device, is_main = accelerator.device, accelerator.is_main_process
    rank, world = accelerator.process_index, accelerator.num_processes
    output = Path(config.output)
    output.mkdir(parents=True, exist_ok=True)
    config.save(output / "config.json")
    cv2.setNumThreads(0)

    # 1. models
    torch.manual_seed(config.seed)
    morphable_model = MorphableModel.from_pretrained(config.model, subfolder="morphable_model").float()
    network = build_network(config)
    size = network.config.sample_size

    # 2. data
    store = FaceStore(config.data)
    train_names, held_out_names = store.split(config.validation_names)
    held_out = plain_batches(*read_faces(store, held_out_names, size), size, device)
    pictures, labels = read_faces(store, train_names, size)
    seen = plain_batches(pictures, labels, size, device)
    renders, render_labels = read_renders(output / "renders.npz", morphable_model, store, train_names, size, config.seed)
    few = math.ceil(HELD_OUT_RENDERS * len(renders))
    turned = plain_batches(renders[:few], {name: values[:few] for name, values in render_labels.items()}, size, device)
    renders = renders[few:]
    labels = {name: torch.cat([values, render_labels[name][few:]]) for name, values in labels.items()}
    centre = morphable_model.at_landmarks(morphable_model.mean).mean(0)
    both = mirrored(labels, landmark_twins(morphable_model))
    labels = {name: torch.cat([values, both[name]]) for name, values in labels.items()}
    if (network.std == 1).all():  # it is new
        set_statistics(network, labels, centre, config.seed)
    labels = {name: values.to(device) for name, values in labels.items()}
    centre = centre.to(device)

    # 3. optimiser
    network.to(device, memory_format=torch.channels_last)
    averaged = AveragedModel(network, config.ema_decay)
    parameters = dict(lr=config.learning_rate, weight_decay=config.weight_decay, fused=True)
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    model, optimizer = accelerator.prepare(network, torch.optim.AdamW(trained, **parameters))
    state = TrainState()
    accelerator.register_for_checkpointing(state, averaged)
    if checkpoint := max(output.glob("checkpoint-*"), default=None):
        accelerator.load_state(checkpoint / "state")
        logger.info("going on with %s", checkpoint)
    objective = ReconstructionLoss(morphable_model, network.mean, network.std, config).to(device)
    fit = evaluate(lambda batch: MorphableCoefficients.unpack(batch["coefficients"]), objective, held_out)
    logger.info("%d faces, %d held out, where the fit has %s", len(train_names), len(held_out_names), fit)

    def reconstruct(batch: dict[str, Tensor]) -> MorphableCoefficients:
        return averaged.model(from_bytes(batch["image"])).coefficients

    # 4. loop
    loader = DataLoader(
        ReconstructorFaces(pictures, renders, size, config.seed),
        config.batch_size,
        sampler=itertools.count(state.samples + rank, world),
        num_workers=config.num_workers,
        pin_memory=device.type == "cuda",
    )
    clock = time.monotonic() - 60 * state.minutes
    next_log, next_checkpoint = state.minutes, state.minutes + config.checkpoint_minutes
    totals, logged = {}, (state.samples, state.minutes)
    model.train()
    stream = iter(loader)
    while state.progress(config) < 1:
        # 4a. one step
        batch = {name: value.to(device, non_blocking=True) for name, value in next(stream).items()}
        chosen = {name: values[batch["index"]] for name, values in labels.items()}
        batch |= jittered_labels(chosen, batch, centre)
        with accelerator.autocast():
            coefficients, expected_error = model(from_bytes(batch["image"]), return_dict=False)
        losses = objective(coefficients, batch, expected_error)
        rate = state.learning_rate(config)
        losses["gradient_norm"] = descend(accelerator, model, optimizer, losses["loss"], rate, config.max_gradient_norm)
        averaged.update(network)
        torch._foreach_copy_(list(averaged.model.buffers()), list(network.buffers()))  # statistics of the normalisations

        state.step += 1
        state.samples += config.batch_size * world
        state.minutes = accelerator.gather(torch.tensor([(time.monotonic() - clock) / 60], device=device))[0].item()
        totals = {name: totals.get(name, 0) + value.detach() for name, value in losses.items()}
        is_last = state.progress(config) >= 1

        # 4b. every few minutes: log, checkpoint
        if is_last or state.minutes >= next_log:
            next_log = state.minutes + config.log_minutes
            steps = (state.samples - logged[0]) / (config.batch_size * world)
            entry = mean_losses(totals, steps, state.step)
            speed = (state.samples - logged[0]) / (60 * (state.minutes - logged[1]))
            entry = {"samples": state.samples, "minutes": round(state.minutes, 2), "samples_per_second": round(speed, 1)} | entry
            entry["learning_rate"] = float(f"{state.learning_rate(config):.4g}")
            if is_main:
                for part, batches in (("held_out", held_out), ("seen", seen), ("turned", turned)):
                    entry[part] = evaluate(reconstruct, objective, batches)
                write_log(output, entry)
            totals, logged = {}, (state.samples, (time.monotonic() - clock) / 60)
        if is_last or state.minutes >= next_checkpoint:
            save_checkpoint(output, accelerator, {".": averaged.model}, state.samples, config.keep_checkpoints)
            next_checkpoint = state.minutes + config.checkpoint_minutes

    accelerator.end_training()
    return max(output.glob("checkpoint-*"))


def build_network(config: ReconstructorTrainConfig) -> FaceReconstructorModel:
    """A new network, one with the ImageNet trunk of a context encoder, or the averaged network of another run."""
    if config.init_from is None:
        return FaceReconstructorModel(**config.network)
    source = max(Path(config.init_from).glob("checkpoint-*"), default=Path(config.init_from))
    if FaceReconstructorModel.load_config(source)["_class_name"] != ContextEncoderModel.__name__:
        return FaceReconstructorModel.from_pretrained(source, **config.network)
    network = FaceReconstructorModel(**config.network)
    taught = ContextEncoderModel.from_pretrained(source)
    network.backbone.stem.load_state_dict(taught.stem.state_dict())
    network.backbone.blocks.load_state_dict(taught.blocks.state_dict())
    network.backbone.stem.requires_grad_(False)  # edges and colours need no training, which would take most of the time
    network.backbone.blocks[:FROZEN_BLOCKS].requires_grad_(False)
    return network


def read_renders(
    path: Path, model: MorphableModel, store: FaceStore, names: list[str], size: int, seed: int
) -> tuple[np.ndarray, dict[str, Tensor]]:
    """Pictures with opacity and labels of turned heads (`head_renders`), from a file, which is made if it does not exist."""
    if not path.exists():
        pictures, labels = render_heads(model, store, names, math.ceil(RENDERS_A_FACE * len(names)), size, seed)
        temporary = temporary_name(path, ".npz")
        np.savez(temporary, pictures=pictures, **{name: values.numpy() for name, values in labels.items()})
        put(temporary, path, overwrite=False)
    with np.load(path) as file:
        return file["pictures"], {name: torch.from_numpy(file[name]) for name in ("coefficients", "landmarks", "iris")}


def set_statistics(network: FaceReconstructorModel, labels: dict[str, Tensor], centre: Tensor, seed: int):
    """Set the statistics of a network from the labels under jitter, and the effect of mirroring on them."""
    rng = np.random.default_rng(seed)
    jitter = default_collate([draw_jitter(rng) for _ in labels["coefficients"]])
    coefficients = jittered_labels(labels, jitter, centre)["coefficients"]
    network.mean.copy_(coefficients.mean(0))
    network.std.copy_(coefficients.std(0).clamp(min=STD_FLOOR))
    if network.config.stages is not None:
        network.mirror_order.copy_(ORDER)
        network.mirror_sign.copy_(SIGN)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    train(sys.argv[1])
