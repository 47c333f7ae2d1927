"""The sound of a video: copied packet by packet, or with disguised voices.

The disguise lowers sound by four semitones at the same speed: pitch and timbre of a voice change, words, accent and manner of
speaking stay. Anybody who knows this can raise the pitch again. It helps against being recognised by chance, not against people
who try.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av

FALL = 0.8  # factor of all frequencies
_LEAD = Fraction(1, 5)  # seconds before the first frame at which sound may begin: codecs start with samples that nobody hears


class SoundCopy:
    """Copies the sound tracks of a file into another one, in step with its pictures.

    Packets are copied unchanged. Tracks that the container cannot hold, those to be distorted, and Vorbis, whose header holds
    tags, are encoded anew.

    Args:
        path: the file.
        target: where the tracks go; its header must not be written yet.
        origin: seconds in the file at which the first picture is shown. Sound before it is left out, except the first samples of
            codecs when sound and pictures begin together.
        distort: whether to disguise voices.
    """

    def __init__(self, path: Path, target: av.container.OutputContainer, origin: Fraction, distort: bool = False):
        self.source, self.target, self.origin = av.open(str(path)), target, origin
        self.streams: dict[int, tuple[av.audio.stream.AudioStream, _Recoder | None]] = {}
        codec = "libopus" if target.format.name == "webm" else "aac"
        refused = {"vorbis"} | ({"opus"} if target.format.name == "mov" else set())  # the header of Vorbis holds tags
        for stream in self.source.streams.audio:
            if stream.codec_context.name in target.supported_codecs - refused and not distort:
                self.streams[stream.index] = target.add_stream_from_template(stream), None
            else:
                encoded = target.add_stream(codec, rate=_rate(codec, stream.rate))
                encoded.layout = _layout(stream)
                self.streams[stream.index] = encoded, _Recoder(encoded, distort)
        self.packets = self._shifted()
        self.waiting = next(self.packets, None)

    def copy(self, until: Fraction) -> None:
        """Write the sound before a time, in seconds since the first frame."""
        while self.waiting is not None and self.waiting[0] < until:
            self.target.mux(self.waiting[1])
            self.waiting = next(self.packets, None)

    def _shifted(self) -> Iterator[tuple[Fraction, av.Packet]]:
        """All packets with their times since the first frame."""
        if not self.streams:
            return
        begins: dict[int, Fraction] = {}
        edits = self.target.format.name in ("ipod", "mov", "mp4")  # can skip first samples; Matroska can for Opus only
        for packet in self.source.demux([self.source.streams[index] for index in self.streams]):
            stream, recoder = self.streams[packet.stream.index]
            for copied in [packet] if recoder is None else recoder.encode(packet):
                if copied.pts is None:  # the end of a track
                    continue
                time = copied.pts * copied.time_base - self.origin
                leads = edits or recoder is not None or stream.codec_context.name == "opus"
                if time >= 0 or (leads and begins.setdefault(stream.index, time) >= -_LEAD):
                    shift = round(self.origin / copied.time_base)
                    copied.dts = (copied.pts if copied.dts is None else copied.dts) - shift
                    copied.pts, copied.stream = copied.pts - shift, stream
                    yield time, copied

    def close(self) -> None:
        self.source.close()


class _Recoder:
    """Decodes packets of a track, disguises voices if asked, and encodes them."""

    def __init__(self, stream: av.audio.stream.AudioStream, distort: bool):
        self.stream, self.distort = stream, distort
        self.resampler = av.AudioResampler(stream.format, stream.layout, stream.rate)
        self.disguise: _Disguise | None = None

    def encode(self, packet: av.Packet) -> list[av.Packet]:
        """Encode the next packet; the last packet of a track is empty and flushes what was held back."""
        frames = packet.decode()
        if self.distort:
            if self.disguise is None and frames:
                self.disguise = _Disguise(frames[0])
            ending = packet.dts is None
            frames = [] if self.disguise is None else self.disguise.change(frames, ending)
        parts = [part for frame in frames for part in self.resampler.resample(frame)]
        packets = [encoded for part in parts for encoded in self.stream.encode(part)]
        return packets if packet.dts is not None else packets + self.stream.encode(None)


class _Disguise:
    """FFmpeg's filters for a track with a given first frame; they keep the timing."""

    def __init__(self, first: av.AudioFrame):
        self.graph = av.filter.Graph()
        rate = first.sample_rate
        begin = self.graph.add_abuffer(
            format=first.format.name, sample_rate=rate, layout=first.layout.name, time_base=first.time_base
        )
        steps = [
            ("aresample", "async=1"),  # fills gaps with silence, because from here on samples are counted
            ("asetrate", str(round(rate * FALL))),
            ("aresample", str(rate)),
            ("atempo", str(1 / FALL)),
            ("abuffersink", None),
        ]
        nodes = [begin, *(self.graph.add(name, options) for name, options in steps)]
        self.graph.link_nodes(*nodes).configure()
        self.rate, self.next = rate, round(first.pts * first.time_base * rate)

    def change(self, frames: list[av.AudioFrame], ending: bool) -> list[av.AudioFrame]:
        """Filter frames; at the end of the track, `ending` flushes what was held back."""
        for frame in [*frames, None] if ending else frames:
            self.graph.push(frame)
        changed = []
        while True:
            try:
                frame = self.graph.pull()
            except (av.BlockingIOError, av.EOFError):
                return changed
            frame.pts, frame.time_base = self.next, Fraction(1, self.rate)
            self.next += frame.samples
            changed.append(frame)


def _layout(stream: av.audio.stream.AudioStream) -> str:
    """The layout of the channels of a track; some files tell only their number."""
    named = not stream.layout.name.endswith("channels")
    return stream.layout.name if named else {1: "mono", 6: "5.1", 8: "7.1"}.get(stream.layout.nb_channels, "stereo")


def _rate(codec: str, wanted: int) -> int:
    """The sample rate of an encoder that is nearest to the wanted one."""
    rates = av.Codec(codec, "w").audio_rates
    return min(rates, key=lambda rate: abs(rate - wanted)) if rates else wanted
