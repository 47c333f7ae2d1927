"""Reading and writing videos: frames look as in players, and only pictures (and sound, if asked for) are written."""

import subprocess
import sys
from fractions import Fraction
from itertools import pairwise

import av
import numpy as np
import pytest

from diffdeid.errors import VideoError
from diffdeid.io.video_reader import Frame, VideoReader
from diffdeid.io.video_writer import VideoWriter, check_video_writable

RATE = 25


def pictures(count=12, height=64, width=96):
    """A bright square that moves over colours."""
    for number in range(count):
        picture = np.full((height, width, 3), (40, 80, 160), np.uint8)
        picture[10:30, 4 * number : 4 * number + 20] = (250, 200, 20)
        yield picture


def write(path, frames, codec="libx264", pix_fmt="yuv420p", rate=RATE, times=None, sounds=(), tags=None, prepare=None, **options):
    """An ordinary video, made without our code."""
    with av.open(str(path), "w") as file:
        if tags:
            file.metadata.update(tags)
        stream = file.add_stream(codec, rate=rate, options=options)
        frames = list(frames)
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], pix_fmt
        if prepare is not None:
            prepare(stream)
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        voices = []
        for sound, frequency in sounds:
            voice = file.add_stream(sound, rate=48000)
            voice.metadata.update(tags or {})
            voice.layout = "mono"
            voices.append((voice, frequency))
        for number, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb48le" if picture.dtype == np.uint16 else "rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[number], Fraction(1, 1000)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
        for voice, frequency in voices:
            seconds = np.arange(48000 * len(frames) // RATE) / 48000
            tone = np.float32(0.5 * np.sin(2 * np.pi * frequency * seconds))
            if voice.format.name == "s16":
                tone = np.int16(tone * 32767)
            for start in range(0, len(tone), 1024):
                part = av.AudioFrame.from_ndarray(tone[None, start : start + 1024], format=voice.format.name, layout="mono")
                part.sample_rate, part.pts, part.time_base = 48000, start, Fraction(1, 48000)
                file.mux(voice.encode(part))
            file.mux(voice.encode(None))
    return path


def copy(source, target, **options):
    reader = VideoReader(source)
    frames = list(reader)
    with VideoWriter(target, reader.rate, reader.sample_aspect_ratio, origin=reader.origin, **options) as writer:
        for frame in frames:
            writer.write(frame)
    return writer


def distance(one, other):
    return np.abs(one.astype(float) - other).mean()


@pytest.mark.parametrize(
    ("suffix", "codec", "pix_fmt"),
    [(".mp4", "libx264", "yuv420p"), (".mov", "libx264", "yuv444p"), (".mkv", "libx265", "yuv420p10le"),
     (".webm", "libvpx-vp9", "yuv420p"), (".avi", "mpeg4", "yuv420p"), (".gif", "gif", "rgb8")],
)  # fmt: skip
def test_formats(tmp_path, suffix, codec, pix_fmt):
    path = write(tmp_path / f"a{suffix}", pictures(), codec, pix_fmt)
    frames = list(VideoReader(path))
    assert len(frames) == 12
    tolerance = 40 if suffix == ".gif" else 8
    assert all(distance(frame.picture, picture) < tolerance for frame, picture in zip(frames, pictures(), strict=True))
    assert [float(frame.time) for frame in frames] == pytest.approx(np.arange(12) / RATE, abs=0.011)


@pytest.mark.parametrize("suffix", [".mp4", ".m4v", ".mov", ".mkv", ".webm"])
def test_what_is_written_is_what_was_given(tmp_path, suffix):
    writer = copy(write(tmp_path / "a.mp4", pictures(), crf="5"), tmp_path / f"b{suffix}")
    frames = list(VideoReader(writer.path))
    assert all(distance(frame.picture, picture) < 6 for frame, picture in zip(frames, pictures(), strict=True))
    with av.open(str(writer.path)) as file:
        (stream,) = file.streams
        assert stream.codec_context.name == ("vp9" if suffix == ".webm" else "h264")
        assert not set(file.metadata) - {"major_brand", "minor_version", "compatible_brands", "encoder"}


@pytest.mark.parametrize("turn", [90, -90, 180])
def test_a_clip_filmed_sideways_is_read_upright(tmp_path, turn):
    sideways = [np.ascontiguousarray(np.rot90(picture, -turn // 90)) for picture in pictures()]
    path = write(tmp_path / "phone.mp4", sideways, prepare=lambda stream: stream.set_display_rotation(turn))
    for frame, picture in zip(VideoReader(path), pictures(), strict=True):
        assert frame.picture.shape == picture.shape and distance(frame.picture, picture) < 8


def test_a_varying_frame_rate_is_kept(tmp_path):
    times = [0, 40, 80, 200, 210, 500, 520, 900, 940, 980, 1400, 1500]
    copy(write(tmp_path / "a.mkv", pictures(), times=times), tmp_path / "b.mp4")
    assert [round(1000 * float(frame.time)) for frame in VideoReader(tmp_path / "b.mp4")] == times


@pytest.mark.parametrize("rate", [7, 25, Fraction(24000, 1001), Fraction(30000, 1001), Fraction(60000, 1001)], ids=str)
def test_frame_rate_duration_and_times_are_kept(tmp_path, rate):
    copy(write(tmp_path / "a.mp4", pictures(30), rate=rate), tmp_path / "b.mp4")
    with av.open(str(tmp_path / "a.mp4")) as before, av.open(str(tmp_path / "b.mp4")) as after:
        assert after.streams.video[0].average_rate == before.streams.video[0].average_rate == rate
        assert after.duration == pytest.approx(before.duration, abs=10)  # microseconds
    one, other = ([frame.time for frame in VideoReader(tmp_path / name)] for name in ("a.mp4", "b.mp4"))
    assert one == other


def test_odd_sides_are_made_even(tmp_path):
    with VideoWriter(tmp_path / "odd.mp4") as writer:
        for number, picture in enumerate(pictures(5, 63, 95)):
            writer.write(Frame(picture, Fraction(number, RATE)))
    (frame, *_) = VideoReader(tmp_path / "odd.mp4")
    assert frame.picture.shape == (64, 96, 3) and "96×64" in writer.notes[0]
    assert distance(frame.picture[:63, :95], next(pictures(1, 63, 95))) < 8


def test_webm_keeps_odd_sides(tmp_path):
    with VideoWriter(tmp_path / "odd.webm") as writer:
        writer.write(Frame(next(pictures(1, 63, 95)), Fraction(0)))
    (frame,) = VideoReader(tmp_path / "odd.webm")
    assert frame.picture.shape == (63, 95, 3) and not writer.notes
    assert distance(frame.picture, next(pictures(1, 63, 95))) < 8


def test_wide_pixels_stay_wide(tmp_path):
    def widen(stream):
        stream.codec_context.sample_aspect_ratio = Fraction(4, 3)

    writer = copy(write(tmp_path / "a.mp4", pictures(), prepare=widen), tmp_path / "b.mp4")
    assert VideoReader(writer.path).sample_aspect_ratio == Fraction(4, 3)


def test_ten_bits_become_eight_and_it_is_said(tmp_path):
    reader = VideoReader(write(tmp_path / "a.mkv", pictures(), "libx265", "yuv420p10le"))
    assert list(reader) and reader.notes == ["10-bit colours were brought to 8 bits"]


@pytest.mark.parametrize(("transfer", "white"), [(16, 0.58), (18, 0.75)])
def test_hdr_white_is_white(tmp_path, transfer, white):
    """A white page in PQ and in HLG (BT.2408) becomes white, grey becomes grey, and the notes tell of the conversion."""

    def tag(stream):
        stream.codec_context.color_trc, stream.codec_context.color_primaries, stream.codec_context.colorspace = transfer, 9, 9

    page = np.full((64, 64, 3), round(65535 * white), np.uint16)
    page[:, 32:] = 0
    reader = VideoReader(write(tmp_path / "hdr.mkv", [page] * 3, "libx265", "yuv420p10le", prepare=tag))
    frame, *_ = reader
    assert 225 < frame.picture[:, :28].mean() <= 255 and frame.picture[:, 36:].mean() < 3
    assert np.ptp(frame.picture[32, 10].astype(int)) <= 3
    assert "HDR" in reader.notes[0]


def test_time_span(tmp_path):
    path = write(tmp_path / "a.mp4", pictures(50), g="10")
    frames = list(VideoReader(path, start=0.6, end=1.0))
    assert len(frames) == 10 and frames[0].time == 0
    assert distance(frames[0].picture, list(pictures(50))[15]) < 8
    with pytest.raises(VideoError, match="no frame from"):
        list(VideoReader(path, start=10))


def test_nothing_of_the_source_rides_along(tmp_path):
    secret = "Jane Doe, 52.5 N 13.4 E"
    tags = {"title": secret, "comment": secret, "creation_time": "2020-02-02T02:02:02"}
    source = write(tmp_path / "a.mkv", pictures(), tags=tags, sounds=[("aac", 440)])
    assert secret.encode() in source.read_bytes()
    copy(source, tmp_path / "b.mp4", sound=source)
    content = (tmp_path / "b.mp4").read_bytes()
    assert b"Jane" not in content and b"2020" not in content and b"Lavf" not in content


def test_a_cover_is_no_film(tmp_path):
    path = tmp_path / "cover.mp4"
    with av.open(str(path), "w") as file:
        stream = file.add_stream("mjpeg", rate=1)
        stream.height, stream.width, stream.pix_fmt = 64, 64, "yuvj420p"
        stream.disposition = av.stream.Disposition.attached_pic
        film = file.add_stream("libx264", rate=RATE)
        film.height, film.width, film.pix_fmt = 64, 96, "yuv420p"
        file.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8))))
        file.mux(stream.encode(None))
        for picture in pictures():
            file.mux(film.encode(av.VideoFrame.from_ndarray(picture)))
        file.mux(film.encode(None))
    assert [frame.picture.shape for frame in VideoReader(path)] == [(64, 96, 3)] * 12


