"""The stages on the components of a pipeline."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, fields, replace
from threading import Lock
from typing import Literal

import numpy as np
import torch
from diffusers import SchedulerMixin
from torch import Tensor

from diffdeid import __version__
from diffdeid.errors import ConfigurationError
from diffdeid.geometry.boxes import bounding_box
from diffdeid.geometry.seam import match
from diffdeid.models.conditioning import place_marks
from diffdeid.models.context_encoder import ContextEncoderModel
from diffdeid.models.face_analyser import FaceAnalyserModel
from diffdeid.models.face_recognition import FaceRecognitionModel
from diffdeid.models.face_reconstructor import FaceReconstructorModel
from diffdeid.models.lds import LDSModel
from diffdeid.models.morphable_model import MorphableModel
from diffdeid.models.texture_encoder import TextureEncoderModel, TextureEncoderOutput
from diffdeid.models.unet import DiffDeIDUNet2DModel
from diffdeid.options import DeidentifyOptions, VideoOptions
from diffdeid.stages import reconstruct
from diffdeid.stages.compose import lay_over_crop
from diffdeid.stages.condition import Conditions, encode_texture, render_new_heads
from diffdeid.stages.denoise import NO_CALLBACKS, Callbacks, denoise, prepare_latents
from diffdeid.stages.identity import Casting, IdentitySampler, conditions_of
from diffdeid.stages.register import from_unit, register, to_unit
from diffdeid.stages.verify import verify
from diffdeid.structures import Attempt, Face, FaceBatch, FaceCrop, FaceJob, MorphableCoefficients, NewIdentity

ONE_AT_A_TIME = Lock()  # of the threads; to run an offloaded network moves others off the accelerator, and itself in the end
Filter = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Painted:
    """Faces as the network painted them.

    Attributes:
        source: in whose place they are.
        faces: `(B, 3, S, S)` in [-1, 1].
        marks: `(B, 470, 2)`, where landmarks and irises are meant to be, in crop pixels.
        maps: `(B, 9, S, S)`, the spatial conditions that they were painted by.
    """

    source: FaceBatch
    faces: Tensor
    marks: np.ndarray
    maps: Tensor

    def __len__(self) -> int:
        return len(self.faces)

    def pick(self, rows: Sequence[int]) -> Painted:
        """Some of the faces."""
        return Painted(self.source.pick(rows), self.faces[rows], self.marks[rows], self.maps[rows])


@dataclass(frozen=True)
class Components:
    """The parts of a pipeline (see `DiffDeIDPipeline`) and the device they are on; its methods are the stages, in their order.

    The methods expect that gradients are off.
    """

    unet: DiffDeIDUNet2DModel
    texture_encoder: TextureEncoderModel
    scheduler: SchedulerMixin
    morphable_model: MorphableModel
    face_recognition: FaceRecognitionModel
    face_analyser: FaceAnalyserModel | None
    reconstructor: FaceReconstructorModel | None
    lds: LDSModel | None
    lds_scheduler: SchedulerMixin | None
    context_encoder: ContextEncoderModel | None
    identity_limit: float
    crop_factor: float
    device: torch.device

    @property
    def size(self) -> int:
        """Side S of the crops."""
        return getattr(self.unet.config, "sample_size", 256)

    @property
    def sampler(self) -> IdentitySampler:
        """Draws identities."""
        if self.lds is None or self.lds_scheduler is None:
            raise ConfigurationError("This pipeline has no `lds` and `lds_scheduler` to sample identities with. Pass `identity`.")
        return IdentitySampler(self.lds, self.lds_scheduler, self.device)

    def digest(self) -> str:
        """A hash of all that results depend on, except pictures, options and seeds."""
        total = hashlib.blake2b(digest_size=16)
        total.update(repr((__version__, self.identity_limit, self.crop_factor)).encode())
        for part in (getattr(self, entry.name) for entry in fields(self)):
            if isinstance(part, SchedulerMixin | FaceAnalyserModel):
                total.update(repr(sorted(part.config.items())).encode())
            if isinstance(part, FaceAnalyserModel):
                for graph in part.graphs.values():
                    total.update(graph)
            elif isinstance(part, torch.nn.Module):
                for name, tensor in part.state_dict().items():
                    total.update(f"{name} {tensor.dtype}".encode())
                    total.update(tensor.cpu().flatten().view(torch.uint8).numpy().tobytes())
        return total.hexdigest()

    def check(self, options: DeidentifyOptions, draws: bool = True) -> None:
        """Raise `ConfigurationError` for options that these components cannot honour; `draws`: identities are not all given."""
        if options.reconstruction == "network" and self.reconstructor is None:
            raise ConfigurationError("This pipeline has no `reconstructor`. Pass `reconstruction='fit'`.")
        if draws:
            known = self.sampler.lds.config.attribute_names
            if options.attributes == "context" and self.context_encoder is None:
                raise ConfigurationError(
                    "This pipeline has no `context_encoder` to look around faces with. Pass `attributes='any'`."
                )
            if options.attributes == "source" and not known:
                raise ConfigurationError("The `lds` of this pipeline knows no attributes. Pass `attributes='context'` or 'any'.")

    def crop(self, picture: np.ndarray, face: Face) -> FaceCrop:
        """The aligned crop of a face that has landmarks."""
        return reconstruct.crop_face(picture, face, self.size, self.crop_factor)

    def reconstruct(self, jobs: Sequence[FaceJob], options: DeidentifyOptions) -> FaceBatch:
        """Faces that have landmarks and irises -> a batch, with the context that `options.attributes` asks for."""
        crops, images, placed = self._cut([job.picture for job in jobs], [job.face for job in jobs])
        landmarks = placed[0].cpu().numpy()
        known = [job.coefficients for job in jobs]
        if any(one is None for one in known):
            found = self._find(images, placed, options.reconstruction).pack()
            known = [found[row, None] if one is None else one for row, one in enumerate(known)]
        coefficients = MorphableCoefficients.unpack(torch.cat([one.to(self.device, torch.float32) for one in known]))
        masks = reconstruct.mask_crops(landmarks, self.size, options.keep_mouth, self.device)
        context = None
        if options.attributes == "context" and self.context_encoder is not None:
            seen = [  # one by one: a crowd takes no more memory than a face
                reconstruct.encode_context(self.context_encoder, job.picture, job.face, job.others, self.device) for job in jobs
            ]
            context = torch.cat(seen)
        return FaceBatch(crops, landmarks, images, masks, coefficients, self.embed(images, landmarks), context)

    def follow(
        self, pictures: Sequence[np.ndarray], faces: Sequence[Face], reference: MorphableCoefficients, options: VideoOptions
    ) -> FaceBatch:
        """Faces of frames, with ρ̂ of their smoothed landmarks; skin and light are those of a reference, a row a frame."""
        crops, images, placed = self._cut(pictures, faces)
        landmarks = placed[0].cpu().numpy()
        with ONE_AT_A_TIME:
            coefficients = reconstruct.follow_coefficients(
                self.morphable_model, self.reconstructor, images, *placed, options.reconstruction, reference, options.follow_light
            )
        masks = reconstruct.mask_crops(landmarks, self.size, options.keep_mouth, self.device)
        return FaceBatch(crops, landmarks, images, masks, coefficients, self.embed(images, landmarks))

    def _cut(self, pictures: Sequence[np.ndarray], faces: Sequence[Face]) -> tuple[list[FaceCrop], Tensor, tuple[Tensor, Tensor]]:
        """Crops, as images too, and the landmarks and irises in them."""
        crops = [self.crop(picture, face) for picture, face in zip(pictures, faces, strict=True)]
        return (
            crops,
            reconstruct.to_tensor([crop.image for crop in crops], self.device),
            reconstruct.place(crops, faces, self.device),
        )

    def _find(
        self, images: Tensor, placed: tuple[Tensor, Tensor], reconstruction: Literal["fit", "network"]
    ) -> MorphableCoefficients:
        with ONE_AT_A_TIME:
            return reconstruct.find_coefficients(self.morphable_model, self.reconstructor, images, *placed, reconstruction)

    def embed(self, images: Tensor, landmarks: np.ndarray) -> Tensor:
        """z_id `(B, 128)` of crops `(B, 3, S, S)` in [-1, 1] with landmarks `(B, 468, 2+)` in their pixels."""
        with ONE_AT_A_TIME:
            return reconstruct.embed(self.face_recognition, images, landmarks)

    def embed_in(self, picture: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
        """z_id `(128,)` of a face in a picture."""
        crop = self.crop(picture, Face(bounding_box(landmarks), landmarks=landmarks))
        images = reconstruct.to_tensor([crop.image], self.device)
        return self.embed(images, crop.to_crop(landmarks)[None])[0].cpu().numpy()

    def castings(
        self, batch: FaceBatch, generators: Sequence[torch.Generator], options: DeidentifyOptions, wanted: Sequence[bool]
    ) -> list[Casting | None]:
        """For each face that wants one, what finds new people for it."""
        if not any(wanted):
            return [None] * len(batch)
        told = conditions_of(self.lds, batch, options.attributes)
        rows = zip(told, generators, wanted, strict=True)
        return [Casting(self.sampler, conditions, generator) if wants else None for conditions, generator, wants in rows]

    def encode_texture(self, images: Tensor, masks: Tensor) -> TextureEncoderOutput:
        """K and V of pictures `(B, 3, S, S)` without what masks `(B, 1, S, S)` erase."""
        return encode_texture(self.texture_encoder, images, masks, self.unet.dtype)

    def prepare_latents(self, generators: Sequence[torch.Generator]) -> Tensor:
        """Pure noise `(B, 3, S, S)`."""
        return prepare_latents(self.unet, self.scheduler, self.size, generators, self.device)

    def paint(
        self,
        batch: FaceBatch,
        people: NewIdentity,
        texture: TextureEncoderOutput,
        latents: Tensor,
        options: DeidentifyOptions,
        callbacks: Callbacks = NO_CALLBACKS,
        shown: Tensor | None = None,
    ) -> Painted:
        """New faces in the place of those of a batch.

        Args:
            people: as many as faces.
            texture: of `encode_texture`.
            latents: of `prepare_latents`.
            callbacks: what is called meanwhile.
            shown: the shapes that are rendered, where they differ from those that the network is told.
        """
        rendered = people.shape if shown is None else shown
        changed, maps = render_new_heads(self.morphable_model, batch.coefficients, rendered, batch.masks, options.keep_mouth)
        told = replace(changed, identity=people.shape).pack()
        scheduler = copy(self.scheduler)  # it remembers its last steps, and somebody else may be painting
        scheduler.set_timesteps(options.num_inference_steps, device=self.device)
        conditions = Conditions(maps, people.embedding, told, texture)
        faces = denoise(self.unet, scheduler, latents, batch, conditions, options.guidance_scale, callbacks)
        return Painted(batch, faces, place_marks(self.morphable_model, changed, self.size).cpu().numpy(), maps)

    def finish(self, painted: Painted, against: Tensor, temporal_filter: Filter | None = None) -> Attempt:
        """Register a generated face, match its colour, lay it over its crop, and check it.

        Args:
            painted: one face.
            against: `(n, 128)`, all that it must not look like.
            temporal_filter: for a frame of a video: generated face `(S, S, 3)` in [0, 1], crop `(S, S, 3)` uint8, mask `(S, S)`
                and landmarks `(468, 3)` -> the face that fits the frame before, its colour matched.
        """
        source, generated, marks = painted.source, painted.faces, painted.marks[0]
        crop, mask, landmarks = source.crops[0], source.masks[0, 0].cpu().numpy(), source.landmarks[0]
        if not torch.isfinite(generated).all():
            nothing, problem = np.zeros(mask.shape, np.float32), "the network returned values that are not finite"
            return Attempt(crop.image, nothing, crop.image, None, problem, painted.maps[0])
        shown = lay_over_crop(generated, crop, mask)[2]
        face = to_unit(register(self.face_analyser, shown, generated, marks, mask))
        if temporal_filter is None:
            matched = match(face, crop.image, mask)
        else:  # after the registration, for landmarks jitter
            matched = temporal_filter(face, crop.image, mask, landmarks)
        patch, opacity, result = lay_over_crop(from_unit(matched), crop, mask)
        seen = self._look(result, landmarks, only_there=temporal_filter is not None)
        with ONE_AT_A_TIME:
            distance, problem = verify(self.face_recognition, result, seen, against, self.identity_limit)
        return Attempt(patch, opacity, result, distance, problem, painted.maps[0])

    def _look(self, result: np.ndarray, landmarks: np.ndarray, only_there: bool) -> np.ndarray | None:
        """Landmarks `(468, 3)` of the face in a result, `(S, S, 3)` uint8 crop, given the source's; `None` if there is none."""
        if self.face_analyser is None:
            return landmarks
        if only_there:
            return self.face_analyser.find_again(result, landmarks).landmarks
        return self.face_analyser(result, [Face(bounding_box(landmarks))])[0].landmarks
