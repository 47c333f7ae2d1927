"""Read videos: files -> upright 8-bit RGB frames, with PyAV (FFmpeg).

The pictures look as players show them: turned upright, with 10-bit and HDR colours converted to 8-bit BT.709. Each comes with its
time, because frame rates may vary.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import cv2
import numpy as np

from diffdeid.errors import VideoError

VIDEO_SUFFIXES = frozenset({".avi", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".webm"})
_PQ, _HLG = 16, 18
_SDR_WHITE = 203.0  # cd/m² of a white page in HDR (BT.2408)
_BT2020_TO_BT709 = np.array(
    [(1.6605, -0.5876, -0.0728), (-0.1246, 1.1329, -0.0083), (-0.0182, -0.1006, 1.1187)], np.float32
)  # BT.2087


class Frame(NamedTuple):
    """A picture and when it is shown.

    Attributes:
        picture: `(height, width, 3)` uint8 RGB.
        time: seconds since the first frame.
    """

    picture: np.ndarray
    time: Fraction


class VideoReader:
    """The frames of a video file; it can be iterated several times.

    Args:
        path: the file.
        start, end: seconds of the source between which frames are read, without the one at `end`; `None` for all.

    Attributes:
        rate: frames a second, on average.
        num_frames: how many to expect; an estimate, 0 if nothing is known.
        sample_aspect_ratio: width of a pixel by its height.
        origin: seconds at which the first frame is shown in the source; known once that frame was read.
        notes: what had to be changed in the pictures, in words.

    Raises:
        VideoError: the file cannot be read as a video, or no frame lies between `start` and `end`; also while iterating.
        ValueError: `start` is negative, or `end` is not later.
    """

    def __init__(self, path: str | Path, start: float | None = None, end: float | None = None):
        self.path = Path(path)
        if (start is not None and start < 0) or (end is not None and end <= (start or 0)):
            raise ValueError(f"`start` must not be negative and `end` must be later, got {start} and {end}.")
        self.start, self.end = (
            None if second is None else Fraction(second).limit_denominator(1_000_000)  # 0.2 becomes exactly 1/5
            for second in (start, end)
        )
        self.notes: list[str] = []
        self.origin = Fraction(0)
        with self._open() as container:
            stream = _pictures(container, self.path)
            self.rate = Fraction(stream.average_rate or stream.guessed_rate or 25)
            self.sample_aspect_ratio = stream.sample_aspect_ratio or Fraction(1)
            seconds = container.duration / av.time_base if container.duration else float(stream.frames / self.rate)
            span = float(min(seconds, self.end or seconds) - (self.start or 0))
            whole = stream.frames if start is end is None else 0
            self.num_frames = whole or max(0, round(span * self.rate))

    def __iter__(self) -> Iterator[Frame]:
        first, last, size = None, Fraction(-1), None
        with self._open() as container:
            for time, frame in self._decode(container):
                first = time if first is None else first
                time -= first
                if time <= last:
                    self._note("time stamps that stood still or ran backwards were replaced by steps of 1 ms")
                    time = last + Fraction(1, 1000)
                picture = self._picture(frame)
                size = size or picture.shape[1::-1]
                if picture.shape[1::-1] != size:
                    self._note(f"frames of other sizes were scaled to {size[0]}×{size[1]}")
                    picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
                self.origin = first
                yield Frame(picture, time)
                last = time
        if first is None:
            span = "" if self.start is self.end is None else f" from {float(self.start or 0)} s to {float(self.end or 'inf')} s"
            raise VideoError(f"`{self.path}` has no frame{span}.")

    def _open(self) -> av.container.InputContainer:
        try:
            return av.open(str(self.path))
        except (av.FFmpegError, OSError) as error:
            raise VideoError(
                f"`{self.path}` cannot be read as a video: {error}. Is it complete, and do players show it?"
            ) from error

    def _decode(self, container: av.container.InputContainer) -> Iterator[tuple[Fraction, av.VideoFrame]]:
        """The frames between `start` and `end` with their times in the source."""
        stream = _pictures(container, self.path)
        stream.thread_type = "AUTO"
        offset = Fraction(stream.start_time or 0) * stream.time_base  # what people call second 0
        try:
            if self.start:
                container.seek(int((self.start + offset) / stream.time_base), stream=stream)  # to the key frame before
            for number, frame in enumerate(container.decode(stream)):
                time = number / self.rate if frame.pts is None else frame.pts * frame.time_base
                if self.end is not None and time - offset >= self.end:
                    return
                if not self.start or time - offset >= self.start:  # some files claim to begin later than their first frame
                    yield time, frame
        except (av.FFmpegError, OSError) as error:
            raise VideoError(
                f"`{self.path}` is damaged: {error}. No output was made, for its faces could not be covered."
            ) from error

    def _picture(self, frame: av.VideoFrame) -> np.ndarray:
        if frame.color_trc in (_PQ, _HLG):
            self._note("HDR colours were brought to BT.709, 8 bits")
            picture = _tone_map(frame.to_ndarray(format="rgb48le"), hlg=frame.color_trc == _HLG)
        else:
            if frame.format.components and frame.format.components[0].bits > 8:
                self._note(f"{frame.format.components[0].bits}-bit colours were brought to 8 bits")
            picture = frame.to_ndarray(format="rgb24")
        return np.ascontiguousarray(np.rot90(picture, round(frame.rotation / 90)))  # phones film sideways and store the rotation

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


def _pictures(container: av.container.InputContainer, path: Path) -> av.video.stream.VideoStream:
    """The first video stream that is not a cover picture."""
    for stream in container.streams.video:
        if not stream.disposition & av.stream.Disposition.attached_pic:
            return stream
    raise VideoError(f"`{path}` holds no video.")


def _tone_map(picture: np.ndarray, hlg: bool) -> np.ndarray:
    """PQ or HLG coded BT.2020 colours, uint16 -> BT.709, uint8 (BT.2100, BT.2087; the shoulder is Reinhard's).

    White pages stay white; brighter light is compressed into the last tenth of the range.
    """
    code = np.linspace(0, 1, 65536, dtype=np.float32)
    if hlg:
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        scene = np.where(code <= 0.5, code**2 / 3, (np.exp((code - c) / a) + b) / 12)
        light = 1000 * scene**1.2 / _SDR_WHITE
    else:
        m1, m2, c1, c2, c3 = 0.1593017578125, 78.84375, 0.8359375, 18.8515625, 18.6875
        power = code ** (1 / m2)
        light = 10_000 * (np.maximum(power - c1, 0) / (c2 - c3 * power)) ** (1 / m1) / _SDR_WHITE
    linear = light.astype(np.float32)[picture] @ _BT2020_TO_BT709.T
    knee = 0.8
    over = np.maximum(linear - knee, 0)
    linear = np.clip(np.minimum(linear, knee) + (1 - knee) * over / (over + 1 - knee), 0, 1)
    coded = np.where(linear < 0.018, 4.5 * linear, 1.099 * linear**0.45 - 0.099)
    return (coded * 255).round().astype(np.uint8)
