"""A video in, the same video with nobody's faces out (paper §3.4): one new person per person, steady from frame to frame.

What differs from the paper, as long as the weights have hardly learned the video mode (docs/video.md): z' stays in the
condition vector. As there, the texture is that of the de-identified reference I_d, and δ and γ are those of its source.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from diffdeid.errors import DiffDeIDError, NoFaceFoundError, NoIdentityFoundError
from diffdeid.geometry.boxes import bounding_box
from diffdeid.geometry.composite import cover, paste
from diffdeid.geometry.eyes import gaze_from_iris
from diffdeid.geometry.registration import displace
from diffdeid.geometry.seam import Cast, match_steadily
from diffdeid.geometry.steadying import Steadied, begin, steady
from diffdeid.models.fitting import fit, fit_shape_and_pose
from diffdeid.models.texture_encoder import TextureEncoderOutput
from diffdeid.pipelines.pipeline_diffdeid import Attempt, DiffDeIDPipeline, SourceFaces
from diffdeid.pipelines.pipeline_output import DiffDeIDVideoPipelineOutput, PersonReport
from diffdeid.structures import Face, FaceCrop, MorphableCoefficients, NewIdentity
from diffdeid.tracking.track import Sighting, Track
from diffdeid.tracking.tracker import FaceTracker
from diffdeid.video import Frame, VideoReader, VideoWriter, check_video_writable
from diffdeid.video_parts import PART_FRAMES, VideoParts

BATCH = 4  # faces that the networks are shown at once; 8 are hardly faster, and what they leave free is in ever smaller pieces
EARLY = 2.0  # seconds of a track in which its best view is looked for
BETTER = 1.1  # by which factor a view must be better to take the place of the best one
MARGIN, MARGIN_SEEN = 0.15, 0.2  # how far beyond the limit z' and the reference are, for frames differ from it …
CASTS = 4  # … and how many people are tried at each attempt until one is
ONE_AT_A_TIME = Lock()  # of the threads; to run an offloaded network moves others off the accelerator, and itself in the end


@dataclass(eq=False)
class Person:
    """Somebody in the video, and who stands for them in every frame.

    Attributes:
        tracks: where they are.
        embedding: `(1, 128)` mean of their z_id.
        coefficients: ρ of their best early view, whose δ and γ all frames get.
        identity: z' `(1, 128)` and α' `(1, 80)`.
        texture: K and V of I_d.
        noise: `(1, 3, S, S)`, from which all frames start.
        report: what happened so far; `reason` says why they are covered throughout if there is no `noise`.
    """

    tracks: list[Track]
    report: PersonReport
    embedding: Tensor | None = None
    coefficients: MorphableCoefficients | None = None
    identity: tuple[Tensor, Tensor] | None = None
    texture: TextureEncoderOutput | None = None
    noise: Tensor | None = None


@dataclass
class Rendering:
    """A video on its way: options, what was found out, and what the next frame must know of the last."""

    tracker: FaceTracker
    seed: int
    level: int
    num_inference_steps: int
    guidance_scale: float
    keep_mouth: bool
    attributes: Literal["context", "any", "source"]
    follow_light: bool
    reconstruction: Literal["fit", "network"]
    fallback: Literal["solid", "mosaic", "blur"]
    on_miss: Literal["interpolate", "cover", "error"]
    min_face: float
    views: dict[Track, tuple[float, SourceFaces | None]] = field(default_factory=dict)  # how good, and the best early view
    people: list[Person] = field(default_factory=list)
    owners: dict[Track, Person] = field(default_factory=dict)
    last: dict[Track, tuple[int, Steadied, Cast]] = field(default_factory=dict)  # frame, filtered face, colour around it


@dataclass(frozen=True)
class Appearance:
    """A face to be generated."""

    frame: int
    picture: np.ndarray
    track: Track
    person: Person
    sighting: Sighting


@dataclass(frozen=True)
class Painted:
    """A generated face `(3, S, S)`, where it was asked for, what was known of its source, and ρ' that its conditions show."""

    appearance: Appearance
    source: SourceFaces
    coefficients: MorphableCoefficients
    face: Tensor


