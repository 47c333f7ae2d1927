"""Videos in and out: files and upright 8-bit RGB frames, by way of PyAV (FFmpeg).

Reading gives the pictures as players show them: turned upright, 10-bit and HDR colours brought to 8-bit BT.709. Writing starts
from bare pixels in a new file, so tags, chapters, subtitles, cover art, thumbnails and captions of the source stay behind; sound
comes along only when asked for. Times of frames are kept, so that a varying frame rate varies in the output as well.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import cv2
import numpy as np
from av.video.reformatter import Colorspace

from diffdeid.errors import VideoError

VIDEO_SUFFIXES = frozenset({".avi", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".webm"})
_CODECS = {".m4v": "libx264", ".mkv": "libx264", ".mov": "libx264", ".mp4": "libx264", ".webm": "libvpx-vp9"}  # what we write
_BT709 = 1  # the number of its matrix, primaries and transfer function in H.273
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
    """The frames of a video file; can be iterated again and again.

    Args:
        path: the file.
        start, end: seconds of the source between which frames are read, the one at `end` left out; `None` for all.

    Attributes:
        rate: frames a second, on average.
        num_frames: how many to expect; an estimate, 0 if nothing is known.
        sample_aspect_ratio: width of a pixel by its height.
        origin: seconds at which the first frame is shown in the source; known once it was read.
        notes: what had to be changed in the pictures, in words.

    Raises:
        VideoError: the file cannot be read as a video, or no frame lies between `start` and `end`; also while iterating.
    """

    def __init__(self, path: str | Path, start: float | None = None, end: float | None = None):
        self.path = Path(path)
        if (start is not None and start < 0) or (end is not None and end <= (start or 0)):
            raise ValueError(f"`start` must not be negative and `end` must lie behind it, got {start} and {end}.")
        self.start, self.end = (
            None if second is None else Fraction(second).limit_denominator(1_000_000)  # 0.2 is a fifth, and no bit more
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
                time = max(time - first, last + Fraction(1, 1000))  # broken time stamps stand still or run backwards
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
                if time - offset >= (self.start or 0):
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
        return np.ascontiguousarray(np.rot90(picture, round(frame.rotation / 90)))  # phones film sideways and write it down

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


class HeldFile:
    """A file that is read twice and must stay the same. It may lose its name once the second reading has begun.

    Attributes:
        fingerprint: a hash of the content. Time stamps tell less, for servers touch files.

    Raises:
        VideoError: it cannot be read, or has changed, wherever that is checked.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            self._file = path.open("rb")
        except OSError as error:
            raise VideoError(f"`{path}` cannot be read: {error.strerror}.") from error
        self.fingerprint = self._hash()

    def __enter__(self) -> HeldFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def check_name(self) -> None:
        """Whether the name still stands for this file."""
        if not (self.path.exists() and os.path.samestat(self.path.stat(), os.fstat(self._file.fileno()))):
            raise self._changed()

    def check_content(self) -> None:
        """Whether the content is what it was."""
        if self._hash() != self.fingerprint:
            raise self._changed()

    def _hash(self) -> str:
        self._file.seek(0)
        return hashlib.file_digest(self._file, "blake2b").hexdigest()

    def _changed(self) -> VideoError:
        return VideoError(f"`{self.path}` changed while it was read, so faces may have been missed. No output was made.")


