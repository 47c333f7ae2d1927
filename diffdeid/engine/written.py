"""The check of a written file, opened again as anybody would open it: is it what was meant, and is a face of the source in it?

Earlier checks have compared new faces with their sources, and searched the source thoroughly. What is left for this one:

1. the file may hold nothing else (`io.contents`), must decode to its end, and must look like what was to be written,
2. where a face was hidden, the pixels must not be the source's. Only where they may be, faces are looked for and recognised,
3. it is searched for faces that lie elsewhere, mirrored: a detector sees a mirrored picture with other eyes.

The search is coarse, as it is the second one. A face must be clearer to count here than in the first search: near its threshold
the noise of an encoder sways a detector. A file with such a face is an error, as nobody knows whose face it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from io import BytesIO
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from PIL import Image, JpegImagePlugin, UnidentifiedImageError

from diffdeid.engine.faces import Engine
from diffdeid.engine.reports import FaceReport
from diffdeid.errors import ImageError, VerificationError, VideoError
from diffdeid.geometry.boxes import intersection_over_union, part_inside, part_of
from diffdeid.geometry.cover import cover_box
from diffdeid.geometry.faces import whole_box
from diffdeid.io.contents import check_picture_contents, check_video_contents
from diffdeid.io.files import Check
from diffdeid.io.images import Picture, read_image
from diffdeid.io.video_reader import Frame, VideoReader
from diffdeid.models.face_analyser import FaceAnalyserModel
from diffdeid.structures import Face
from diffdeid.temporal.spool import Spool

# Of pictures as a whole, in grey levels, on a small picture in which the noise of encoders is averaged away:
SMALL = 64  # pixels of its longer side
UNLIKE, MOST_UNLIKE = 8.0, 40.0  # largest difference on average, and of nine pixels; JPEG of quality 5 makes 5 and less than 24
BEYOND = 0.15  # sizes of a cover; farther from it nothing changes, and frames must look like those of the source
# Of faces, each looked at as a patch:
PATCH, CELLS = 32, 8  # pixels of its side, and of how many cells
SAME_CELL = 6.0  # grey levels by which a cell that is still the source's differs from it at most
SAME_FACE = 0.5  # share of such cells in the middle of a face, from which on the face may still be there; of new faces it is .2
CHANGED = 0.25  # share of the middle that was to change a lot, from which on pixels alone tell; of new faces it is .3 and more
COME_BACK = 0.25  # of the cells that were to change a lot, the share that may be nearer to the source than to what was meant
SLACK = 0.05  # by which the limit of the recogniser is eased: a face that just passed before it was encoded is no leak
ITS_PLACE = 0.25  # intersection over union, above which a found face is a known one
WITHIN = 0.5  # share of a found box inside that of a known face, from which on it may have come from what replaced that face
VEILS = ("mosaic", "blur")  # covers that do not protect
# Of the search:
CLEARER = 0.15  # by which the score of a missed face exceeds the thresholds of the first search
FRAME_PIXELS = 160_000  # size at which frames are searched; photos have the size of the coarse pass of the first search
RECOGNISED = 1.0  # seconds from one frame of a video in which people are recognised to the next
LATE = Fraction(1, 400)  # seconds; containers round the times of frames


@dataclass(frozen=True)
class Known:
    """A face of the source whose place is known.

    Attributes:
        face: where it is.
        stays: whether it was left as it is, on request. Else nothing of it may be left.
        veiled: whether it was covered, on request, by a kind of cover through which recognisers may still know it.
        embedding: unit vector `(128,)` of the person; computed from the source where it is needed when `None`.
    """

    face: Face
    stays: bool = False
    veiled: bool = False
    embedding: np.ndarray | None = None

    @classmethod
    def of(cls, report: FaceReport) -> Known:
        """The face of a report."""
        face = Face(np.float32(report.box), landmarks=report.landmarks)
        return cls(face, stays=report.method == "kept", veiled=report.method in VEILS)


class Glimpse(NamedTuple):
    """What is kept of a picture to compare another one with.

    Attributes:
        time: when a frame is shown, in seconds.
        size: width and height in pixels.
        small: the whole picture, grey, `SMALL` pixels long.
        patches: of its known faces, `(PATCH, PATCH)` grey; empty for faces beyond the border.
    """

    time: Fraction
    size: tuple[int, int]
    small: np.ndarray
    patches: list[np.ndarray]

    @classmethod
    def of(cls, picture: np.ndarray, known: Sequence[Known], time: Fraction = Fraction(0)) -> Glimpse:
        """What is kept of a picture `(H, W, 3)` uint8."""
        height, width = picture.shape[:2]
        scale = _scale((width, height))
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        small = _grey(cv2.resize(picture, size, interpolation=cv2.INTER_AREA))
        return cls(time, (width, height), small, [_patch(picture, one.face.box) for one in known])


def _scale(size: tuple[int, int]) -> float:
    """The scale of the small picture. Each of its pixels averages at least 16, or the noise of encoders would count."""
    return min(SMALL / max(size), 1 / 4)


@torch.no_grad()
def check_picture(
    path: Path,
    engine: Engine,
    source: np.ndarray,
    expected: Picture,
    known: Sequence[Known],
    threshold: float | None = None,
    search: bool = True,
) -> None:
    """Raise `VerificationError` where a picture file must not be published.

    Args:
        path: the file.
        engine: sees and recognises faces. Without a `face_analyser` nothing is searched, and the pixels alone decide.
        source: `(H, W, 3)` uint8, the picture before.
        expected: the picture that was to be written; its faces were compared with the source before.
        known: all faces that were found in the source.
        threshold: of the first search, see `DeidentifyOptions`.
        search: whether to look for further faces; not if somebody has listed the faces of the picture.
    """
    check_picture_contents(path)
    try:
        written = read_image(path)
    except ImageError as error:
        raise VerificationError(f"it cannot be read again ({error})") from error
    if written.icc_profile not in (None, expected.icc_profile):
        raise VerificationError("its colour profile is not that of the source")
    if not _equal_alpha(written.alpha, expected.alpha):
        raise VerificationError("its transparency is not that of the source")
    pixels, original = np.asarray(written.image), Glimpse.of(source, known)
    meant = Glimpse.of(_as_coded(path, expected.image), known)
    _refuse_other_size(pixels, meant)
    for one, patch, checked in zip(known, original.patches, meant.patches, strict=True):
        if not one.stays:
            _refuse_face_of_source(engine, pixels, one, patch, source, checked)
    if search:
        _refuse_missed_faces(engine.face_analyser, pixels, known, original.patches, threshold)
    _refuse_other_picture(pixels, meant)


def picture_check(
    engine: Engine,
    before: Picture,
    image: Image.Image,
    known: Sequence[Known],
    threshold: float | None = None,
    search: bool = True,
) -> Check:
    """A check for the file that an `image`, made of the picture `before`, is written to; see `check_picture`."""
    how = {"threshold": threshold, "search": search}
    return partial(check_picture, engine=engine, source=np.asarray(before.image), expected=replace(before, image=image),
                   known=known, **how)  # fmt: skip


class VideoCheck:
    """Checks a video file against glimpses of its source, which are kept on disk, in a file that vanishes with the process.

    Args:
        engine: sees and recognises faces.
        known: gives the faces that were found in the frame of a number.
        rate: frames a second.
        threshold, search: as those of `check_picture`.
        sound: whether the file may have sound.
        counted: wraps the frames of the file, to show how far the check is.
    """

    def __init__(
        self,
        engine: Engine,
        known: Callable[[int], Sequence[Known]] = lambda _: [],
        rate: float = 25,
        threshold: float | None = None,
        search: bool = True,
        sound: bool = False,
        counted: Callable[[Iterable[Frame]], Iterable[Frame]] = iter,
    ):
        self.engine, self.known, self.sound, self.counted = engine, known, sound, counted
        self.threshold, self.search = threshold, search
        self._stride = max(1, round(RECOGNISED * rate))
        self._spool, self._glimpses = Spool(), []

    def watch(self, frames: Iterable[Frame]) -> Iterator[Frame]:
        """The frames of the source, as they are read for the last time."""
        for number, frame in enumerate(frames):
            self._glimpses.append(self._spool.store(Glimpse.of(frame.picture, self.known(number), frame.time)))
            yield frame

    @torch.no_grad()
    def __call__(self, path: Path) -> None:
        """Raise `VerificationError` where a video file must not be published, once all frames of the source were watched."""
        check_video_contents(path, self.sound)
        try:
            for number, (frame, glimpse) in enumerate(zip_longest(self.counted(VideoReader(path)), self._glimpses)):
                if frame is None or glimpse is None:
                    raise VerificationError(f"it has {'less' if frame is None else 'more'} than {len(self._glimpses)} frames")
                try:
                    self._check_frame(number, frame, self._spool.load(glimpse))
                except VerificationError as error:
                    raise VerificationError(f"in frame {number}, {error}") from error
        except VideoError as error:
            raise VerificationError(f"it cannot be read again ({error})") from error

    def _check_frame(self, number: int, frame: Frame, source: Glimpse) -> None:
        known, (width, height) = self.known(number), source.size
        pixels = frame.picture[:height, :width]  # odd sides were made even
        if abs(frame.time - source.time) > LATE:
            raise VerificationError(f"its time is {float(frame.time):.3f} s instead of {float(source.time):.3f} s")
        _refuse_other_size(pixels, source)
        for one, patch in zip(known, source.patches, strict=True):
            if not one.stays:
                _refuse_face_of_source(self.engine, pixels, one, patch, recognise=number % self._stride == 0)
        if self.search:
            _refuse_missed_faces(self.engine.face_analyser, pixels, known, source.patches, self.threshold, FRAME_PIXELS)
        _refuse_other_picture(pixels, source, [_done_box(one.face) for one in known if not one.stays])


def _as_coded(path: Path, image: Image.Image) -> np.ndarray:
    """A picture `(H, W, 3)` encoded with the tables and the sampling of a JPEG file, and decoded; unchanged for other files.

    A coarse JPEG leaves so little of a small face that it may be nearer to the source than to what was to be written.
    """
    coded = BytesIO()
    try:
        with Image.open(path, formats=["JPEG"]) as file:
            sampling = max(JpegImagePlugin.get_sampling(file), 0)
            image.convert(file.mode).save(coded, "JPEG", qtables=file.quantization, subsampling=sampling)
    except UnidentifiedImageError:
        return np.asarray(image)
    with Image.open(coded) as shown:
        return np.asarray(shown.convert("RGB"))


def _refuse_other_size(written: np.ndarray, meant: Glimpse) -> None:
    if written.shape[1::-1] != meant.size:
        raise VerificationError(
            f"it is of {written.shape[1]} × {written.shape[0]} pixels instead of {meant.size[0]} × {meant.size[1]}"
        )


def _refuse_other_picture(written: np.ndarray, meant: Glimpse, apart: Sequence[np.ndarray] = ()) -> None:
    """Raise where a picture does not look as it was meant to; what lies in the boxes `apart` `(4,)` may look otherwise."""
    difference = np.float32(Glimpse.of(written, []).small) - meant.small
    counts = np.ones(difference.shape, bool)
    for box in apart:
        part_of(counts, box * _scale(meant.size))[0][:] = False
    if not counts.any():
        return
    mean, most = np.abs(difference[counts]).mean(), np.abs(cv2.blur(difference * counts, (3, 3))).max()
    if mean > UNLIKE or most > MOST_UNLIKE:
        raise VerificationError(
            f"it looks otherwise than it was meant to (by {mean:.1f} of 255 grey levels, limit {UNLIKE:g}, "
            f"somewhere by {most:.0f}, limit {MOST_UNLIKE:g})"
        )


def _refuse_face_of_source(
    engine: Engine,
    written: np.ndarray,
    one: Known,
    patch: np.ndarray,
    source: np.ndarray | None = None,
    checked: np.ndarray | None = None,
    recognise: bool = False,
) -> None:
    """Raise where a face that was to be hidden is still there.

    A new face, or a cover, changes nearly all of its middle. Where it is known what was `checked`, the file must be nearer to
    that than to the source: pixels alone are enough, as new faces were compared before. Where half of the middle is as it was,
    something may lie in front of the face, or there never was a face. So a face must be seen there, too, and be recognised as
    the person if anything is known of them.

    Args:
        patch: of the source, `checked` of what was to be written.
        source: the picture before, where it is still known.
        recognise: whether to recognise a face there whatever the pixels are like.
    """
    if not patch.size:
        return
    now, middle = _patch(written, one.face.box), np.s_[CELLS // 4 : -CELLS // 4, CELLS // 4 : -CELLS // 4]
    suspect = (_cells(now, patch) < SAME_CELL)[middle].mean() >= SAME_FACE
    if checked is not None:
        differs = _cells(checked, patch) > 2 * SAME_CELL
        if differs[middle].mean() > CHANGED:
            if (_cells(now, patch) < _cells(now, checked))[differs].mean() > COME_BACK:
                raise _face_of_source(one)
            return
    if one.veiled or not (suspect or (recognise and one.face.landmarks is not None)):
        return
    seen = _seen_at(engine.face_analyser, written, one.face)
    if seen is None and engine.face_analyser is not None:
        return
    likeness = None
    if seen is not None and seen.landmarks is not None:
        embedding = one.embedding
        if embedding is None and source is not None and one.face.landmarks is not None:
            embedding = engine.embed_in(source, one.face.landmarks)
        likeness = None if embedding is None else float(engine.embed_in(written, seen.landmarks) @ embedding)
    slack = SLACK if suspect else 2 * SLACK  # where pixels did change, an encoder's loss alone is no reason
    if suspect if likeness is None else not 1 - likeness >= engine.identity_limit - slack:
        raise _face_of_source(one)


def _face_of_source(one: Known) -> VerificationError:
    return VerificationError(
        f"the face at {_numbers(one.face.box)} is still that of the source, which is a fault of this program"
    )


def _seen_at(analyser: FaceAnalyserModel | None, picture: np.ndarray, face: Face) -> Face | None:
    """The face that a picture shows in the place of a face of the source, with landmarks if they can be placed."""
    if analyser is None:
        return None
    if face.landmarks is not None:
        (again,) = analyser.find_again([picture], [face.landmarks])
        if again.landmarks is not None:
            return again
    size = max(face.box[2:] - face.box[:2])
    part, origin = part_of(picture, face.box + 0.75 * size * np.array([-1, -1, 1, 1]))
    boxes = [one.box + np.tile(origin, 2) for one in analyser.detect(np.ascontiguousarray(part))]
    return next((Face(box) for box in boxes if intersection_over_union(box, face.box) > ITS_PLACE), None)


def _refuse_missed_faces(
    analyser: FaceAnalyserModel | None,
    written: np.ndarray,
    known: Sequence[Known],
    patches: Sequence[np.ndarray],
    threshold: float | None,
    pixels: int | None = None,
) -> None:
    """Raise where a clear face is seen whose place is not known."""
    if analyser is None:
        return
    threshold = analyser.config.detection_threshold if threshold is None else threshold
    least = min(analyser.config.close_threshold, threshold) + CLEARER
    for face in _searched(analyser, written, threshold + CLEARER, pixels):
        if any(_explains(one, patch, face, written) for one, patch in zip(known, patches, strict=True)):
            continue
        if analyser.close_score(written, face) >= least:
            raise VerificationError(
                f"a face is seen at {_numbers(face.box)} that was not found before (score {face.score:.2f}). Find more faces "
                f"with a lower `--threshold` than {threshold:g}, or name those of a photo with `--faces`"
            )


def _searched(analyser: FaceAnalyserModel, picture: np.ndarray, threshold: float, pixels: int | None) -> list[Face]:
    """The clear upright faces of a picture, as they are seen in a mirror."""
    height, width = picture.shape[:2]
    scale = 1.0 if pixels is None else min(1.0, (pixels / (height * width)) ** 0.5)
    small = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) if scale < 1 else picture
    found = analyser.glance(np.ascontiguousarray(small[:, ::-1]), threshold)
    return [
        Face(np.array([width, 0, width, 0]) + np.array([-1, 1, -1, 1]) * face.box[[2, 1, 0, 3]] / scale, face.score)
        for face in found
    ]


def _explains(known: Known, patch: np.ndarray, face: Face, written: np.ndarray) -> bool:
    """Whether a face that is seen is the known one, or comes from what took its place."""
    if intersection_over_union(face.box, whole_box(known.face)) > ITS_PLACE:
        return True
    if part_inside(face.box, whole_box(known.face)) < WITHIN:
        return False
    if known.stays or not patch.size:
        return False
    same = _cells(_patch(written, known.face.box), patch) < SAME_CELL
    low, high = known.face.box.reshape(2, 2).clip(0, written.shape[1::-1])
    touched, _ = part_of(same, ((face.box.reshape(2, 2) - low) / (high - low) * CELLS).reshape(4))
    return bool(touched.size and touched.mean() < SAME_FACE)


def _done_box(face: Face) -> np.ndarray:
    """The box `(4,)` in which a new face or a cover may change a picture."""
    low, high = cover_box(face).reshape(2, 2)
    reach = BEYOND * (high - low).max()
    return np.concatenate([low - reach, high + reach])


def _cells(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """By how many grey levels the cells `(CELLS, CELLS)` of two patches differ on average."""
    return cv2.resize(np.float32(cv2.absdiff(one, other)), (CELLS, CELLS), interpolation=cv2.INTER_AREA)


def _patch(picture: np.ndarray, box: np.ndarray) -> np.ndarray:
    part, _ = part_of(picture, box)
    return _grey(cv2.resize(part, (PATCH, PATCH), interpolation=cv2.INTER_AREA)) if part.size else np.empty((0, 0), np.uint8)


def _grey(picture: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)


def _equal_alpha(one, other) -> bool:
    if one is None or other is None:
        return one is other
    return one.size == other.size and np.abs(np.asarray(one).astype(np.int16) - np.asarray(other)).mean() <= 2


def _numbers(box: np.ndarray) -> str:
    return " ".join(f"{side:.0f}" for side in box)
