"""The components that the photo and the video pipeline share, loaded from the same folders."""

from __future__ import annotations

from pathlib import Path

from diffusers import DiffusionPipeline, SchedulerMixin

from diffdeid.engine.faces import Engine
from diffdeid.errors import ConfigurationError
from diffdeid.models.context_encoder import ContextEncoderModel
from diffdeid.models.face_analyser import FaceAnalyserModel
from diffdeid.models.face_parser import FaceParserModel
from diffdeid.models.face_recognition import FaceRecognitionModel
from diffdeid.models.face_reconstructor import FaceReconstructorModel
from diffdeid.models.hand_finder import HandFinderModel
from diffdeid.models.lds import LDSModel
from diffdeid.models.morphable_model import MorphableModel
from diffdeid.models.refiner import RefinerModel
from diffdeid.models.texture_encoder import TextureEncoderModel
from diffdeid.models.unet import DiffDeIDUNet2DModel
from diffdeid.pipelines.loading import SafeHubMixin
from diffdeid.stages.denoise import NO_CALLBACKS


class DeidentificationPipeline(SafeHubMixin, DiffusionPipeline):
    """Base of the photo and the video pipeline, with all components that de-identification needs.

    Args:
        unet: denoiser ε_θ(Z_t ⊕ I'_3d, E_t(I_m), C).
        texture_encoder: E_t.
        scheduler: removes the noise step by step.
        morphable_model: ρ -> head.
        face_recognition: gives z_id, and judges every result.
        face_analyser: finds faces. Photos do not need it if `faces` with landmarks and irises are passed.
        reconstructor: gives ρ by a network, for `reconstruction="network"`.
        lds, lds_scheduler: sample identities, unless `identity` is passed.
        context_encoder: encodes what the surroundings tell of a person, for `attributes="context"`.
        face_parser: finds what lies in front of a face and stays, such as hands and masks; without it, they are painted over.
        hand_finder: finds hands, which the face parser may take for skin; without it, many of them are painted over.
        refiner: doubles the resolution of new faces that are large in photos; without it, they stay softer. Videos do not use it.
        identity_limit: smallest accepted 1 - cosine between source and result, 0…2. With the released value, one in a thousand
            pairs of different people would be taken for the same person.
        crop_factor: side of the crop in FFHQ squares.

    Raises:
        TypeError: a component is of another class.
        ConfigurationError: `lds` and `morphable_model` do not fit together.
    """

    model_cpu_offload_seq = "reconstructor->face_parser->face_recognition->texture_encoder->unet"
    # small; the refiner would move other networks that are needed, and the rest is used outside `forward`
    _exclude_from_cpu_offload = ["face_analyser", "hand_finder", "morphable_model", "lds", "context_encoder", "refiner"]
    _optional_components = [
        "face_analyser", "reconstructor", "lds", "lds_scheduler", "context_encoder", "face_parser", "hand_finder", "refiner",
    ]  # fmt: skip

    callbacks = NO_CALLBACKS  # may be set on a pipeline, and are then called whenever it paints, unless a call has its own

    def __init__(
        self,
        unet: DiffDeIDUNet2DModel,
        texture_encoder: TextureEncoderModel,
        scheduler: SchedulerMixin,
        morphable_model: MorphableModel,
        face_recognition: FaceRecognitionModel,
        face_analyser: FaceAnalyserModel | None = None,
        reconstructor: FaceReconstructorModel | None = None,
        lds: LDSModel | None = None,
        lds_scheduler: SchedulerMixin | None = None,
        context_encoder: ContextEncoderModel | None = None,
        face_parser: FaceParserModel | None = None,
        hand_finder: HandFinderModel | None = None,
        refiner: RefinerModel | None = None,
        identity_limit: float = 0.5,
        crop_factor: float = 0.8,
    ):
        super().__init__()
        components = {
            "unet": (unet, DiffDeIDUNet2DModel),
            "texture_encoder": (texture_encoder, TextureEncoderModel),
            "scheduler": (scheduler, SchedulerMixin),
            "morphable_model": (morphable_model, MorphableModel),
            "face_recognition": (face_recognition, FaceRecognitionModel),
            "face_analyser": (face_analyser, FaceAnalyserModel),
            "reconstructor": (reconstructor, FaceReconstructorModel),
            "lds": (lds, LDSModel),
            "lds_scheduler": (lds_scheduler, SchedulerMixin),
            "context_encoder": (context_encoder, ContextEncoderModel),
            "face_parser": (face_parser, FaceParserModel),
            "hand_finder": (hand_finder, HandFinderModel),
            "refiner": (refiner, RefinerModel),
        }
        for name, (component, base) in components.items():
            if not (isinstance(component, base) or (component is None and name in self._optional_components)):
                raise TypeError(f"`{name}` must be a `{base.__name__}`, got `{type(component).__name__}`.")
        self.register_modules(**{name: component for name, (component, _) in components.items()})
        if lds is not None and lds.config.tone_dim != morphable_model.config.num_tone:
            raise ConfigurationError(
                f"The `lds` expects {lds.config.tone_dim} numbers for the tone of the skin, but `morphable_model` has "
                f"{morphable_model.config.num_tone}. More of the albedo would tell who somebody is. Train an `lds` for this head."
            )
        self.register_to_config(identity_limit=identity_limit, crop_factor=crop_factor)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs):
        """As `DiffusionPipeline.from_pretrained`, but a folder may lack the `reconstructor` that its `model_index.json` names.

        Packages come without it, because only `reconstruction="network"` needs it. Anything else that is missing is an error.
        """
        folder = Path(pretrained_model_name_or_path)
        if folder.is_dir() and not (folder / "reconstructor").exists():
            kwargs.setdefault("reconstructor", None)
        return super().from_pretrained(pretrained_model_name_or_path, **kwargs)

    @property
    def engine(self) -> Engine:
        """An engine that runs the components as they are now."""
        limits = {"identity_limit": self.config.identity_limit, "crop_factor": self.config.crop_factor}
        return Engine(**self.components, **limits, device=self._execution_device, callbacks=self.callbacks)