class DiffDeIDVideoPipeline(DiffDeIDPipeline):
    r"""De-identifies every face of a video. Same components and folders as `DiffDeIDPipeline`, whose stages it uses.

    A person keeps one identity through the file: over gaps and cuts, and after coming back. Every face of every frame is checked
    as those of pictures are; one that fails or cannot be rendered is covered. Memory does not grow with the length of the video.
    """

    @classmethod
    def sharing(cls, pipe: DiffDeIDPipeline) -> DiffDeIDVideoPipeline:
        """The video pipeline on the very components of a picture pipeline. (`from_pipe` would cast them to another dtype.)"""
        return cls(**pipe.components, identity_limit=pipe.config.identity_limit, crop_factor=pipe.config.crop_factor)

    def embed(self, images: Tensor, landmarks: np.ndarray) -> Tensor:
        """As in pictures."""
        with ONE_AT_A_TIME:
            return super().embed(images, landmarks)

    def regress(self, images: Tensor, landmarks: Tensor, iris: Tensor) -> MorphableCoefficients:
        """As in pictures."""
        with ONE_AT_A_TIME:
            return super().regress(images, landmarks, iris)

    @torch.no_grad()
    def _embed_in(self, picture: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
        """z_id `(128,)` of a face in a picture."""
        crop = self.crop(picture, Face(bounding_box(landmarks), landmarks=landmarks))
        return self.embed(self._to_tensor([crop]), crop.to_crop(landmarks)[None])[0].cpu().numpy()

    def progress_bar(self, iterable: Iterable | None = None, total: int | None = None) -> tqdm:
        """None for the steps of a batch: the bar of `__call__` counts frames."""
        return tqdm(iterable, total=total, disable=True)

    def start(
        self,
        rate: float = 25,
        level: int = 7,
        num_inference_steps: int = 8,
        guidance_scale: float = 1.0,
        keep_mouth: bool = False,
        attributes: Literal["context", "any", "source"] = "context",
        follow_light: bool = False,
        reconstruction: Literal["fit", "network"] = "fit",
        fallback: Literal["solid", "mosaic", "blur"] = "solid",
        on_miss: Literal["interpolate", "cover", "error"] = "interpolate",
        min_face: float = 0,
        generator: torch.Generator | None = None,
    ) -> Rendering:
        """Check options (those of `__call__`) and begin a video of `rate` frames a second."""
        self.check_inputs(level, 1, attributes, fallback, reconstruction)
        if on_miss not in ("interpolate", "cover", "error"):
            raise ValueError(f"`on_miss` must be 'interpolate', 'cover' or 'error', got {on_miss!r}.")
        self.check_attributes(attributes)
        if self.face_analyser is None:
            raise ValueError("A video needs the `face_analyser` to follow faces with, and this pipeline has none.")
        if generator is None:
            generator = torch.Generator()
            generator.seed()
        seed = int(torch.randint(2**62, (1,), generator=generator))
        return Rendering(
            FaceTracker(self.face_analyser, self._embed_in, rate), seed, level, num_inference_steps, guidance_scale, keep_mouth,
            attributes, follow_light, reconstruction, fallback, on_miss, min_face,
        )  # fmt: skip

    @torch.no_grad()
    def analyse(self, rendering: Rendering, picture: np.ndarray) -> None:
        """Follow the faces into the next frame, uint8 `(H, W, 3)`, and keep their best early views."""
        tracker = rendering.tracker
        tracks = tracker.update(picture)
        for track in tracks:
            owner, (best, _) = rendering.owners.get(track), rendering.views.get(track, (0.0, None))
            early = best == 0 or len(track) < EARLY * tracker.rate
            if track.last.landmarks is not None and early and (owner is None or owner.noise is None):
                quality = _quality(track.last.landmarks)
                if quality > BETTER * best:
                    view = self.reconstruct(
                        picture, [track.last], rendering.keep_mouth, rendering.reconstruction, others=[one.last for one in tracks]
                    )
                    rendering.views[track] = quality, view

    def render(self, rendering: Rendering, frames: Sequence[tuple[int, np.ndarray]]) -> list[np.ndarray]:
        """Frames that were analysed, numbers and pictures, with new faces."""
        with ThreadPoolExecutor(1) as finisher:
            return self._render(rendering, frames, finisher).result()

    @torch.no_grad()
    def _render(
        self, rendering: Rendering, frames: Sequence[tuple[int, np.ndarray]], finisher: ThreadPoolExecutor
    ) -> Future[list[np.ndarray]]:
        """`render`, of which a second thread does what is left when faces are painted, one batch after the other: they take
        few cores and no accelerator, while the networks paint the next batch, which may be one of the frames that follow."""
        self._guidance_scale = rendering.guidance_scale
        appearances, covers = [], []
        for frame, picture in frames:
            for track in rendering.tracker.at(frame):
                person, sighting = self._owner(rendering, track), track.smoothed(frame)
                if sighting.state == "interpolated" and rendering.on_miss == "error":
                    raise DiffDeIDError(
                        f"A face was lost in frame {frame} (`on_miss='error'`). Let it be interpolated or covered."
                    )
                problem = self._must_be_covered(rendering, sighting)
                if person.noise is None or problem:
                    covers.append((frame, sighting.face, person, person.report.reason or problem))
                else:
                    appearances.append(Appearance(frame, picture, track, person, sighting))

        results, jobs = dict(frames), []
        for start in range(0, len(appearances), BATCH):
            painted = self._paint(rendering, appearances[start : start + BATCH])
            if jobs:
                jobs[-1].result()  # only one batch waits: a crowd takes no more memory than a face
            jobs.append(finisher.submit(self._finish, rendering, painted, results, covers))
        return finisher.submit(self._cover, rendering, jobs, results, covers)

    @torch.no_grad()  # which holds for one thread
    def _finish(
        self, rendering: Rendering, painted: Sequence[Painted], results: dict[int, np.ndarray], covers: list[tuple]
    ) -> None:
        """Lay the new faces over their frames; those that fail their checks are `covers` from now on."""
        for new in painted:
            frame, person, sighting = new.appearance.frame, new.appearance.person, new.appearance.sighting
            attempt = self._check(rendering, new)
            if attempt.problem is None:
                results[frame] = paste(results[frame], attempt.patch, attempt.opacity, new.source.crops[0].matrix)
                person.report.add(sighting.state, frame, attempt.identity_distance)
            else:
                covers.append((frame, sighting.face, person, attempt.problem))

    def _cover(
        self, rendering: Rendering, jobs: Sequence[Future], results: dict[int, np.ndarray], covers: list[tuple]
    ) -> list[np.ndarray]:
        """Cover what is to be covered; the frames are complete then, if all `jobs` went well."""
        for job in jobs:
            job.result()
        for frame, face, person, reason in sorted(covers, key=lambda entry: entry[0]):  # last: nothing is painted over a cover
            results[frame] = cover(results[frame], face, rendering.fallback)
            person.report.add("covered", frame, reason=reason)
        last = max(results)
        rendering.last = {track: seen for track, seen in rendering.last.items() if seen[0] == last}
        return list(results.values())

    @torch.no_grad()
    def stream(
        self, frames: Iterable[np.ndarray], lookahead: int = 25, rendering: Rendering | None = None, **options
    ) -> Iterator[np.ndarray]:
        """Frames in, frames out, in one pass and constant memory: for cameras, and for frames that come from elsewhere.

        What is found out about a frame more than `lookahead` frames later comes too late for it. A stream without a face passes.

        Args:
            frames: uint8 `(H, W, 3)` RGB, all of one size.
            lookahead: how many frames are held back.
            rendering: from `start`, whose `people` have the reports; made of `options` when `None`.
            options: of `start`.
        """
        rendering = rendering or self.start(**options)
        waiting: deque[tuple[int, np.ndarray]] = deque()
        batch_size = min(BATCH, lookahead + 1)
        for number, picture in enumerate(frames):
            self.analyse(rendering, picture)
            waiting.append((number, picture))
            if len(waiting) == lookahead + batch_size:
                yield from self.render(rendering, [waiting.popleft() for _ in range(batch_size)])
                rendering.tracker.forget(waiting[0][0] if waiting else number)
        while waiting:
            yield from self.render(rendering, [waiting.popleft() for _ in range(min(BATCH, len(waiting)))])
        self.maybe_free_model_hooks()

    @torch.no_grad()
    def __call__(
        self,
        video: str | Path,
        output: str | Path,
        start: float | None = None,
        end: float | None = None,
        audio: Literal["drop", "keep"] = "drop",
        codec: str | None = None,
        crf: int = 18,
        preset: str | None = None,
        overwrite: bool = False,
        resume: bool = False,
        callback_on_frame: Callable[[str, int, int], None] | None = None,
        **options,
    ) -> DiffDeIDVideoPipelineOutput:
        """De-identify a video file in two passes: analyse, then render.

        The pictures are a function of the file, the arguments and the state of the generator; so are the bytes, but for what x264
        makes of sides that are no multiples of 32 (its mbtree reads memory that it never wrote).

        Args:
            video: mp4, m4v, mov, mkv, webm, avi or gif.
            output: mp4, m4v, mov, mkv or webm; appears complete or not at all.
            start, end: seconds between which frames are taken; all of the file by default.
            audio: "keep" copies the sound. Voices tell who speaks.
            codec, crf, preset: of FFmpeg's encoder, see `VideoWriter`.
            overwrite: replace an existing output.
            resume: keep finished parts in a hidden folder beside the output until it is complete, and go on from those of an
                interrupted run of the same file, options and seed. The analysis is done again.
            callback_on_frame: called as `f("analyse" or "render", frames done, frames expected)`.
            options: of `start`: level, num_inference_steps, guidance_scale, keep_mouth, attributes, fallback, min_face,
                reconstruction, generator mean what they mean for `DiffDeIDPipeline`. With `follow_light` the light γ is
                estimated in every frame instead of once a person. `on_miss` says what becomes of a face that was lost for a
                moment: "interpolate" renders it where it must have been, "cover" covers it there, "error" gives up.

        Raises:
            NoFaceFoundError: no frame shows a face.
            VideoError: the file cannot be read, or the output not be written.
        """
        if audio not in ("drop", "keep"):
            raise ValueError(f"`audio` must be 'drop' or 'keep', got {audio!r}.")
        check_video_writable(Path(output), overwrite)
        reader = VideoReader(video, start, end)
        rendering = self.start(rate=float(reader.rate), **options)
        parts = None
        if resume:
            status = Path(video).stat()
            chosen = {name: value for name, value in options.items() if name != "generator"}
            job = {"file": [status.st_size, status.st_mtime_ns], "span": [start, end], "encoder": [codec, crf, preset]} | chosen
            parts = VideoParts(Path(output), job, None if options.get("generator") is None else rendering.seed)
            rendering.seed = parts.seed

        # 1. analyse
        for frame in self._counted(reader, "analyse", reader.num_frames, callback_on_frame):
            self.analyse(rendering, frame.picture)
        self._guidance_scale = rendering.guidance_scale
        for track in rendering.tracker.tracks:
            self._owner(rendering, track)
        if not rendering.people:
            raise NoFaceFoundError(f"No frame of `{video}` shows a face, so nothing can be said about it being de-identified.")

        # 2. render
        sound = reader.path if audio == "keep" else None
        encoder = {"codec": codec, "crf": crf, "preset": preset, "overwrite": overwrite}
        frames = enumerate(self._counted(reader, "render", rendering.tracker.num_frames, callback_on_frame))
        if parts is not None:
            self._render_parts(rendering, frames, parts, reader, encoder)
        with VideoWriter(output, reader.rate, reader.sample_aspect_ratio, sound, reader.origin, **encoder) as writer:
            if parts is None:
                self._render_into(writer, rendering, frames)
            else:
                for path in parts.paths:
                    writer.append(path)
        if parts is not None:
            parts.remove()

        self.maybe_free_model_hooks()
        people = [person.report for person in rendering.people]
        return DiffDeIDVideoPipelineOutput(Path(output), rendering.tracker.num_frames, people, reader.notes + writer.notes)

    def _render_into(self, writer: VideoWriter, rendering: Rendering, frames: Iterator[tuple[int, Frame]]) -> None:
        with ThreadPoolExecutor(1) as finisher:
            waiting: deque[tuple[list[tuple[int, Frame]], Future]] = deque()
            while (batch := list(islice(frames, BATCH))) or waiting:
                if batch:
                    pictures = [(number, frame.picture) for number, frame in batch]
                    waiting.append((batch, self._render(rendering, pictures, finisher)))
                if len(waiting) > 1 or not batch:
                    done, rendered = waiting.popleft()
                    for picture, (_, frame) in zip(rendered.result(), done, strict=True):
                        writer.write(Frame(picture, frame.time))

    def _render_parts(
        self, rendering: Rendering, frames: Iterator[tuple[int, Frame]], parts: VideoParts, reader: VideoReader, encoder: dict
    ) -> None:
        """Render what finished parts lack, in further parts. Filters begin anew in each, wherever a run went on."""
        parts.begin()
        for person, stored in zip(rendering.people, parts.reports, strict=False):
            person.report = PersonReport(**stored)
        for _ in islice(frames, parts.num_frames):
            pass
        while (missing := rendering.tracker.num_frames - parts.num_frames) > 0:
            length = min(PART_FRAMES, missing)
            rendering.last.clear()
            with VideoWriter(parts.next_path, reader.rate, reader.sample_aspect_ratio, **encoder | {"overwrite": True}) as writer:
                self._render_into(writer, rendering, islice(frames, length))
            parts.add(length, [asdict(person.report) for person in rendering.people])

    def _counted(self, frames: Iterable[Frame], stage: str, total: int, callback: Callable | None) -> Iterator[Frame]:
        with super().progress_bar(total=total or None) as progress_bar:
            progress_bar.set_description(stage)
            for number, frame in enumerate(frames, start=1):
                yield frame
                progress_bar.update()
                if callback is not None:
                    callback(stage, number, total)

    # People

    def _owner(self, rendering: Rendering, track: Track) -> Person:
        """Whose track it is: somebody known who looks alike and is not in the same frames, else somebody new."""
        if track not in rendering.owners:
            likeness = {
                person: _likeness(track, person.tracks)
                for person in rendering.people
                if not any(track.meets(other) for other in person.tracks)
            }
            person = max(likeness, key=likeness.get, default=None)
            if person is None or likeness[person] < 1 - self.config.identity_limit:
                person = Person([], PersonReport(len(rendering.people) + 1, rendering.fallback))
                rendering.people.append(person)
            person.tracks.append(track)
            rendering.owners[track] = person
        person = rendering.owners[track]
        quality, view = rendering.views.get(track, (0.0, None))
        if view is not None:
            if person.noise is None:
                self._recast(rendering, person, view)
            rendering.views[track] = quality, None  # it has served
        return person

    def _recast(self, rendering: Rendering, person: Person, view: SourceFaces) -> None:
        """Find somebody who does not exist for a person: z', α' and the de-identified reference I_d.

        A frame in which they are nearer to each other than the limit is covered. So they are asked to differ by more, and where
        nobody in the reference does by `MARGIN_SEEN`, the best of all who were tried is taken.
        """
        report = person.report
        generator = torch.Generator().manual_seed(rendering.seed ^ report.number)  # a person does not depend on the others
        seen = torch.from_numpy(np.concatenate([track.embeddings for track in person.tracks])).to(view.identity)
        person.embedding = F.normalize(seen.mean(0, keepdim=True), dim=1)
        view = replace(view, identity=torch.cat([person.embedding, view.identity, seen]))
        others = [other for other in rendering.people if other.identity is not None and other is not person]
        taken = [part for other in others for part in (other.embedding, other.identity[0])]
        taken = torch.cat(taken) if taken else None
        texture = self.encode_texture(view.images, view.masks)
        steps, wanted = rendering.num_inference_steps, self.config.identity_limit + MARGIN_SEEN
        best: tuple[NewIdentity, Attempt] | None = None
        for number in range(CASTS * self.max_attempts):
            report.attempts = number + 1
            try:
                drawn = self.sample_identity(
                    view, rendering.level, rendering.attributes, generator, taken, number // CASTS + 1, MARGIN
                )
            except NoIdentityFoundError as error:
                report.reason = str(error)
                continue
            identity = drawn.embedding, drawn.shape
            attempt = self.deidentify(
                view, texture, drawn.level, generator, rendering.keep_mouth, rendering.attributes, steps, identity
            )
            report.reason = attempt.problem
            if attempt.problem is None and (best is None or attempt.identity_distance > best[1].identity_distance):
                best = drawn, attempt
            if best is not None and best[1].identity_distance >= wanted:
                break
        if best is None:
            return
        drawn, attempt = best
        reference = self._to_tensor([FaceCrop(attempt.result, view.crops[0].matrix)])
        person.coefficients = view.coefficients
        person.identity = drawn.embedding.to(view.identity), drawn.shape.to(view.identity)
        person.texture = self.encode_texture(reference, torch.zeros_like(view.masks))
        person.noise = self.prepare_latents(1, generator)
        report.method, report.level, report.reason = "diffusion", drawn.level, None

    def _must_be_covered(self, rendering: Rendering, sighting: Sighting) -> str | None:
        """Why a face is covered in a frame instead of being rendered, if it is."""
        if sighting.face.landmarks is None:
            return "its landmarks could not be placed"
        if min(sighting.face.box[2:] - sighting.face.box[:2]) < rendering.min_face:
            return f"smaller than {rendering.min_face:g} pixels"
        if sighting.state == "interpolated" and rendering.on_miss == "cover":
            return "lost for a moment"
        return None

    # Faces

    def _paint(self, rendering: Rendering, batch: Sequence[Appearance]) -> list[Painted]:
        """New faces for a batch of appearances.

        α of a frame takes a part of every movement, above all of the mouth; so what is rendered of α' moves as α does, from the
        reference on. In C it stays, for there it says who it is.
        """
        people = [appearance.person for appearance in batch]
        source = self._reconstruct_batch(rendering, batch)
        z, shape = (torch.cat(parts) for parts in zip(*(person.identity for person in people), strict=True))
        moved = shape + source.coefficients.identity - torch.cat([person.coefficients.identity for person in people])
        keys, values = zip(*(person.texture for person in people), strict=True)
        texture = TextureEncoderOutput(*([torch.cat(level) for level in zip(*part, strict=True)] for part in (keys, values)))
        coefficients, conditions = self.prepare_conditioning(source.coefficients, moved, source.masks, rendering.keep_mouth)
        packed = replace(coefficients, identity=shape).pack()
        latents = torch.cat([person.noise for person in people])
        generated = self.denoise(
            latents, source.images, source.masks, conditions, z, packed, texture, rendering.num_inference_steps
        )
        rows = [MorphableCoefficients.unpack(row) for row in coefficients.pack().split(1)]
        return [Painted(appearance, source.one(row), rows[row], generated[row]) for row, appearance in enumerate(batch)]

    def _reconstruct_batch(self, rendering: Rendering, batch: Sequence[Appearance]) -> SourceFaces:
        """ρ̂ = {α_f, β_f, δ_d, γ_d, p_f, ω_f} of smoothed landmarks."""
        faces = [appearance.sighting.face for appearance in batch]
        crops = [self.crop(appearance.picture, face) for appearance, face in zip(batch, faces, strict=True)]
        images, landmarks, placed = self._prepare_crops(crops, faces)
        reference = [appearance.person.coefficients for appearance in batch]
        albedo, light = (torch.cat([getattr(part, name) for part in reference]) for name in ("albedo", "illumination"))
        if rendering.reconstruction == "network":
            followed = self.regress(images, *placed)
        else:
            shape = fit_shape_and_pose(self.morphable_model, placed[0], self.size)
            gaze = gaze_from_iris(*placed)
            if rendering.follow_light:
                light = fit(self.morphable_model, *placed, (images.permute(0, 2, 3, 1) + 1) / 2).illumination
            followed = MorphableCoefficients(shape.identity, shape.expression, albedo, light, shape.pose, gaze)
        coefficients = replace(followed, albedo=albedo, illumination=followed.illumination if rendering.follow_light else light)
        masks = self.masks(landmarks, rendering.keep_mouth)
        return SourceFaces(crops, landmarks, images, masks, coefficients, self.embed(images, landmarks))

    def _check(self, rendering: Rendering, painted: Painted) -> Attempt:
        """Register and steady a generated face, match its colour, lay it over its crop, check it against frame and person."""
        appearance, source = painted.appearance, painted.source
        crop, frame, track = source.crops[0].image, appearance.frame, appearance.track
        if not torch.isfinite(painted.face).all():
            rendering.last.pop(track, None)
            return Attempt.failed(crop, "the network returned values that are not finite")
        new = painted.face[None].float().clamp(-1, 1)
        registered = displace(new, self.measure_offsets(source, new, painted.coefficients))  # before the filter: landmarks jitter
        face = ((registered[0].clamp(-1, 1) + 1) / 2).permute(1, 2, 0).numpy()
        seen = face, crop, np.float32(source.landmarks[0, :, :2])
        number, before, cast = rendering.last.get(track, (None, None, None))
        follows = number == frame - 1
        steadied = steady(*seen, before) if follows else begin(*seen)
        matched, cast = match_steadily(steadied.face, crop, source.masks[0, 0].cpu().numpy(), cast if follows else None)
        rendering.last[track] = frame, steadied, cast
        patch, opacity, result = self.composite(source, torch.from_numpy(matched * 2 - 1).permute(2, 0, 1)[None])
        if appearance.sighting.state == "found":
            known = torch.cat([source.identity, appearance.person.embedding])
        else:
            known = appearance.person.embedding  # something may hide the face of the frame
        return Attempt(patch, opacity, result, *self.verify(replace(source, identity=known), result))

    def find_again(self, result: np.ndarray, landmarks: np.ndarray) -> np.ndarray | None:
        """As in pictures, but only where the face must be."""
        return self.face_analyser.find_again(result, landmarks).landmarks


def _quality(landmarks: np.ndarray) -> float:
    """How well a view of `(468, 3)` landmarks in the picture shows who somebody is: large, and seen from the front."""
    nose, cheeks = landmarks[1], landmarks[[234, 454]]
    width, height = np.hypot(*(cheeks[1] - cheeks[0])[:2]), np.hypot(*(landmarks[10] - landmarks[152])[:2])
    sides = [np.hypot(*(nose - cheek)[:2]) for cheek in cheeks]
    return float(min(max(width, height), 200) * min(sides) / max(*sides, 1e-6))


def _likeness(track: Track, others: Sequence[Track]) -> float:
    """Cosine of two people by the three pairs of embeddings that are most alike; -1 where there are none."""
    pools = [np.array(track.embeddings), np.array([embedding for other in others for embedding in other.embeddings])]
    if not all(map(len, pools)):
        return -1.0
    return float(np.sort((pools[0] @ pools[1].T).ravel())[-3:].mean())