def tones(path):
    """The main frequency of each sound track, and how long it lasts."""
    found = []
    with av.open(str(path)) as file:
        count = len(file.streams.audio)
    for index in range(count):
        with av.open(str(path)) as file:
            parts = [frame.to_ndarray() for frame in file.decode(audio=index)]
            rate = file.streams.audio[index].rate
        sound = np.concatenate([part.reshape(-1) for part in parts]).astype(float)
        found.append((np.abs(np.fft.rfft(sound)).argmax() * rate / len(sound), len(sound) / rate))
    return found


@pytest.mark.parametrize(("suffix", "sounds"), [
    (".mp4", []), (".mp4", [("aac", 440)]), (".mp4", [("aac", 440), ("aac", 880)]), (".avi", [("pcm_s16le", 440)]),
])  # fmt: skip
def test_sound_is_dropped_or_kept(tmp_path, suffix, sounds):
    codec = "mpeg4" if suffix == ".avi" else "libx264"
    source = write(tmp_path / f"a{suffix}", pictures(50), codec, sounds=sounds)
    assert tones(copy(source, tmp_path / "silent.mp4").path) == []
    kept = tones(copy(source, tmp_path / "loud.mp4", sound=source).path)
    assert [frequency for frequency, _ in kept] == pytest.approx([frequency for _, frequency in sounds], abs=3)
    assert all(1.9 < seconds < 2.1 for _, seconds in kept)


