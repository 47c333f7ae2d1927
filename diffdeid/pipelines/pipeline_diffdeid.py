"""The photo pipeline: a picture -> the same picture with the faces of people who do not exist.

Paper: *DiffDeID: a Multi-conditional Diffusion-based Method for High Fidelity Face De-identification with Diversity*, submitted
to ICLR 2025, https://openreview.net/forum?id=Bz9wjvToCS, §3; the symbols are those of docs/conventions.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diffdeid.engine.consent import Consent, Kept, Verdict
from diffdeid.engine.pictures import PictureJob, deidentify_pictures, draw_seeds
from diffdeid.engine.reports import FaceReport
from diffdeid.errors import ConfigurationError, NoFaceFoundError
from diffdeid.geometry.faces import merge
from diffdeid.io.images import to_uint8_array
from diffdeid.options import Cover, DeidentifyOptions
from diffdeid.pipelines.components import DeidentificationPipeline
from diffdeid.pipelines.pipeline_lds import LDSPipeline
from diffdeid.pipelines.pipeline_output import DiffDeIDPipelineOutput
from diffdeid.stages.denoise import Callbacks
from diffdeid.stages.detect import detect_faces
from diffdeid.structures import Face


class DiffDeIDPipeline(DeidentificationPipeline):
    r"""De-identifies every face of a picture and leaves the rest bit-identical.

    The new person is drawn from p(z, α | K), where K is what the result shows or keeps of the source anyway: surroundings,
    expression, pose, light and the tone of the skin. The draw is blind to the erased face, except with `attributes="source"`.
    The source's own embedding is used only to refuse draws that are too near. So, apart from these refusals, a result tells no
    more about the source than K does (data-processing inequality).

    Every result is checked: the face must be found again, be finite, and be farther from the source than `identity_limit`. A
    face that fails `engine.faces.MAX_ATTEMPTS` times, or that cannot be reconstructed, is covered.

    The components are those of `DeidentificationPipeline`.
    """

    _callback_tensor_inputs = ["latents"]
    _guidance_scale, _num_timesteps = DeidentifyOptions.guidance_scale, 0  # until `__call__` sets them

    @property
    def guidance_scale(self) -> float:
        return self._guidance_scale

    @property
    def num_timesteps(self) -> int:
        return self._num_timesteps

    @property
    def size(self) -> int:
        """Side S of the crops that the networks see, in pixels."""
        return self.engine.size

    @property
    def identity_sampler(self) -> LDSPipeline:
        """The identity sampler as a pipeline of its own, with the same weights. Raises `ConfigurationError` without an `lds`."""
        own = self.engine.sampler
        sampler = LDSPipeline(own.lds, own.scheduler)
        sampler.set_progress_bar_config(disable=True)
        return sampler

    def detect_faces(
        self, picture: np.ndarray, faces: list[Face] | None = None, threshold: float | None = DeidentifyOptions.threshold
    ) -> list[Face]:
        """Find the faces of a `(H, W, 3)` uint8 picture, with landmarks where they can be placed.

        Args:
            picture: RGB.
            faces: known faces to complete with landmarks, instead of searching.
            threshold: lowest detector score of a face, see `DeidentifyOptions`.

        Raises:
            ConfigurationError: there is no `face_analyser`, and no `faces` are given.
            ValueError: a given face has no valid box.
        """
        return detect_faces(self.face_analyser, picture, faces, threshold)

    @torch.no_grad()
    def __call__(
        self,
        image: Image.Image | np.ndarray | Tensor | list,
        level: int = DeidentifyOptions.level,
        num_images_per_prompt: int = 1,
        num_inference_steps: int = DeidentifyOptions.num_inference_steps,
        guidance_scale: float = DeidentifyOptions.guidance_scale,
        keep_mouth: bool = DeidentifyOptions.keep_mouth,
        attributes: Literal["context", "any", "source"] = DeidentifyOptions.attributes,
        fallback: Cover = DeidentifyOptions.fallback,
        cover_scale: float = DeidentifyOptions.cover_scale,
        threshold: float | None = DeidentifyOptions.threshold,
        min_face: float = DeidentifyOptions.min_face,
        reconstruction: Literal["fit", "network"] = DeidentifyOptions.reconstruction,
        faces: list[Face] | None = None,
        consent: Consent | None = None,
        coefficients: Tensor | None = None,
        identity: tuple[Tensor, Tensor] | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: Literal["pil", "np", "pt"] = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> DiffDeIDPipelineOutput | tuple:
        """De-identify pictures.

        The result is a function of the arguments, including the state of the generator. A picture with a generator of its own
        gives the same result alone and in a list, except for rounding in the networks.

        Args:
            image: PIL image, uint8 array `(H, W, 3)`, float array or tensor `(3, H, W)` in [0, 1], or a list of them.
            level, num_inference_steps, guidance_scale, keep_mouth, attributes: see `DeidentifyOptions`.
            fallback, cover_scale, threshold, min_face, reconstruction: see `DeidentifyOptions`.
            num_images_per_prompt: candidates for each picture, each with other people.
            faces: known faces of the picture; a box is enough. For a list of pictures, `faces`, `coefficients` and `identity`
                are lists with an entry for each picture.
            consent: who is left as they are, see `Consent`; without it, everybody is de-identified.
            coefficients: `(F, 261)` known coefficients ρ of the F faces that can be de-identified.
            identity: z' `(F, 128)` and α' `(F, 80)` for these faces, instead of sampled ones.
            generator: randomness, one or one per picture; fresh when `None`.
            output_type: "pil", "np" (a list of uint8 `(H, W, 3)`) or "pt" (`(B, 3, H, W)` in [0, 1], or a list of `(3, H, W)`
                where sizes differ).
            return_dict: `False` gives the tuple `(images, faces)`, without the errors.
            callback_on_step_end: called as `f(pipe, step, timestep, {"latents": …})`, as in diffusers; the latents are those of
                the faces that are painted together.
            callback_on_step_end_tensor_inputs: the names of the tensors that it gets.

        Returns:
            `DiffDeIDPipelineOutput`. In a list, the error of a picture is in its `errors`, the image is `None`, and the other
            pictures are de-identified all the same.

        Raises:
            NoFaceFoundError: the picture shows no face.
            ImageError: the picture has a mode without a fixed range of colours.
            ConfigurationError: the components do not support the options; in a list too.
            ValueError: an argument is out of range, or arguments do not fit together.
        """
        # 0. check inputs
        options = DeidentifyOptions(
            level=level, num_inference_steps=num_inference_steps, guidance_scale=guidance_scale, keep_mouth=keep_mouth,
            attributes=attributes, fallback=fallback, cover_scale=cover_scale, threshold=threshold, min_face=min_face,
            reconstruction=reconstruction,
        )  # fmt: skip
        self.check_inputs(num_images_per_prompt, output_type, callback_on_step_end_tensor_inputs)
        images = image if isinstance(image, list) else [image]
        self.engine.check(options, draws=any(one is None for one in _of_each(image, "identity", identity)))
        known = {"faces": faces, "coefficients": coefficients, "identity": identity}
        known = zip(*(_of_each(image, name, value) for name, value in known.items()), strict=True)
        generators = generator if isinstance(generator, list) else [generator] * len(images)
        if len(generators) != len(images):
            raise ValueError(f"`generator` must be one or one per picture, got {len(generators)} for {len(images)} pictures.")
        seeds = [draw_seeds(one, num_images_per_prompt) for one in generators]
        self._guidance_scale, self._num_timesteps = guidance_scale, num_inference_steps

        # 1. detect faces
        jobs: list[PictureJob] = []
        verdicts: list[list[Verdict | None]] = []
        errors: list[Exception | None] = []
        for one, its_seeds, its_known in zip(images, seeds, known, strict=True):
            try:
                job, its_verdicts = self._find_faces(to_uint8_array(one), its_seeds, options, consent, *its_known)
                jobs.append(job)
                verdicts.append(its_verdicts)
                errors.append(None)
            except ConfigurationError:
                raise
            except Exception as error:
                if not isinstance(image, list):
                    raise
                errors.append(error)

        # 2. reconstruct, 3. sample identities, 4. condition, 5. denoise, 6. register, 7. verify, 8. compose
        on_step = callback_on_step_end and partial(self._call_back, callback_on_step_end, callback_on_step_end_tensor_inputs)
        engine = replace(self.engine, callbacks=Callbacks(self.progress_bar, on_step, lambda: self._guidance_scale))
        made = deidentify_pictures(engine, jobs, options)
        results, reports, done = [], [], zip(jobs, verdicts, made, strict=True)
        for error in errors:
            if error is not None:
                results += [None] * num_images_per_prompt
                reports += [[]] * num_images_per_prompt
                continue
            job, its_verdicts, candidates = next(done)
            for result, outcomes in candidates:
                results.append(_to_output(result, output_type))
                fates = outcomes | {number: its_verdicts[number] for number in job.staying}
                why = {number: its_verdicts[number] for number in outcomes}
                each = enumerate(job.faces)
                reports.append([FaceReport.of(face, fates[number], fallback, why.get(number)) for number, face in each])

        # 9. output
        self.maybe_free_model_hooks()
        if output_type == "pt" and not any(errors) and len({result.shape for result in results}) == 1:
            results = torch.stack(results)
        return DiffDeIDPipelineOutput(images=results, faces=reports, errors=errors) if return_dict else (results, reports)

    def check_inputs(self, num_images_per_prompt: int, output_type: str, callback_inputs: Sequence[str]) -> None:
        """Raise `ValueError` for invalid arguments; `DeidentifyOptions` checks the others."""
        if num_images_per_prompt < 1:
            raise ValueError(f"`num_images_per_prompt` must be at least 1, got {num_images_per_prompt}.")
        if output_type not in ("pil", "np", "pt"):
            raise ValueError(f"`output_type` must be 'pil', 'np' or 'pt', got {output_type!r}.")
        unknown = set(callback_inputs) - set(self._callback_tensor_inputs)
        if unknown:
            raise ValueError(
                f"`callback_on_step_end_tensor_inputs` may hold {self._callback_tensor_inputs}, got {sorted(unknown)}."
            )

    def _find_faces(
        self,
        picture: np.ndarray,
        seeds: list[int],
        options: DeidentifyOptions,
        consent: Consent | None,
        faces: list[Face] | None,
        coefficients: Tensor | None,
        identity: tuple[Tensor, Tensor] | None,
    ) -> tuple[PictureJob, list[Verdict | None]]:
        """Find the faces of a picture; gives the job for the engine, and which faces are left as they are."""
        seen: list[Face] = []
        if consent is None or faces is not None or self.face_analyser is None:
            found = self.detect_faces(picture, faces, options.threshold)
        else:
            seen = self.face_analyser.see(picture, options.threshold, any_pose=True)
            found = merge(seen)
        if not found:
            raise NoFaceFoundError("No face was found in the picture, so nobody can tell whether it is de-identified.")
        job = PictureJob.of(picture, found, seeds, options, coefficients, identity)
        if consent is None:
            return job, [None] * len(found)
        verdicts = consent.staying(self.engine, picture, found, seen, options.min_face)
        staying = frozenset(number for number, verdict in enumerate(verdicts) if isinstance(verdict, Kept))
        return replace(job, staying=staying), verdicts

    def _call_back(self, callback: Callable, wanted: Sequence[str], step: int, timestep: Tensor, latents: Tensor) -> Tensor:
        given = {"latents": latents} if "latents" in wanted else {}
        return callback(self, step, timestep, given).pop("latents", latents)


def _to_output(picture: np.ndarray, output_type: Literal["pil", "np", "pt"]) -> Image.Image | np.ndarray | Tensor:
    if output_type == "pil":
        return Image.fromarray(picture)
    return picture if output_type == "np" else torch.from_numpy(picture).permute(2, 0, 1).float() / 255


def _of_each(image: object, name: str, value: object) -> list:
    """The value of each picture: `value` itself for one picture, its entries for a list of pictures."""
    if not isinstance(image, list):
        return [value]
    if value is None:
        return [None] * len(image)
    if not isinstance(value, list) or len(value) != len(image) or any(isinstance(one, Face) for one in value):
        raise ValueError(f"`{name}` must be a list with an entry for each of the {len(image)} pictures of the list `image`.")
    return value
