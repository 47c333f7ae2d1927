"""The stages, run on the components of a pipeline."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, fields, replace
from threading import Lock
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import SchedulerMixin
from torch import Tensor

from diffdeid import __version__
from diffdeid.errors import ConfigurationError
from diffdeid.geometry.boxes import bounding_box
from diffdeid.geometry.mask import face_height
from diffdeid.geometry.mouth import match_mouths
from diffdeid.geometry.pixels import from_bytes, on_host, to_bytes, to_tensor
from diffdeid.geometry.rotation import angle_to_camera
from diffdeid.geometry.seam import match, without_colour
from diffdeid.geometry.sharpness import relative_detail, sharpen, soften
from diffdeid.models.conditioning import place_marks
from diffdeid.models.context_encoder import ContextEncoderModel
from diffdeid.models.face_analyser import FaceAnalyserModel
from diffdeid.models.face_parser import FaceParserModel
from diffdeid.models.face_recognition import FaceRecognitionModel
from diffdeid.models.face_reconstructor import FaceReconstructorModel
from diffdeid.models.hand_finder import HandFinderModel
from diffdeid.models.lds import LDSModel
from diffdeid.models.morphable_model import MorphableModel
from diffdeid.models.onnx_model import OnnxModel
from diffdeid.models.refiner import SCALE, RefinerModel
from diffdeid.models.texture_encoder import TextureEncoderModel, TextureEncoderOutput
from diffdeid.models.unet import DiffDeIDUNet2DModel
from diffdeid.options import DeidentifyOptions, VideoOptions
from diffdeid.stages import reconstruct
from diffdeid.stages.compose import lay_before_backdrop, lay_over_crops
from diffdeid.stages.condition import Conditions, encode_texture, render_new_heads
from diffdeid.stages.denoise import NO_CALLBACKS, Callbacks, denoise, prepare_latents
from diffdeid.stages.identity import Casting, IdentitySampler, conditions_of
from diffdeid.stages.refine import enlarged, is_large, refine
from diffdeid.stages.register import register
from diffdeid.stages.verify import EXACT_TURN, STRAYING, allowed_straying, gapes, look, seem_pets, strays, turned_away, verify
from diffdeid.structures import Attempt, Face, FaceBatch, FaceCrop, FaceJob, MorphableCoefficients, NewIdentity

RECOGNISED = 256  # pixels of the crops by which kept people are recognised, whatever size the U-Net takes
FADING_TURN = 10.0  # degrees before `EXACT_TURN` over which mouths are matched less and less
BROKEN = "the network returned values that are not finite"
ONE_AT_A_TIME = Lock()  # for threads: running an offloaded network moves the others, and in the end itself, off the accelerator


@dataclass(frozen=True)
class Painted:
    """A face as the network painted it.

    Attributes:
        source: the face that it replaces, a batch of one.
        face: `(3, S, S)` in [-1, 1].
        marks: `(470, 2)`, where landmarks and irises are meant to be, in crop pixels.
        maps: `(9, S, S)`, the spatial conditions that it was painted from.
    """

    source: FaceBatch
    face: Tensor
    marks: np.ndarray
    maps: Tensor


@dataclass(frozen=True)
class Components:
    """The parts of a pipeline (see `DeidentificationPipeline`) and their device; its methods are the stages, in order.

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
    face_parser: FaceParserModel | None
    hand_finder: HandFinderModel | None
    refiner: RefinerModel | None
    identity_limit: float
    crop_factor: float
    device: torch.device
    callbacks: Callbacks = NO_CALLBACKS

    @property
    def size(self) -> int:
        """Side S of the crops in pixels."""
        return getattr(self.unet.config, "sample_size", 256)

    @property
    def sampler(self) -> IdentitySampler:
        """The identity sampler. Raises `ConfigurationError` if there is no `lds` or `lds_scheduler`."""
        if self.lds is None or self.lds_scheduler is None:
            raise ConfigurationError("This pipeline has no `lds` and `lds_scheduler` to sample identities with. Pass `identity`.")
        return IdentitySampler(self.lds, self.lds_scheduler, self.device)

    def digest(self) -> str:
        """A hash of all that results depend on, except pictures, options and seeds."""
        total = hashlib.blake2b(digest_size=16)
        total.update(repr((__version__, self.identity_limit, self.crop_factor)).encode())
        for part in (getattr(self, entry.name) for entry in fields(self)):
            settings = {} if part is None else getattr(part, "config", {})
            total.update(repr(sorted((name, value) for name, value in settings.items() if name[0] != "_")).encode())
            if isinstance(part, OnnxModel):
                for graph in part.graphs.values():
                    total.update(graph)
            elif isinstance(part, torch.nn.Module):
                for name, tensor in part.state_dict().items():
                    total.update(f"{name} {tensor.dtype}".encode())
                    total.update(tensor.cpu().flatten().view(torch.uint8).numpy().tobytes())
        return total.hexdigest()

    def check(self, options: DeidentifyOptions, draws: bool = True) -> None:
        """Raise `ConfigurationError` if these components do not support the options; `draws` says that identities are drawn."""
        if options.reconstruction == "network" and self.reconstructor is None:
            raise ConfigurationError(
                "This pipeline has no `reconstructor`: packages come without it. Load the folder `weights/diffdeid` of a clone, "
                "which has it, or pass `reconstruction='fit'`."
            )
        if draws:
            known = self.sampler.lds.config.attribute_names
            if options.attributes == "context" and self.context_encoder is None:
                raise ConfigurationError(
                    "This pipeline has no `context_encoder` to look around faces with. Pass `attributes='any'`."
                )
            if options.attributes == "source" and not known:
                raise ConfigurationError("The `lds` of this pipeline has no attributes. Pass `attributes='context'` or 'any'.")

    def crop(self, picture: np.ndarray, face: Face) -> FaceCrop:
        """The aligned crop of a face that has landmarks."""
        return reconstruct.crop_face(picture, face, self.size, self.crop_factor)

    def detailed_crop(self, picture: np.ndarray, face: Face) -> FaceCrop:
        """The same, with `finer` if the face is to be refined."""
        crop = self.crop(picture, face)
        if self.refiner is None or not is_large(crop.matrix):
            return crop
        return replace(crop, finer=reconstruct.crop_face(picture, face, SCALE * self.size, self.crop_factor).image)

    def reconstruct(self, jobs: Sequence[FaceJob], options: DeidentifyOptions, may_refine: bool = False) -> FaceBatch:
        """Faces that have landmarks and irises -> a batch, with the context that `options.attributes` asks for.

        With `may_refine`, new faces in place of large ones will be refined, which takes about .4 s each on two CPU cores.
        """
        pictures, faces = [job.picture for job in jobs], [job.face for job in jobs]
        crop = self.detailed_crop if may_refine else self.crop
        crops = [crop(*one) for one in zip(pictures, faces, strict=True)]
        images, placed = self._placed(crops, faces)
        landmarks = on_host(placed[0])
        known = [job.coefficients for job in jobs]
        if any(one is None for one in known):
            found = self._find(images, placed, options.reconstruction).pack()
            known = [found[row, None] if one is None else one for row, one in enumerate(known)]
        coefficients = MorphableCoefficients.unpack(torch.cat([one.to(self.device, torch.float32) for one in known]))
        depths, front = self._parse(pictures, faces, crops, images, landmarks, options.keep_mouth)
        context = None
        if options.attributes == "context" and self.context_encoder is not None:
            seen = [  # one by one, so that a crowd takes no more memory than one face
                reconstruct.encode_context(self.context_encoder, job.picture, job.face, job.others, self.device) for job in jobs
            ]
            context = torch.cat(seen)
        return FaceBatch(crops, landmarks, images, depths, front, coefficients, self.embed(images, landmarks), context)

    def follow(
        self, pictures: Sequence[np.ndarray], faces: Sequence[Face], reference: MorphableCoefficients, options: VideoOptions
    ) -> FaceBatch:
        """Faces of frames -> a batch, with ρ̂ of smoothed landmarks; skin and light are those of `reference`, a row per frame."""
        crops = [self.crop(*one) for one in zip(pictures, faces, strict=True)]
        images, placed = self._placed(crops, faces)
        landmarks = on_host(placed[0])
        with ONE_AT_A_TIME:
            coefficients = reconstruct.follow_coefficients(
                self.morphable_model, self.reconstructor, images, *placed, options.reconstruction, reference, options.follow_light
            )
        depths, front = self._parse(pictures, faces, crops, images, landmarks, options.keep_mouth)
        return FaceBatch(crops, landmarks, images, depths, front, coefficients, self.embed(images, landmarks))

    def _placed(self, crops: Sequence[FaceCrop], faces: Sequence[Face]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """The crops as a tensor of images, and the landmarks and irises in them."""
        return to_tensor([crop.image for crop in crops], self.device), reconstruct.place(crops, faces, self.device)

    def _find(
        self, images: Tensor, placed: tuple[Tensor, Tensor], reconstruction: Literal["fit", "network"]
    ) -> MorphableCoefficients:
        with ONE_AT_A_TIME:
            return reconstruct.find_coefficients(self.morphable_model, self.reconstructor, images, *placed, reconstruction)

    def _parse(
        self,
        pictures: Sequence[np.ndarray],
        faces: Sequence[Face],
        crops: Sequence[FaceCrop],
        images: Tensor,
        landmarks: np.ndarray,
        keep_mouth: bool,
    ) -> tuple[Tensor, Tensor]:
        """The erased regions of crops, as depths, and what is in front of the faces."""
        depths = reconstruct.mask_crops(landmarks, images.shape[-1], keep_mouth, self.device, [face.doubt for face in faces])
        hands = reconstruct.find_hands(self.hand_finder, pictures, crops)
        with ONE_AT_A_TIME:
            return reconstruct.parse(self.face_parser, images, depths, hands)

    def embed(self, images: Tensor, landmarks: np.ndarray) -> Tensor:
        """z_id `(B, 128)` of crops `(B, 3, S, S)` in [-1, 1] with landmarks `(B, 468, 2+)` in their pixels."""
        with ONE_AT_A_TIME:
            return reconstruct.embed(self.face_recognition, images, landmarks)

    def embed_in(self, picture: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
        """z_id `(128,)` of a face in a picture."""
        crop = self.crop(picture, Face(bounding_box(landmarks), landmarks=landmarks))
        images = to_tensor([crop.image], self.device)
        return on_host(self.embed(images, crop.to_crop(landmarks)[None])[0])

    def recognise(self, pictures: Sequence[np.ndarray], faces: Sequence[Face]) -> tuple[Tensor, Tensor, Tensor]:
        """z_id of faces that have landmarks, and how clearly they are seen; unknown values are NaN.

        Returns:
            z_id `(B, 128)`; how much of each face is hidden by something in front, `(B,)`, 0…1; its `relative_detail`, `(B,)`.
        """
        crops = [reconstruct.crop_face(*one, RECOGNISED, self.crop_factor) for one in zip(pictures, faces, strict=True)]
        images = to_tensor([crop.image for crop in crops], self.device)
        landmarks = on_host(reconstruct.place(crops, faces, self.device)[0])
        depths, front = self._parse(pictures, faces, crops, images, landmarks, keep_mouth=False)
        face = depths > 0
        hidden = (front * face).sum((1, 2, 3)) / face.sum((1, 2, 3))
        return self.embed(images, landmarks), hidden, relative_detail(images, depths)

    def refuse(self, batch: FaceBatch, keep_mouth: bool) -> list[str | None]:
        """Why faces of a batch cannot be replaced, whoever the new person is; `None` for those that can."""
        with ONE_AT_A_TIME:
            pets = seem_pets(self.context_encoder, batch.images)
        turned = turned_away(batch.coefficients.pose)
        mouths = [None if keep_mouth else gapes(points) for points in batch.landmarks]
        return [pet or away or mouth for pet, away, mouth in zip(pets, turned, mouths, strict=True)]

    def castings(
        self, batch: FaceBatch, generators: Sequence[torch.Generator], options: DeidentifyOptions, wanted: Sequence[bool]
    ) -> list[Casting | None]:
        """For each face that is `wanted`, an object that finds new people for it."""
        if not any(wanted):
            return [None] * len(batch)
        told = conditions_of(self.lds, batch, options.attributes)
        asked = self.sampler.expect([one if wants else None for one, wants in zip(told, wanted, strict=True)], generators)
        rows = zip(asked, generators, wanted, strict=True)
        return [Casting(self.sampler, attributes, generator) if wants else None for attributes, generator, wants in rows]

    def encode_texture(self, images: Tensor, masks: Tensor) -> TextureEncoderOutput:
        """K and V of pictures `(B, 3, S, S)` without the pixels that masks `(B, 1, S, S)` erase."""
        return encode_texture(self.texture_encoder, images, masks, self.unet.dtype)

    def prepare_latents(self, generators: Sequence[torch.Generator]) -> Tensor:
        """Pure noise `(B, 3, S, S)`, one generator for each face."""
        return prepare_latents(self.unet, self.scheduler, self.size, generators, self.device)

    def paint(
        self,
        batch: FaceBatch,
        people: NewIdentity,
        texture: TextureEncoderOutput,
        latents: Tensor,
        options: DeidentifyOptions,
        shown: Tensor | None = None,
    ) -> list[Painted]:
        """Paint new faces in place of those of a batch.

        Args:
            batch: the B source faces.
            people: the B new identities.
            texture: from `encode_texture`.
            latents: from `prepare_latents`.
            options: of the user.
            shown: shapes `(B, 80)` to render, if they differ from those of `people`, which the network is given.
        """
        rendered = people.shape if shown is None else shown
        changed, maps = render_new_heads(self.morphable_model, batch.coefficients, rendered, batch.masks, options.keep_mouth)
        told = replace(changed, shape=people.shape).pack()
        scheduler = copy(self.scheduler)  # it remembers its last steps, and another thread may be painting
        scheduler.set_timesteps(options.num_inference_steps, device=self.device)
        conditions = Conditions(maps, people.embedding, told, texture)
        faces = denoise(self.unet, scheduler, latents, batch, conditions, options.guidance_scale, self.callbacks)
        marks = on_host(place_marks(self.morphable_model, changed, self.size))
        return [Painted(batch.pick([row]), *parts) for row, parts in enumerate(zip(faces, marks, maps, strict=True))]

    def register(self, painted: Sequence[Painted]) -> list[Tensor]:
        """Move features of painted faces `(3, S, S)` to where they were meant to be; heads turned far away stay as they are."""
        # `verify` refuses faces that are not finite; schedulers may leave the range of pictures
        faces = torch.stack([one.face for one in painted]).nan_to_num().clamp(-1, 1)
        # no mesh sees the features of turned heads exactly enough
        rows = [row for row, angle in enumerate(_angles(painted)) if not angle > EXACT_TURN]
        if rows:
            some = [painted[row] for row in rows]
            faces[rows] = register(self.face_analyser, faces[rows], *_places(some), [one.marks for one in some])
        return list(faces)

    def verify(
        self,
        painted: Sequence[Painted],
        faces: Sequence[Tensor],
        against: Sequence[Tensor],
        straying: float = STRAYING,
        doubts: Sequence[float] | None = None,
    ) -> list[Attempt]:
        """Lay faces over their crops, and check the results.

        Args:
            painted: the faces as they came from the network.
            faces: `(3, S, S)`, the same faces registered and with matched colour. Here what is between their lips is matched,
                and large ones are refined. All are sharpened, and then blurred where their sources are.
            against: `(n, 128)` each, the embeddings that a result must not resemble.
            straying: how far features may be from where they were meant to be, in face sizes, see `allowed_straying`.
            doubts: `Face.doubt` of each source, by which features may be farther; 0 when `None`.
        """
        images, depths = _places(painted)
        maps, angles = torch.stack([one.maps for one in painted]), _angles(painted)
        front = torch.cat([one.source.front for one in painted])
        whole = self._match_mouths(torch.stack(list(faces)), painted, images, front, angles)
        whole = without_colour(whole, images, depths)
        whole = lay_before_backdrop(whole, images, depths, maps, angles)
        generated = soften(sharpen(whole, depths), images, depths)
        laid, opacities = lay_over_crops(generated, images, depths, front)
        patches, opacities = list(on_host(to_bytes(generated))), list(on_host(opacities[:, 0]))
        if large := [row for row, one in enumerate(painted) if one.source.crops[0].finer is not None]:
            crops = [painted[row].source.crops[0].finer for row in large]
            refined, over, opaque = self._refine(crops, *(part[large] for part in (whole, depths, maps, front)))
            laid[large] = F.avg_pool2d(over, SCALE)
            for row, patch, opacity in zip(large, on_host(to_bytes(refined)), on_host(opaque[:, 0]), strict=True):
                patches[row], opacities[row] = patch, opacity
        # the masks too: with a NaN in a mask, nothing would be erased there
        sound = finite([
            torch.cat([one.face, face, result, one.source.depths[0], one.source.front[0]])
            for one, face, result in zip(painted, faces, laid, strict=True)
        ])  # fmt: skip
        results = to_bytes(laid)
        shown, turned = on_host(results), [angle > EXACT_TURN for angle in angles]
        landmarks = look(self.face_analyser, shown, [one.source.landmarks[0] for one in painted], turned)
        with ONE_AT_A_TIME:
            verdicts = verify(self.face_recognition, from_bytes(results), landmarks, against, self.identity_limit)
        meant = [one.marks[:468] for one in painted]
        heights = [face_height(marks) / max(np.ptp(marks, axis=0).max(), 1e-6) for marks in meant]  # in face sizes
        limits = [
            allowed_straying(angle, straying, doubt * height)
            for angle, doubt, height in zip(angles, doubts or [0.0] * len(painted), heights, strict=True)
        ]
        odd = [
            (0.0, None) if self.face_analyser is None else strays(points, marks, hidden, limit)
            for points, marks, hidden, limit in zip(landmarks, meant, on_host(front[:, 0]), limits, strict=True)
        ]
        verdicts = [
            (distance, problem or shape) if fine else (None, BROKEN)
            for (distance, problem), (_, shape), fine in zip(verdicts, odd, sound, strict=True)
        ]
        parts = zip(patches, opacities, shown, verdicts, painted, odd, strict=True)
        return [Attempt(patch, opacity, result, *verdict, one.maps, share)
                for patch, opacity, result, verdict, one, (share, _) in parts]  # fmt: skip

    def _match_mouths(
        self, faces: Tensor, painted: Sequence[Painted], images: Tensor, front: Tensor, angles: Sequence[float]
    ) -> Tensor:
        """`match_mouths`, less and less for turned heads, whose lips are not seen exactly; none without an analyser."""
        if self.face_analyser is None:
            return faces
        marks, landmarks = np.stack([one.marks for one in painted]), np.concatenate([one.source.landmarks for one in painted])
        trust = np.nan_to_num((EXACT_TURN - np.array(angles)) / FADING_TURN).clip(0, 1)
        return match_mouths(faces, images, front, marks, landmarks, trust)

    def _refine(
        self, crops: Sequence[np.ndarray], faces: Tensor, depths: Tensor, maps: Tensor, front: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Refine large faces `(B, 3, S, S)`, and lay them over their crops of twice the size.

        Returns:
            The faces `(B, 3, 2 S, 2 S)`, the crops with the faces in them, and how opaque the faces are, `(B, 1, 2 S, 2 S)`.
        """
        finer, depths = to_tensor(crops, self.device), SCALE * enlarged(depths)  # depths are lengths
        refined = refine(self.refiner, faces, finer, depths, maps)
        return refined, *lay_over_crops(refined, finer, depths, enlarged(front))

    def finish(self, painted: Sequence[Painted], against: Sequence[Tensor]) -> list[Attempt]:
        """Register painted faces, match their colour, lay them over their crops, and check them; `against` as for `verify`."""
        faces = torch.stack(self.register(painted))
        return self.verify(painted, list(match(faces, *_places(painted))), against)


def finite(faces: Sequence[Tensor]) -> list[bool]:
    """Which faces hold only finite numbers."""
    return on_host(torch.stack([face.isfinite().all() for face in faces])).tolist()


def _angles(painted: Sequence[Painted]) -> list[float]:
    """The angles between heads and the camera, in degrees."""
    return on_host(angle_to_camera(torch.cat([one.source.coefficients.pose for one in painted]))).tolist()


def _places(painted: Sequence[Painted]) -> tuple[Tensor, Tensor]:
    """Crops `(B, 3, S, S)`, and how deep in the erased region each pixel lies, `(B, 1, S, S)`."""
    return torch.cat([one.source.images for one in painted]), torch.cat([one.source.depths for one in painted])