def test_sound_stays_in_sync_with_a_time_span(tmp_path):
    """A click at second 1.2 is heard 0.4 seconds after a start at 0.8."""
    source = tmp_path / "a.mkv"
    with av.open(str(source), "w") as file:
        film, voice = file.add_stream("libx264", rate=RATE), file.add_stream("pcm_s16le", rate=8000)
        film.height, film.width, film.pix_fmt, voice.layout = 64, 96, "yuv420p", "mono"
        for picture in pictures(50):
            file.mux(film.encode(av.VideoFrame.from_ndarray(picture)))
        file.mux(film.encode(None))
        sound = np.zeros(16000, np.int16)
        sound[9600:9700] = 20000
        for start in range(0, 16000, 400):
            part = av.AudioFrame.from_ndarray(sound[None, start : start + 400], format="s16", layout="mono")
            part.sample_rate, part.pts, part.time_base = 8000, start, Fraction(1, 8000)
            file.mux(voice.encode(part))
        file.mux(voice.encode(None))
    reader = VideoReader(source, start=0.8, end=1.6)
    frames = list(reader)
    with VideoWriter(tmp_path / "b.mkv", reader.rate, sound=source, origin=reader.origin) as writer:
        for frame in frames:
            writer.write(frame)
    with av.open(str(tmp_path / "b.mkv")) as file:
        heard = [(frame.time, np.abs(frame.to_ndarray()).max()) for frame in file.decode(audio=0)]
    loud = [time for time, volume in heard if volume > 10000]
    assert loud and loud[0] == pytest.approx(0.4, abs=0.06)
    assert heard[-1][0] < 0.85


