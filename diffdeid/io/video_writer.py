"""Write videos: frames -> a new file, with PyAV (FFmpeg).

Writing starts from bare pixels, so tags, chapters, subtitles, cover art, thumbnails and captions of the source are left out; its
sound is kept only if asked for. Times of frames are kept, so that a varying frame rate varies in the output as well.
"""

from __future__ import annotations

import tempfile
from contextlib import suppress
from fractions import Fraction
from math import lcm
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import Colorspace

from diffdeid.errors import VideoError
from diffdeid.io.files import Check, pass_check, put, taken, temporary_name
from diffdeid.io.sound import SoundCopy
from diffdeid.io.video_reader import Frame
from diffdeid.options import FileOptions

_CODECS = {".m4v": "libx264", ".mkv": "libx264", ".mov": "libx264", ".mp4": "libx264", ".webm": "libvpx-vp9"}  # what we write
_TAKES_ODD_SIDES = {"libvpx-vp9"}
_TICKS, _MOST_TICKS = 90_000, 10_000_000  # units of time stamps, a second
_BT709 = 1  # the number of its matrix, primaries and transfer function in H.273


class VideoWriter:
    """Writes a video file that appears complete or not at all. Use it in a `with` block: an error in the block leaves no file.

    Args:
        path: file to write; its suffix chooses the container.
        rate: frames a second, on average.
        sample_aspect_ratio: width of a pixel by its height.
        sound: file whose sound is to be copied, `None` for no sound.
        distort: disguise voices, see `io.sound`.
        origin: seconds in `sound` at which the first frame is shown.
        codec: FFmpeg's name of an encoder; `None` for H.264, in WebM VP9.
        crf: constant rate factor, 0…63: lower means better quality and larger files.
        preset: FFmpeg's name for a trade of time for size, as "slow"; `None` for the encoder's own.
        overwrite: replace an existing file.
        check: called with the finished file before it gets its name; an error in it leaves no file.

    Attributes:
        notes: what had to be changed in the pictures, in words.

    Raises:
        VideoError: the file exists, or cannot be written as asked.
        VerificationError: `check` refuses the file.
    """

    def __init__(
        self,
        path: str | Path,
        rate: Fraction = Fraction(25),
        sample_aspect_ratio: Fraction = Fraction(1),
        sound: Path | None = None,
        origin: Fraction = Fraction(0),
        distort: bool = False,
        codec: str | None = None,
        crf: int = FileOptions.crf,
        preset: str | None = None,
        overwrite: bool = False,
        check: Check | None = None,
    ):
        self.path = Path(path)
        check_video_writable(self.path, overwrite)
        self.codec = codec or _CODECS[self.path.suffix.lower()]
        self.rate, self.sample_aspect_ratio = Fraction(rate), sample_aspect_ratio
        self.sound, self.origin, self.distort = sound, origin, distort
        self.options = {"crf": str(crf)} | ({} if preset is None else {"preset": preset})
        self.check, self.overwrite, self._temporary = check, overwrite, temporary_name(self.path, self.path.suffix)
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
        """Append a frame. All frames must have the same size, and their times must ascend."""
        try:
            if self._stream is None:
                self._start(frame.picture)
            picture = av.VideoFrame.from_ndarray(self._sized(frame.picture), format="rgb24")
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
        """Append the encoded frames, with their times, of a video that a `VideoWriter` with the same options wrote."""
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
        height, width = self._sized(picture).shape[:2]
        if (height, width) != picture.shape[:2]:
            self.notes.append(f"odd sides were made even: {width}×{height}")
        try:
            stream = self._container.add_stream(self.codec, rate=self.rate, options=self.options)
        except (av.FFmpegError, ValueError) as error:
            raise VideoError(f"`{self.codec}` is not a video encoder for `{self.path.suffix}` files here: {error}.") from error
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.sample_aspect_ratio = self.sample_aspect_ratio
        ticks = lcm(_TICKS, self.rate.numerator)  # a second; frames of a constant rate lie on them
        stream.codec_context.time_base = Fraction(1, ticks if ticks <= _MOST_TICKS else _TICKS)
        stream.codec_context.flags |= av.codec.context.Flags.bitexact
        for name in ("colorspace", "color_primaries", "color_trc", "color_range"):
            setattr(stream.codec_context, name, _BT709)  # the number 1 also means limited range
        self._stream = self._encoder = stream
        self._open_sound()

    def _sized(self, picture: np.ndarray) -> np.ndarray:
        """The picture with even sides, if the encoder stores colours for pairs of pixels: the last row or column is repeated."""
        height, width = (0, 0) if self.codec in _TAKES_ODD_SIDES else picture.shape[:2]
        return np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")

    def _open_sound(self) -> None:
        if self.sound is not None:
            self._sound = SoundCopy(self.sound, self._container, self.origin, self.distort)

    def __exit__(self, kind: type | None, *_: object) -> None:
        try:
            if kind is None:
                self._finish()
            else:
                with suppress(av.FFmpegError, OSError, ValueError):  # the error of the block matters more
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
        pass_check(self.check, self._temporary, self.path)
        try:
            put(self._temporary, self.path, self.overwrite)
        except FileExistsError as error:  # another program wrote it meanwhile
            raise VideoError(taken(self.path)) from error


def check_video_writable(path: Path, overwrite: bool, source: Path | None = None) -> None:
    """Raise `VideoError` if a `VideoWriter` would refuse, or would write over the source, before time is spent on pixels."""
    if source is not None and path.exists() and source.exists() and path.samefile(source):
        raise VideoError(f"`{path}` is the input and would be the output. Inputs are never written to: name another file.")
    if path.suffix.lower() not in _CODECS:
        raise VideoError(f"Cannot write `{path.name}`: the suffix must be one of {', '.join(sorted(_CODECS))}.")
    if path.exists() and not overwrite:
        raise VideoError(taken(path))


def rehearse(path: Path, codec: str | None, crf: int, preset: str | None) -> None:
    """Raise `VideoError` if FFmpeg cannot encode a video with these options, by writing a short one that is deleted."""
    with tempfile.TemporaryDirectory() as folder:
        trial = Path(folder, f"trial{path.suffix}")
        try:
            with VideoWriter(trial, codec=codec, crf=crf, preset=preset) as writer:
                writer.write(Frame(np.zeros((64, 64, 3), np.uint8), Fraction(0)))
        except VideoError as error:
            raise VideoError(str(error).replace(str(trial), str(path))) from error