class VideoWriter:
    """Writes a video file that appears complete or not at all. Use it in a `with` block: an error in it leaves no file.

    Args:
        path: file to write; its suffix chooses the container.
        rate: frames a second, on average.
        sample_aspect_ratio: width of a pixel by its height.
        sound: file whose sound is to be copied, `None` for no sound.
        origin: seconds in `sound` at which the first frame is shown.
        codec: FFmpeg's name of an encoder; `None` for H.264, in WebM VP9.
        crf: constant rate factor: quality, lower is better and larger.
        preset: FFmpeg's name of a trade of time for size; `None` for the encoder's own.
        overwrite: replace an existing file.

    Attributes:
        notes: what had to be changed in the pictures, in words.

    Raises:
        VideoError: the file exists, or cannot be written as asked.
    """

    def __init__(
        self,
        path: str | Path,
        rate: Fraction = Fraction(25),
        sample_aspect_ratio: Fraction = Fraction(1),
        sound: Path | None = None,
        origin: Fraction = Fraction(0),
        codec: str | None = None,
        crf: int = 18,
        preset: str | None = None,
        overwrite: bool = False,
    ):
        self.path = Path(path)
        check_video_writable(self.path, overwrite)
        self.codec = codec or _CODECS[self.path.suffix.lower()]
        self.rate, self.sample_aspect_ratio, self.sound, self.origin = Fraction(rate), sample_aspect_ratio, sound, origin
        self.options = {"crf": str(crf)} | ({} if preset is None else {"preset": preset})
        self._temporary = self.path.with_name(f".diffdeid-{secrets.token_hex(8)}{self.path.suffix}")
        self._stream = self._encoder = self._sound = None
        self._last, self._last_dts = Fraction(0), -(2**62)
        self.notes: list[str] = []

    def __enter__(self) -> VideoWriter:
        try:
            options = {"fflags": "+bitexact"}  # no versions of programs in the file
            if self.path.suffix.lower() in (".m4v", ".mov", ".mp4"):
                options["movflags"] = "+faststart"
            self._container = av.open(str(self._temporary), "w", options=options)
        except (av.FFmpegError, OSError) as error:
            raise VideoError(f"Cannot write `{self.path}`: {error}.") from error
        return self

    def write(self, frame: Frame) -> None:
        """Append a frame; all must have one size, and times must grow."""
        try:
            if self._stream is None:
                self._start(frame.picture)
            picture = av.VideoFrame.from_ndarray(_even(frame.picture), format="rgb24")
            picture = picture.reformat(format=self._stream.pix_fmt, dst_colorspace=Colorspace.ITU709)
            picture.time_base = self._stream.codec_context.time_base
            picture.pts = round(frame.time / picture.time_base)
            self._container.mux(self._stream.encode(picture))
            if self._sound is not None:
                self._sound.copy(frame.time)
        except (av.FFmpegError, OSError, ValueError) as error:
            raise VideoError(f"Cannot write `{self.path}` with `{self.codec}`: {error}.") from error
        self._last = frame.time

    def append(self, part: Path) -> None:
        """Take over all frames of a video that a `VideoWriter` of the same options wrote, as they are encoded, times included."""
        try:
            with av.open(str(part)) as source:
                stream = source.streams.video[0]
                if self._stream is None:
                    self._stream = self._container.add_stream_from_template(stream)
                    self._open_sound()
                for packet in source.demux(stream):
                    if packet.dts is not None:
                        packet.dts = min(max(packet.dts, self._last_dts + 1), packet.pts)
                        self._last_dts, self._last = packet.dts, packet.pts * packet.time_base
                        packet.stream = self._stream
                        self._container.mux(packet)
                        if self._sound is not None:
                            self._sound.copy(self._last)
        except (av.FFmpegError, OSError, ValueError) as error:
            raise VideoError(f"Cannot join `{part}` to `{self.path}`: {error}.") from error

    def _start(self, picture: np.ndarray) -> None:
        height, width = _even(picture).shape[:2]
        if (height, width) != picture.shape[:2]:
            self.notes.append(f"odd sides were made even: {width}×{height}")
        try:
            stream = self._container.add_stream(self.codec, rate=self.rate, options=self.options)
        except (av.FFmpegError, ValueError) as error:
            raise VideoError(f"`{self.codec}` is no video encoder for `{self.path.suffix}` files here: {error}.") from error
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.sample_aspect_ratio = self.sample_aspect_ratio
        stream.codec_context.time_base = Fraction(1, 90_000)
        stream.codec_context.flags |= av.codec.context.Flags.bitexact
        for name in ("colorspace", "color_primaries", "color_trc", "color_range"):
            setattr(stream.codec_context, name, _BT709)  # the number 1 also means limited range
        self._stream = self._encoder = stream
        self._open_sound()

    def _open_sound(self) -> None:
        if self.sound is not None:
            self._sound = _SoundCopy(self.sound, self._container, self.origin)

    def __exit__(self, kind: type | None, *_: object) -> None:
        try:
            if kind is None:
                self._finish()
            else:
                with suppress(av.FFmpegError, OSError, ValueError):  # the error on its way matters more
                    self._container.close()
        except (av.FFmpegError, OSError, ValueError) as error:
            raise VideoError(f"Cannot write `{self.path}`: {error}.") from error
        finally:
            self._temporary.unlink(missing_ok=True)

    def _finish(self) -> None:
        if self._encoder is not None:
            self._container.mux(self._encoder.encode(None))
        if self._sound is not None:
            self._sound.copy(self._last + 1 / self.rate)
            self._sound.close()
        self._container.close()
        os.replace(self._temporary, self.path)