def sound_packets(path):
    """The packets of each sound track, with their times."""
    tracks = {}
    with av.open(str(path)) as file:
        for packet in file.demux(file.streams.audio):
            if packet.size:
                tracks.setdefault(packet.stream.index, []).append((bytes(packet), packet.pts * packet.time_base))
    return list(tracks.values())


def test_no_frame_is_lost_where_sound_begins_first(tmp_path):
    """Matroska then claims that the film begins later than its first frame."""
    source = write(tmp_path / "a.mov", pictures(12), rate=10, sounds=[("aac", 440)])
    reader = VideoReader(source, start=0.2, end=0.5)
    frames = list(reader)
    with VideoWriter(tmp_path / "b.mkv", reader.rate, sound=source, origin=reader.origin) as writer:
        for frame in frames:
            writer.write(frame)
    assert len(list(VideoReader(tmp_path / "b.mkv"))) == len(frames)


def test_sound_that_a_container_refuses_is_encoded_anew(tmp_path):
    source = write(tmp_path / "a.mkv", pictures(50), sounds=[("libopus", 440)])
    assert [round(tone) for tone, _ in tones(copy(source, tmp_path / "b.mov", sound=source).path)] == [440]


@pytest.mark.parametrize(("source", "target", "sounds"), [
    ("a.mp4", "b.mp4", ["aac"]), ("a.mp4", "b.mov", ["aac", "aac"]), ("a.mkv", "b.mkv", ["libopus"]),
    ("a.mkv", "b.webm", ["libopus"]), ("a.mkv", "b.mp4", ["aac"]), ("a.mov", "b.mov", ["pcm_s16le"]),
])  # fmt: skip
def test_kept_sound_is_the_same_bit_by_bit(tmp_path, source, target, sounds):
    write(tmp_path / source, pictures(50), sounds=[(sound, 440) for sound in sounds])
    copy(tmp_path / source, tmp_path / target, sound=tmp_path / source)
    before, after = sound_packets(tmp_path / source), sound_packets(tmp_path / target)
    assert before == after and len(before) == len(sounds) and all(len(track) > 20 for track in before)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm"])
