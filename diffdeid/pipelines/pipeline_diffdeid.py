"""A picture in, the same picture with nobody's faces out (paper §3; the symbols are those of docs/conventions.md)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from diffusers import DiffusionPipeline, SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Tensor

from diffdeid.errors import ConfigurationError, NoFaceFoundError, NoIdentityFoundError
from diffdeid.geometry.align import chip_matrix, ffhq_matrix, sample, warp
from diffdeid.geometry.boxes import bounding_box
from diffdeid.geometry.composite import FEATHER, cover, paste
from diffdeid.geometry.eyes import gaze_from_iris
from diffdeid.geometry.guides import depth_in, face_region, mouth_region
from diffdeid.geometry.landmarks import LIPS_OUTER
from diffdeid.geometry.registration import displace, offsets
from diffdeid.geometry.seam import match
from diffdeid.geometry.surroundings import surroundings
from diffdeid.imaging import to_uint8_array
from diffdeid.models.conditioning import exchange_identity, hide_skin_details, place_marks, render_conditions
from diffdeid.models.context_encoder import ContextEncoderModel
from diffdeid.models.face_analyser import FaceAnalyserModel
from diffdeid.models.face_recognition import FaceRecognitionModel
from diffdeid.models.face_reconstructor import FaceReconstructorModel
from diffdeid.models.fitting import fit
from diffdeid.models.lds import LDSModel
from diffdeid.models.morphable_model import MorphableModel
from diffdeid.models.texture_encoder import TextureEncoderModel, TextureEncoderOutput
from diffdeid.models.unet import DiffDeIDUNet2DModel
from diffdeid.pipelines.loading import SafeHubMixin
from diffdeid.pipelines.pipeline_lds import LDSPipeline
from diffdeid.pipelines.pipeline_output import DiffDeIDPipelineOutput, FaceReport
from diffdeid.structures import Face, FaceCrop, MorphableCoefficients, NewIdentity


@dataclass(frozen=True)
class SourceFaces:
    """The faces of a picture that can be de-identified, as a batch.

    Attributes:
        crops: aligned crops of the picture, one a face.
        landmarks: `(F, 468, 3)` in crop pixels.
        images: `(F, 3, S, S)` in [-1, 1].
        masks: `(F, 1, S, S)`, 1 where the face is erased.
        coefficients: ρ of the faces.
        identity: `(F, 128)` z_id of the faces.
        context: `(F, context_dim)`, what the surroundings tell of the people; `None` without a `context_encoder`.
    """

    crops: list[FaceCrop]
    landmarks: np.ndarray
    images: Tensor
    masks: Tensor
    coefficients: MorphableCoefficients
    identity: Tensor
    context: Tensor | None = None

    def one(self, index: int) -> SourceFaces:
        """A batch of one of them."""
        row = slice(index, index + 1)
        return SourceFaces(
            self.crops[row],
            self.landmarks[row],
            self.images[row],
            self.masks[row],
            MorphableCoefficients.unpack(self.coefficients.pack()[row]),
            self.identity[row],
            None if self.context is None else self.context[row],
        )


@dataclass(frozen=True)
class Attempt:
    """A generated face and what is known about it.

    Attributes:
        patch: `(S, S, 3)` uint8 crop.
        opacity: `(S, S)`, 0…1, where it replaces the picture.
        result: `(S, S, 3)` uint8 crop of the picture with the patch in it.
        identity_distance: 1 - cosine to the source, `None` when it could not be measured.
        problem: why it must not be used, `None` when it may.
        level: whose bound of the distance the new identity keeps; that which was asked for when the identity was given.
    """

    patch: np.ndarray
    opacity: np.ndarray
    result: np.ndarray
    identity_distance: float | None
    problem: str | None
    level: int | None = None

    @classmethod
    def failed(cls, crop: np.ndarray, problem: str) -> Attempt:
        """An attempt that brought nothing to replace the crop with."""
        return cls(crop, np.zeros(crop.shape[:2], np.float32), crop, None, problem)


class DiffDeIDPipeline(SafeHubMixin, DiffusionPipeline):
    r"""De-identifies every face of a picture and leaves the rest bit-identical.

    The new person is drawn blind, unless for `attributes="source"`: from p(z, α | K), where K is what the result shows or keeps
    of the source anyway: surroundings, expression, pose, light and the tone of the skin. The source's own embedding
    only refuses draws that are too near. So, but for these refusals, a result tells no more about the source than K does
    (data-processing inequality).

    Every result is checked: found again, finite, and farther from the source than `identity_limit`. A face that fails
    `max_attempts` times, or that cannot be reconstructed, is covered.

    Args:
        unet: denoiser ε_θ(Z_t ⊕ I'_3d, E_t(I_m), C).
        texture_encoder: E_t.
        scheduler: takes the noise out.
        morphable_model: ρ -> head.
        face_recognition: z_id, and the judge of every result.
        face_analyser: finds faces; without it pass `faces` with landmarks and irises.
        reconstructor: ρ by a network, for `reconstruction="network"`.
        lds, lds_scheduler: sample identities, unless `identity` is passed.
        context_encoder: what the surroundings tell of a person, for `attributes="context"`.
        identity_limit: smallest accepted 1 - cosine between source and result. The released value lets one in a thousand pairs
            of different people pass for the same person.
        crop_factor: side of the crop in FFHQ squares.
    """

    model_cpu_offload_seq = "reconstructor->context_encoder->face_recognition->texture_encoder->unet"
    _exclude_from_cpu_offload = ["face_analyser", "morphable_model", "lds"]  # small, and used outside `forward`
    _optional_components = ["face_analyser", "reconstructor", "lds", "lds_scheduler", "context_encoder"]
    _callback_tensor_inputs = ["latents"]
    max_attempts = 4
    _guidance_scale, _num_timesteps = 1.0, 0  # until `__call__` says otherwise: stages work without it

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
        }
        for name, (component, base) in components.items():
            if not (isinstance(component, base) or (component is None and name in self._optional_components)):
                raise TypeError(f"`{name}` must be a `{base.__name__}`, got `{type(component).__name__}`.")
        self.register_modules(**{name: component for name, (component, _) in components.items()})
        if lds is not None and lds.config.tone_dim != morphable_model.config.num_tone:
            raise ConfigurationError(
                f"The `lds` is told {lds.config.tone_dim} numbers of the tone of the skin, and `morphable_model` has "
                f"{morphable_model.config.num_tone}: more of the albedo would tell who somebody is. Train an `lds` for this head."
            )
        self.register_to_config(identity_limit=identity_limit, crop_factor=crop_factor)
        self.size = getattr(unet.config, "sample_size", 256)

    @property
    def guidance_scale(self) -> float:
        return self._guidance_scale

    @property
    def num_timesteps(self) -> int:
        return self._num_timesteps

    @property
    def identity_sampler(self) -> LDSPipeline:
        """The LDS as a pipeline of its own, on the same weights."""
        if self.lds is None or self.lds_scheduler is None:
            raise ConfigurationError("This pipeline has no `lds` and `lds_scheduler` to sample identities with. Pass `identity`.")
        sampler = LDSPipeline(self.lds, self.lds_scheduler)
        sampler.set_progress_bar_config(disable=True)
        return sampler

    def check_inputs(
        self, level, num_images_per_prompt, attributes, fallback, reconstruction, output_type="pil", callback_inputs=()
    ):
        """Raise for arguments that make no sense."""
        if not 1 <= level <= 10:
            raise ValueError(f"`level` must be between 1 and 10, got {level}.")
        if num_images_per_prompt < 1:
            raise ValueError(f"`num_images_per_prompt` must be at least 1, got {num_images_per_prompt}.")
        if attributes not in ("context", "any", "source"):
            raise ValueError(f"`attributes` must be 'context', 'any' or 'source', got {attributes!r}.")
        if fallback not in ("solid", "mosaic", "blur"):
            raise ValueError(f"`fallback` must be 'solid', 'mosaic' or 'blur', got {fallback!r}.")
        if output_type not in ("pil", "np", "pt"):
            raise ValueError(f"`output_type` must be 'pil', 'np' or 'pt', got {output_type!r}.")
        self._check_reconstruction(reconstruction)
        unknown = set(callback_inputs) - set(self._callback_tensor_inputs)
        if unknown:
            raise ValueError(
                f"`callback_on_step_end_tensor_inputs` may hold {self._callback_tensor_inputs}, got {sorted(unknown)}."
            )

    def detect_faces(self, picture: np.ndarray, faces: list[Face] | None = None) -> list[Face]:
        """Faces of a `(H, W, 3)` uint8 picture with landmarks where they can be placed; completes `faces` when given."""
        if self.face_analyser is None:
            if faces is None:
                raise ConfigurationError("This pipeline has no `face_analyser` to find faces with. Pass `faces`.")
            return faces
        return self.face_analyser(picture, faces)

    def _check_reconstruction(self, reconstruction: str) -> None:
        if reconstruction not in ("fit", "network"):
            raise ValueError(f"`reconstruction` must be 'fit' or 'network', got {reconstruction!r}.")
        if reconstruction == "network" and self.reconstructor is None:
            raise ConfigurationError("This pipeline has no `reconstructor`. Pass `reconstruction='fit'`.")

    @torch.no_grad()
    def reconstruct(
        self,
        picture: np.ndarray,
        faces: list[Face],
        keep_mouth: bool = False,
        reconstruction: Literal["fit", "network"] = "fit",
        coefficients: Tensor | None = None,
        others: Sequence[Face] = (),
    ) -> SourceFaces:
        """Crop faces that have landmarks and irises, find their coefficients (or unpack given `(F, 261)`) and identities.

        What their surroundings tell is found out, too; `others`, all faces of the picture, are erased from them.
        """
        self._check_reconstruction(reconstruction)
        crops = [self.crop(picture, face) for face in faces]
        images, landmarks, placed = self._prepare_crops(crops, faces)
        if coefficients is not None:
            found = MorphableCoefficients.unpack(coefficients.to(images.device, torch.float32))
        elif reconstruction == "fit":
            found = fit(self.morphable_model, *placed, (images.permute(0, 2, 3, 1) + 1) / 2)
        else:
            found = self.regress(images, *placed)
        masks = self.masks(landmarks, keep_mouth)
        context = self.encode_context(picture, faces, others)
        return SourceFaces(crops, landmarks, images, masks, found, self.embed(images, landmarks), context)

    def encode_context(self, picture: np.ndarray, faces: Sequence[Face], others: Sequence[Face] = ()) -> Tensor | None:
        """What the surroundings of faces tell of the people, `(F, context_dim)`; all these faces and `others` are erased."""
        if self.context_encoder is None:
            return None
        contexts = []
        for face in faces:  # one by one: a crowd takes no more memory than a face
            crop = torch.from_numpy(surroundings(picture, face, [*faces, *others])).permute(2, 0, 1)[None]
            seen = crop.to(self._execution_device, self.context_encoder.dtype) / 127.5 - 1
            contexts.append(self.context_encoder(seen).context.float())
        return torch.cat(contexts)

    def regress(self, images: Tensor, landmarks: Tensor, iris: Tensor) -> MorphableCoefficients:
        """ρ by the `reconstructor`, of crops `(F, 3, S, S)` in [-1, 1]; the irises are known to the pixel."""
        found = self.reconstructor(images.to(self.reconstructor.dtype)).coefficients
        return replace(found, gaze=gaze_from_iris(landmarks, iris))

    def crop(self, picture: np.ndarray, face: Face) -> FaceCrop:
        """The aligned crop of a face that has landmarks."""
        matrix = ffhq_matrix(face.landmarks, self.size, self.config.crop_factor)
        return FaceCrop(warp(picture, matrix, self.size), matrix)

    def masks(self, landmarks: np.ndarray, keep_mouth: bool) -> Tensor:
        """What is erased, `(F, 1, S, S)` 0 or 1, of crops with landmarks `(F, 468, 3)` in their pixels."""
        masks = np.stack([self._erased(points, keep_mouth) for points in landmarks])
        return torch.from_numpy(masks)[:, None].to(self._execution_device)

    def _prepare_crops(self, crops: list[FaceCrop], faces: Sequence[Face]) -> tuple[Tensor, np.ndarray, tuple[Tensor, Tensor]]:
        """Images `(F, 3, S, S)` in [-1, 1], landmarks in them, and the tensors of landmarks and irises that fits take."""
        landmarks = np.stack([crop.to_crop(face.landmarks) for crop, face in zip(crops, faces, strict=True)])
        iris = np.stack([crop.to_crop(face.iris) for crop, face in zip(crops, faces, strict=True)])
        device = self._execution_device
        placed = torch.from_numpy(landmarks).float().to(device), torch.from_numpy(iris).float().to(device)
        return self._to_tensor(crops), landmarks, placed

    def _to_tensor(self, crops: list[FaceCrop]) -> Tensor:
        stacked = torch.from_numpy(np.stack([crop.image for crop in crops])).to(self._execution_device)
        return stacked.permute(0, 3, 1, 2).float() / 127.5 - 1

    def _erased(self, landmarks: np.ndarray, keep_mouth: bool) -> np.ndarray:
        face = face_region(landmarks, self.size)
        return face * (1 - mouth_region(landmarks, self.size)) if keep_mouth else face

    def embed(self, images: Tensor, landmarks: np.ndarray) -> Tensor:
        """z_id `(B, 128)` of crops `(B, 3, S, S)` in [-1, 1] with landmarks `(B, 468, 2+)` in their pixels."""
        matrices = torch.from_numpy(np.stack([chip_matrix(points) for points in landmarks]))
        chips = sample(images, matrices, 150)
        return self.face_recognition(chips.to(self.face_recognition.dtype)).embedding.float()

    def sample_identity(
        self,
        source: SourceFaces,
        level: int,
        attributes: Literal["context", "any", "source"],
        generator: torch.Generator,
        others: Tensor | None = None,
        attempt: int = 1,
        margin: float = 0.0,
    ) -> NewIdentity:
        """Draw a new identity for a source (a batch of one), unless for "source" blind to it but for what is too near.

        Args:
            source: the face; all rows of its `identity` are the source's.
            level: 1…10, see `least_distance`.
            attributes: "context": people who fit K; "any": anybody; "source": people of the source's attributes.
            generator: source of the noise.
            others: `(n, 128)` further people whom nobody may resemble.
            attempt, margin: which attempt at this face it is, and how far beyond the limit to stay, see `LDSPipeline.draw`.
        """
        sampler, limit = self.identity_sampler, self.config.identity_limit
        conditions = self.identity_conditions(source, attributes)
        return sampler.draw(
            source.identity, level, limit, conditions, others, generator=generator, attempt=attempt, margin=margin
        )

    def identity_conditions(self, source: SourceFaces, attributes: Literal["context", "any", "source"]) -> Tensor | None:
        """What the identity sampler is told of a source (a batch of one), as `LDSModel.conditions` gives it."""
        self.check_attributes(attributes)
        if attributes == "any":
            return None
        if attributes == "source":
            return self.lds.conditions(attributes=self.lds.attributes(source.identity[:1].to(self.lds.dtype)).float())
        return self.lds.conditions(source.context, source.coefficients)

    def check_attributes(self, attributes: Literal["context", "any", "source"]) -> None:
        """Raise `ConfigurationError` if this pipeline has not what it takes to draw people of such attributes."""
        if attributes == "context" and self.context_encoder is None:
            raise ConfigurationError("This pipeline has no `context_encoder` to look around faces with. Pass `attributes='any'`.")
        if attributes == "source" and not self.lds.config.attribute_names:
            raise ConfigurationError("The `lds` of this pipeline knows no attributes. Pass `attributes='context'` or 'any'.")

    def encode_texture(self, images: Tensor, masks: Tensor) -> TextureEncoderOutput:
        """K and V of the masked pictures I_m: images `(B, 3, S, S)`, masks `(B, 1, S, S)`. Once a picture, used in every step."""
        masked = torch.cat([images * (1 - masks), 2 * masks - 1], dim=1)
        keys, values = self.texture_encoder(masked.to(self.texture_encoder.dtype))
        return TextureEncoderOutput(*([level.to(self.unet.dtype) for level in part] for part in (keys, values)))

    def prepare_conditioning(
        self, coefficients: MorphableCoefficients, shape: Tensor, masks: Tensor, keep_mouth: bool
    ) -> tuple[MorphableCoefficients, Tensor]:
        """ρ' = {α', β, δ', γ, p, ω} and the spatial conditions `(B, 9, S, S)` rendered from it; δ' is the skin's tone alone."""
        anchor = list(LIPS_OUTER) if keep_mouth else list(range(468))
        changed = exchange_identity(self.morphable_model, hide_skin_details(self.morphable_model, coefficients), shape, anchor)
        maps = render_conditions(self.morphable_model, changed, self.size).maps
        return changed, torch.cat([2 * masks - 1, maps], dim=1)

    def prepare_latents(self, batch_size: int, generator: torch.Generator) -> Tensor:
        """Pure noise `(B, 3, S, S)`, float32 whatever the denoiser is: nothing of the source is in it."""
        shape = (batch_size, self.unet.config.in_channels, self.size, self.size)
        noise = randn_tensor(shape, generator=generator, device=self._execution_device, dtype=torch.float32)
        return noise * self.scheduler.init_noise_sigma

    def denoise(
        self,
        latents: Tensor,
        images: Tensor,
        masks: Tensor,
        spatial_conditions: Tensor,
        identity: Tensor,
        coefficients: Tensor,
        texture: TextureEncoderOutput,
        num_inference_steps: int,
        callback_on_step_end: Callable | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> Tensor:
        """Noise -> faces `(B, 3, S, S)`; outside the masks the network sees the picture.

        Only the network works in its precision: what it says is added up in that of the latents.
        """
        dtype = self.unet.dtype
        spatial_conditions, identity, coefficients = (x.to(dtype) for x in (spatial_conditions, identity, coefficients))
        guided = self._guidance_scale != 1
        self.scheduler.set_timesteps(num_inference_steps, device=latents.device)
        self._num_timesteps = len(self.scheduler.timesteps)
        with self.progress_bar(total=num_inference_steps) as progress_bar:
            for step, t in enumerate(self.scheduler.timesteps):
                # 1. predict, with and without the identity when guided
                seen = (masks * self.scheduler.scale_model_input(latents, t) + (1 - masks) * images).to(dtype)
                prediction = self.unet(seen, t, spatial_conditions, identity, coefficients, texture).sample.to(latents.dtype)
                if guided:
                    nobody = self.unet(seen, t, spatial_conditions, torch.zeros_like(identity), coefficients, texture).sample
                    prediction = nobody + self._guidance_scale * (prediction - nobody)

                # 2. x_t -> x_t-1
                latents = self.scheduler.step(prediction, t, latents).prev_sample
                if callback_on_step_end is not None:
                    tensors = {}
                    for name in callback_on_step_end_tensor_inputs:
                        tensors[name] = locals()[name]
                    latents = callback_on_step_end(self, step, t, tensors).pop("latents", latents)
                progress_bar.update()
        return latents

    def measure_offsets(self, source: SourceFaces, generated: Tensor, coefficients: MorphableCoefficients) -> np.ndarray:
        """How far the marks of a generated face `(1, 3, S, S)` lie from where ρ' puts them: a field `(S, S, 2)` for `displace`.

        Zero where no face is seen, which is for `verify` to judge, or where there is no `face_analyser` to see one.
        """
        meant = place_marks(self.morphable_model, coefficients, self.size)[0].cpu().numpy()
        face, result = None, self.composite(source, generated)[2]
        if self.face_analyser is not None:
            face = self.face_analyser.find_again(result, meant[:468])
            if face.landmarks is not None:  # once more, from a crop that does not depend on where they were meant to be
                face = self.face_analyser.find_again(result, face.landmarks)
        if face is None or face.landmarks is None:
            return np.zeros((self.size, self.size, 2), np.float32)
        seen = np.concatenate([face.landmarks[:, :2], face.iris[:, 0]])
        return offsets(seen, meant, source.masks[0, 0].cpu().numpy())

    def composite(self, source: SourceFaces, generated: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """One generated face `(1, 3, S, S)` -> the patch, its opacity `(S, S)`, and the crop with the patch in it, both uint8."""
        patch = ((generated[0].float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy()
        ramp = np.clip(depth_in(source.masks[0, 0].cpu().numpy()) / (FEATHER * self.size), 0, 1)
        opacity = ramp * ramp * (3 - 2 * ramp)
        crop = source.crops[0].image
        mixed = crop + opacity[..., None] * (patch.astype(np.float32) - crop)
        return patch, opacity, mixed.round().astype(np.uint8)

    def find_again(self, result: np.ndarray, landmarks: np.ndarray) -> np.ndarray | None:
        """Landmarks `(468, 3)` of the face in a result, `(S, S, 3)` uint8 crop, given the source's; `None` if there is none."""
        if self.face_analyser is None:
            return landmarks
        return self.face_analyser(result, [Face(bounding_box(landmarks))])[0].landmarks

    def verify(self, source: SourceFaces, result: np.ndarray) -> tuple[float | None, str | None]:
        """Distance of a result, `(S, S, 3)` uint8 crop, from its source, and what is wrong with it (`None`: nothing)."""
        landmarks = self.find_again(result, source.landmarks[0])
        if landmarks is None:
            return None, "no face was found in the result"
        identity = self.embed(self._to_tensor([FaceCrop(result, source.crops[0].matrix)]), landmarks[None])[0]
        distance = 1 - float((source.identity @ identity).max())
        if not distance >= self.config.identity_limit:
            return distance, f"too near to the source ({distance:.2f}, limit {self.config.identity_limit:.2f})"
        return distance, None

    @torch.no_grad()
    def __call__(
        self,
        image: Image.Image | np.ndarray | Tensor | list,
        level: int = 7,
        num_images_per_prompt: int = 1,
        num_inference_steps: int = 8,
        guidance_scale: float = 1.0,
        keep_mouth: bool = False,
        attributes: Literal["context", "any", "source"] = "context",
        fallback: Literal["solid", "mosaic", "blur"] = "solid",
        min_face: float = 0,
        reconstruction: Literal["fit", "network"] = "fit",
        faces: list[Face] | None = None,
        coefficients: Tensor | None = None,
        identity: tuple[Tensor, Tensor] | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: Literal["pil", "np", "pt"] = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> DiffDeIDPipelineOutput | tuple:
        """De-identify pictures.

        The result is a function of the arguments, the state of the generator included; a picture with a generator of its own
        gives the same result alone and in a list.

        Args:
            image: PIL image, uint8 array `(H, W, 3)`, float array or tensor `(3, H, W)` in [0, 1], or a list of them.
            level: how far the new identity is from the source at least, 1…10, see `pipeline_lds.least_distance`; a bound that
                none of twenty draws meets is lowered, and the report says so.
            num_images_per_prompt: candidates per picture, each with other people.
            num_inference_steps: denoising steps.
            guidance_scale: 1 is off; above, the identity is exaggerated (1…1.5 is sensible) at twice the cost.
            keep_mouth: leave the mouth of the source (paper) instead of erasing it too; gives some of the identity away.
            attributes: whom the new identity is drawn from. "context": people who fit what the result shows or keeps anyway
                (hair, neck, clothes, expression, pose, light, tone of the skin); "any": anybody, which gives least away and often
                contradicts hair and body; "source": people of the sex, age, descent, beard and smile that the erased face seems
                to have, which gives most away.
            fallback: how faces that cannot be de-identified are covered. Only "solid" protects.
            min_face: faces whose box is narrower or lower than this many pixels are covered.
            reconstruction: "fit" finds ρ by least squares on landmarks and pixels, "network" by the `reconstructor`.
            faces: known faces of the picture; a box is enough. For a list of pictures, here and in the next two, a list with an
                entry for each.
            coefficients: `(F, 261)` known coefficients of those of its faces that have landmarks.
            identity: z' `(F, 128)` and α' `(F, 80)` for them, instead of sampled ones.
            generator: randomness, one or one per picture; fresh when `None`.
            output_type: "pil", "np" (a list of uint8 `(H, W, 3)`) or "pt" (`(B, 3, H, W)` in [0, 1], or a list of `(3, H, W)`
                where sizes differ).
            return_dict: `False` gives the tuple `(images, faces)`.
            callback_on_step_end: called as `f(pipe, step, timestep, {"latents": …})`, as in diffusers.
            callback_on_step_end_tensor_inputs: what it gets.

        Raises:
            NoFaceFoundError: a picture without a face.
        """
        # 0. check inputs
        self.check_inputs(
            level, num_images_per_prompt, attributes, fallback, reconstruction, output_type, callback_on_step_end_tensor_inputs
        )
        self._guidance_scale = guidance_scale
        if generator is None:
            generator = torch.Generator()
            generator.seed()
        images = image if isinstance(image, list) else [image]
        generators = generator if isinstance(generator, list) else [generator] * len(images)
        if len(generators) != len(images):
            raise ValueError(f"`generator` must be one or one per picture, got {len(generators)} for {len(images)} pictures.")
        known = zip(
            _of_each(image, "faces", faces),
            _of_each(image, "coefficients", coefficients),
            _of_each(image, "identity", identity),
            strict=True,
        )

        results, reports = [], []
        for one_image, generator, (faces, coefficients, identity) in zip(images, generators, known, strict=True):
            picture = to_uint8_array(one_image)

            # 1. detect faces
            found = self.detect_faces(picture, faces)
            if not found:
                raise NoFaceFoundError("No face was found in the picture, so nothing can be said about it being de-identified.")
            problems = [self._problem(face, min_face) for face in found]
            placed = [index for index, problem in enumerate(problems) if problem is None]

            # 2. reconstruct, and encode the texture
            source = None
            if placed:
                usable = [found[index] for index in placed]
                source = self.reconstruct(picture, usable, keep_mouth, reconstruction, coefficients, found)
            singles = {index: source.one(row) for row, index in enumerate(placed)}
            textures = {index: self.encode_texture(single.images, single.masks) for index, single in singles.items()}

            for _ in range(num_images_per_prompt):
                result, candidate = picture, []
                for index, face in enumerate(found):
                    report = FaceReport(tuple(face.box.tolist()), face.landmarks, fallback, None, None, 0, problems[index])
                    for number in range(1, 1 + self.max_attempts) if index in singles else ():
                        # 3. - 6. sample an identity, condition, denoise, check
                        attempt = self.deidentify(
                            singles[index], textures[index], level, generator, keep_mouth, attributes, num_inference_steps,
                            None if identity is None else tuple(part[placed.index(index), None] for part in identity), number,
                            callback_on_step_end, callback_on_step_end_tensor_inputs,
                        )  # fmt: skip
                        report = replace(report, attempts=number, reason=attempt.problem)
                        if attempt.problem is None:
                            distance = attempt.identity_distance
                            report = replace(report, method="diffusion", level=attempt.level, identity_distance=distance)
                            result = paste(result, attempt.patch, attempt.opacity, singles[index].crops[0].matrix)
                            break
                    else:
                        result = cover(result, face, fallback)
                    candidate.append(report)
                results.append(result)
                reports.append(candidate)

        # 7. output
        self.maybe_free_model_hooks()
        if output_type == "pil":
            results = [Image.fromarray(result) for result in results]
        elif output_type == "pt":
            results = [torch.from_numpy(result).permute(2, 0, 1).float() / 255 for result in results]
            if len({result.shape for result in results}) == 1:
                results = torch.stack(results)
        return DiffDeIDPipelineOutput(images=results, faces=reports) if return_dict else (results, reports)

    def deidentify(
        self,
        source: SourceFaces,
        texture: TextureEncoderOutput,
        level: int,
        generator: torch.Generator,
        keep_mouth: bool,
        attributes: Literal["context", "any", "source"],
        num_inference_steps: int,
        identity: tuple[Tensor, Tensor] | None = None,
        number: int = 1,
        callback_on_step_end: Callable | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> Attempt:
        """One attempt at one face (a batch of one); `number` counts attempts from 1.

        `identity` is z' `(1, 128)` and α' `(1, 80)` instead of sampled ones.
        """
        # 3. sample an identity
        if identity is None:
            try:
                drawn = self.sample_identity(source, level, attributes, generator, attempt=number)
            except NoIdentityFoundError as error:
                return Attempt.failed(source.crops[0].image, str(error))
            identity, level = (drawn.embedding, drawn.shape), drawn.level
        z, shape = (part.to(source.identity) for part in identity)

        # 4. prepare conditions and noise
        coefficients, spatial_conditions = self.prepare_conditioning(source.coefficients, shape, source.masks, keep_mouth)
        latents = self.prepare_latents(1, generator)

        # 5. denoise
        generated = self.denoise(
            latents, source.images, source.masks, spatial_conditions, z, coefficients.pack(), texture,
            num_inference_steps, callback_on_step_end, callback_on_step_end_tensor_inputs,
        )  # fmt: skip

        # 6. register, match the colour of the skin around, composite and check
        if not torch.isfinite(generated).all():
            return Attempt.failed(source.crops[0].image, "the network returned values that are not finite")
        generated = displace(generated, self.measure_offsets(source, generated, coefficients))
        face = ((generated[0].float().clamp(-1, 1) + 1) / 2).permute(1, 2, 0).cpu().numpy()
        matched = match(face, source.crops[0].image, source.masks[0, 0].cpu().numpy())
        patch, opacity, result = self.composite(source, torch.from_numpy(matched * 2 - 1).permute(2, 0, 1)[None])
        return Attempt(patch, opacity, result, *self.verify(source, result), level)

    def _problem(self, face: Face, min_face: float) -> str | None:
        """Why a face cannot be de-identified, if it cannot."""
        if min(face.box[2:] - face.box[:2]) < min_face:
            return f"smaller than {min_face:g} pixels"
        if face.landmarks is None or face.iris is None:
            return "its landmarks could not be placed"
        return None


def _of_each(image, name: str, value) -> list:
    """What is known of each picture: `value` itself for one, its entries for a list of pictures."""
    if not isinstance(image, list):
        return [value]
    if value is None:
        return [None] * len(image)
    if not isinstance(value, list) or len(value) != len(image) or any(isinstance(one, Face) for one in value):
        raise ValueError(f"`{name}` must be a list with an entry for each of the {len(image)} pictures of the list `image`.")
    return value