class _SoundCopy:
    """Carries the sound tracks of a file over, packet by packet, as far as the pictures have come.

    Tracks that the container cannot hold are encoded anew.
    """

    def __init__(self, path: Path, target: av.container.OutputContainer, origin: Fraction):
        self.source, self.target, self.origin = av.open(str(path)), target, origin
        self.streams: dict[int, tuple[av.audio.stream.AudioStream, av.AudioResampler | None]] = {}
        for stream in self.source.streams.audio:
            if stream.codec_context.name in target.supported_codecs:
                self.streams[stream.index] = target.add_stream_from_template(stream), None
            else:
                encoded = target.add_stream(target.default_audio_codec, rate=stream.rate)
                encoded.layout = stream.layout
                resampler = av.AudioResampler(encoded.format, encoded.layout, encoded.rate)
                self.streams[stream.index] = encoded, resampler
        self.packets = self._shifted()
        self.waiting = next(self.packets, None)

    def copy(self, until: Fraction) -> None:
        """Write what is heard before a time, seconds since the first frame."""
        while self.waiting is not None and self.waiting[0] < until:
            self.target.mux(self.waiting[1])
            self.waiting = next(self.packets, None)

    def _shifted(self) -> Iterator[tuple[Fraction, av.Packet]]:
        """All packets with their times since the first frame."""
        if not self.streams:
            return
        for packet in self.source.demux([self.source.streams[index] for index in self.streams]):
            stream, resampler = self.streams[packet.stream.index]
            for copied in [packet] if resampler is None else _encoded(packet, stream, resampler):
                if copied.pts is None:  # the end of a track
                    continue
                time = copied.pts * copied.time_base - self.origin
                if time >= 0:
                    shift = round(self.origin / copied.time_base)
                    copied.dts = (copied.pts if copied.dts is None else copied.dts) - shift
                    copied.pts, copied.stream = copied.pts - shift, stream
                    yield time, copied

    def close(self) -> None:
        self.source.close()


def _encoded(packet: av.Packet, stream: av.audio.stream.AudioStream, resampler: av.AudioResampler) -> list[av.Packet]:
    """What `stream` makes of the sound in a packet; the last packet of a track is empty and brings what was held back."""
    frames = [part for frame in packet.decode() for part in resampler.resample(frame)]
    packets = [encoded for frame in frames for encoded in stream.encode(frame)]
    return packets if packet.dts is not None else packets + stream.encode(None)


def check_video_writable(path: Path, overwrite: bool, source: Path | None = None) -> None:
    """Raise `VideoError` where a `VideoWriter` would refuse or write over the source, before time is spent on the pixels."""
    if source is not None and path.exists() and source.exists() and path.samefile(source):
        raise VideoError(f"`{path}` is the input and would be the output. Inputs are never written to: name another file.")
    if path.suffix.lower() not in _CODECS:
        raise VideoError(f"Cannot write `{path.name}`: the suffix must be one of {', '.join(sorted(_CODECS))}.")
    if path.exists() and not overwrite:
        raise VideoError(f"`{path}` exists. Pass `--overwrite` (`overwrite=True`) to replace it.")


def rehearse(path: Path, codec: str | None, crf: int, preset: str | None) -> None:
    """Raise `VideoError` where FFmpeg will not encode videos so, by writing one that is thrown away."""
    with tempfile.TemporaryDirectory() as folder:
        trial = Path(folder, f"trial{path.suffix}")
        try:
            with VideoWriter(trial, codec=codec, crf=crf, preset=preset) as writer:
                writer.write(Frame(np.zeros((64, 64, 3), np.uint8), Fraction(0)))
        except VideoError as error:
            raise VideoError(str(error).replace(str(trial), str(path))) from error


def _pictures(container: av.container.InputContainer, path: Path) -> av.video.stream.VideoStream:
    """The video stream proper: covers of albums are video streams of one picture."""
    for stream in container.streams.video:
        if not stream.disposition & av.stream.Disposition.attached_pic:
            return stream
    raise VideoError(f"`{path}` holds no video.")


def _even(picture: np.ndarray) -> np.ndarray:
    """The picture with its last row and column repeated where sides are odd, for colours are stored for pairs of pixels."""
    height, width = picture.shape[:2]
    return np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")


def _tone_map(picture: np.ndarray, hlg: bool) -> np.ndarray:
    """PQ or HLG coded BT.2020 colours, uint16 -> BT.709, uint8 (BT.2100, BT.2087; the shoulder is Reinhard's).

    White pages stay white; what is brighter is brought into the last tenth of the range.
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