def test_distorted_voices_are_lower_and_in_time(tmp_path, suffix):
    """A hum of 500 Hz falls to 400 Hz, and a click at second 1 stays there."""
    source, target = tmp_path / "a.mkv", tmp_path / f"b{suffix}"
    with av.open(str(source), "w") as file:
        film, *voices = (file.add_stream(codec, rate=rate) for codec, rate in (("libx264", RATE), *[("pcm_s16le", 22050)] * 2))
        film.height, film.width, film.pix_fmt = 64, 96, "yuv420p"
        voices[0].layout, voices[1].layout = "mono", "stereo"
        for picture in pictures(50):
            file.mux(film.encode(av.VideoFrame.from_ndarray(picture)))
        file.mux(film.encode(None))
        seconds = np.arange(2 * 22050) / 22050
        hum = 0.3 * np.sin(2 * np.pi * 500 * seconds)
        hum[22050:22160] = 0.9 * np.sign(np.sin(2 * np.pi * 4000 * seconds[:110]))
        for voice in voices:
            wave = np.repeat(np.int16(hum * 32767), len(voice.layout.channels))[None]
            part = av.AudioFrame.from_ndarray(wave, format="s16", layout=voice.layout.name)
            part.sample_rate, part.pts, part.time_base = 22050, 0, Fraction(1, 22050)
            file.mux(voice.encode(part))
            file.mux(voice.encode(None))
    copy(source, target, sound=source, distort=True)
    for index, layout in enumerate(("mono", "stereo")):
        with av.open(str(target)) as file:
            track = file.streams.audio[index]
            parts = [frame for frame in file.decode(track)]
            wave = np.concatenate([part.to_ndarray().reshape(len(part.layout.channels), -1)[0] for part in parts])
            assert track.layout.name == layout and parts[0].time == pytest.approx(0, abs=0.03)
            assert len(wave) / track.rate == pytest.approx(2, abs=0.06)
        first = wave[: track.rate // 2]
        assert np.abs(np.fft.rfft(first * np.hanning(len(first)))).argmax() * 2 == pytest.approx(400, abs=4)
        sharp = np.convolve(np.abs(np.diff(wave, 3)), np.ones(track.rate // 200), "same")[track.rate // 2 : -track.rate // 4]
        assert 0.5 + sharp.argmax() / track.rate + parts[0].time == pytest.approx(1.0025, abs=0.03)


@pytest.mark.parametrize("content", [None, b"", b"no video at all" * 100])
def test_files_that_are_no_videos(tmp_path, content):
    path = tmp_path / "broken.mp4"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(VideoError, match="broken.mp4"):
        VideoReader(path)


def test_a_file_cut_short_is_an_error_or_gives_whole_frames(tmp_path):
    whole = write(tmp_path / "a.mkv", pictures(50)).read_bytes()
    (tmp_path / "cut.mkv").write_bytes(whole[: len(whole) // 2])
    frames = list(VideoReader(tmp_path / "cut.mkv"))
    assert 0 < len(frames) < 50
    (tmp_path / "cut.mp4").write_bytes(write(tmp_path / "a.mp4", pictures(50)).read_bytes()[:-2000])
    with pytest.raises(VideoError):
        list(VideoReader(tmp_path / "cut.mp4"))


def test_broken_time_stamps_still_grow(tmp_path):
    path = write(tmp_path / "a.mp4", pictures(), "mpeg4", times=[0, 40, 80, 120, 160, 200, 240, 280, 320, 360, 400, 440])
    times = [frame.time for frame in VideoReader(path)]
    assert all(later > earlier for earlier, later in pairwise(times))


def test_frames_that_all_have_time_0_get_times_and_it_is_said(tmp_path):
    path = tmp_path / "still.mkv"
    with av.open(str(path), "w") as file:
        film = file.add_stream("mjpeg", rate=25)
        film.width, film.height, film.pix_fmt = 96, 64, "yuvj420p"
        for picture in pictures(3):
            for packet in film.encode(av.VideoFrame.from_ndarray(picture)):
                packet.pts = packet.dts = 0
                file.mux(packet)
    reader = VideoReader(path)
    assert [frame.time * 1000 for frame in reader] == [0, 1, 2]
    assert "time stamps" in reader.notes[0]


def test_an_error_leaves_no_file(tmp_path):
    with pytest.raises(KeyboardInterrupt), VideoWriter(tmp_path / "a.mp4") as writer:
        writer.write(Frame(next(pictures()), Fraction(0)))
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_existing_files_stay(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"precious")
    with pytest.raises(VideoError, match="--existing replace"):
        VideoWriter(path)
    copy(write(tmp_path / "b.mp4", pictures()), path, overwrite=True)
    assert len(list(VideoReader(path))) == 12


def test_what_cannot_be_written(tmp_path):
    with pytest.raises(VideoError, match="suffix must be one of"):
        check_video_writable(tmp_path / "a.avi", False)
    with pytest.raises(VideoError, match="no-such-codec"), VideoWriter(tmp_path / "a.mp4", codec="no-such-codec") as writer:
        writer.write(Frame(next(pictures()), Fraction(0)))
    with pytest.raises(VideoError, match="Cannot write"), VideoWriter(tmp_path / "nowhere" / "a.mp4"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_parts_join_to_the_whole(tmp_path):
    frames = [Frame(picture, Fraction(number, RATE)) for number, picture in enumerate(pictures(40))]
    for name, part in (("1.mp4", frames[:16]), ("2.mp4", frames[16:32]), ("3.mp4", frames[32:])):
        with VideoWriter(tmp_path / name) as writer:
            for frame in part:
                writer.write(frame)
    with VideoWriter(tmp_path / "all.mp4") as writer:
        for name in ("1.mp4", "2.mp4", "3.mp4"):
            writer.append(tmp_path / name)
    joined = list(VideoReader(tmp_path / "all.mp4"))
    assert [frame.time for frame in joined] == [frame.time for frame in frames]
    assert all(distance(one.picture, other.picture) < 8 for one, other in zip(joined, frames, strict=True))


def test_importing_the_reader_is_cheap():
    code = "import sys, diffdeid.io.video_writer; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
