"""Written files hold pictures and nothing else, and anything else that is planted in one is found."""

import struct
import zlib
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from diffdeid import VerificationError, VideoWriter, write_image
from diffdeid.io.contents import check_picture_contents, check_video_contents
from diffdeid.io.images import IMAGE_SUFFIXES
from diffdeid.io.video_reader import Frame

PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
PIXELS = np.random.default_rng(0).integers(0, 256, (33, 47, 3), dtype=np.uint8)
VIDEOS = [".m4v", ".mkv", ".mov", ".mp4", ".webm"]


def photo(path, alpha=False):
    write_image(path, Image.fromarray(PIXELS), Image.new("L", (47, 33), 90) if alpha else None, PROFILE)
    return path


def film(path, count=5, **options):
    with VideoWriter(path, **options) as writer:
        for number in range(count):
            writer.write(Frame(np.full((32, 48, 3), 40 * number, np.uint8), Fraction(number, 25)))
    return path


@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("suffix", sorted(IMAGE_SUFFIXES))
def test_pictures_that_we_write_hold_nothing_else(tmp_path, suffix, alpha):
    if alpha and suffix in (".jpg", ".jpeg", ".bmp"):
        pytest.skip("no transparency in this format")
    check_picture_contents(photo(tmp_path / f"a{suffix}", alpha))


@pytest.mark.parametrize("options", [{"progressive": True}, {"quality": 30, "subsampling": 2}, {"restart_marker_rows": 1}])
def test_other_kinds_of_jpeg_may_be_written(tmp_path, options):
    Image.fromarray(PIXELS).save(tmp_path / "a.jpg", **options)
    check_picture_contents(tmp_path / "a.jpg")


@pytest.mark.parametrize("suffix", sorted(IMAGE_SUFFIXES))
@pytest.mark.parametrize("change", [lambda content: content + b"behind", lambda content: content[:-9], lambda content: b""])
def test_bytes_behind_the_end_and_missing_ones_are_found(tmp_path, suffix, change):
    path = photo(tmp_path / f"a{suffix}")
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(VerificationError):
        check_picture_contents(path)


def exif():
    entries = Image.Exif()
    entries[0x010E] = "a place"
    return entries


def png_text():
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "a place")
    return text


LEAKS = {
    "jpg exif": (".jpg", {"exif": exif()}),
    "jpg xmp": (".jpg", {"xmp": b"<x:xmpmeta/>"}),
    "jpg comment": (".jpg", {"comment": b"a place"}),
    "jpg further picture": (".jpg", {"format": "MPO", "save_all": True, "append_images": [Image.new("RGB", (8, 8))]}),
    "png text": (".png", {"pnginfo": png_text()}),
    "png exif": (".png", {"exif": exif()}),
    "png animation": (".png", {"save_all": True, "append_images": [Image.new("RGB", (47, 33))]}),
    "webp exif": (".webp", {"exif": exif()}),
    "webp xmp": (".webp", {"xmp": b"<x:xmpmeta/>"}),
    "webp animation": (".webp", {"save_all": True, "append_images": [Image.new("RGB", (47, 33))]}),
    "tiff page": (".tif", {"save_all": True, "append_images": [Image.new("RGB", (8, 8))]}),
    "tiff exif": (".tif", {"exif": exif()}),
    "tiff description": (".tif", {"description": "a place"}),
    "heic exif": (".heic", {"exif": exif()}),
    "heic xmp": (".heic", {"xmp": b"<x:xmpmeta/>"}),
    "heic further picture": (".heic", {"save_all": True, "append_images": [Image.new("RGB", (64, 64))]}),
}


@pytest.mark.parametrize("leak", LEAKS)
def test_what_encoders_can_add_is_found(tmp_path, leak):
    photo(tmp_path / "register.heic")
    suffix, options = LEAKS[leak]
    Image.fromarray(PIXELS).save(tmp_path / f"a{suffix}", **options)
    with pytest.raises(VerificationError, match="holds"):
        check_picture_contents(tmp_path / f"a{suffix}")


def test_a_thumbnail_in_the_header_of_a_jpeg_is_found(tmp_path):
    path = photo(tmp_path / "a.jpg")
    content, thumbnail = path.read_bytes(), bytes(3)
    header = b"\xff\xe0" + struct.pack(">H", 16 + len(thumbnail)) + content[6:18] + b"\1\1" + thumbnail
    path.write_bytes(content[:2] + header + content[20:])
    Image.open(path).load()
    with pytest.raises(VerificationError, match="FFE0"):
        check_picture_contents(path)


def test_bytes_between_the_parts_of_a_tiff_are_found(tmp_path):
    path = photo(tmp_path / "a.tif")
    content = path.read_bytes()
    place = struct.unpack("<I", content[4:8])[0]
    path.write_bytes(content[:4] + struct.pack("<I", len(content) + 10) + content[8:] + b"a secret.." + content[place:])
    with pytest.raises(VerificationError):
        check_picture_contents(path)


def test_an_unknown_chunk_is_refused_though_harmless(tmp_path):
    path = photo(tmp_path / "a.png")
    content, chunk = path.read_bytes(), b"gAMA" + struct.pack(">I", 45455)
    path.write_bytes(content[:33] + struct.pack(">I", 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) + content[33:])
    Image.open(path).load()
    with pytest.raises(VerificationError, match="gAMA"):
        check_picture_contents(path)


@pytest.mark.parametrize("content", [b"GIF89a" + bytes(50), b"no picture", bytes(20)])
def test_other_formats_are_refused(tmp_path, content):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(VerificationError, match="format"):
        check_picture_contents(tmp_path / "a")


# --- videos ---


@pytest.mark.parametrize("suffix", VIDEOS)
def test_videos_that_we_write_hold_nothing_else(tmp_path, suffix):
    part = film(tmp_path / f"part{'.webm' if suffix == '.webm' else '.mp4'}")
    with VideoWriter(tmp_path / f"joined{suffix}") as writer:
        writer.append(part)
    for path in (film(tmp_path / f"a{suffix}"), tmp_path / f"joined{suffix}"):
        check_video_contents(path, sound=False)


@pytest.mark.parametrize("suffix", VIDEOS)
@pytest.mark.parametrize(
    "change", [lambda content: content + b"behind the end", lambda content: content[:-9], lambda content: b""]
)
def test_bytes_behind_the_end_of_a_video_and_missing_ones_are_found(tmp_path, suffix, change):
    path = film(tmp_path / f"a{suffix}")
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(VerificationError):
        check_video_contents(path, sound=False)


def leaky_film(path, leak):
    """A film with something more in it."""
    with av.open(str(path), "w", options={"fflags": "+bitexact"}) as file:
        streams = [file.add_stream("libx264", rate=25) for _ in range(2 if leak == "film" else 1)]
        for stream in streams:
            stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
            stream.codec_context.flags |= av.codec.context.Flags.bitexact
        if leak == "tag":
            file.metadata["title"] = "a place"
        elif leak == "tag of a stream":
            streams[0].metadata["title"] = "a place"
        elif leak == "chapters":
            file.set_chapters([{"id": 1, "start": 0, "end": 1, "time_base": Fraction(1), "metadata": {"title": "a place"}}])
        elif leak == "attachment":
            file.add_attachment("cover.txt", "text/plain", b"a place")
        elif leak == "sound":
            voice = file.add_stream("aac", rate=48000)
            voice.layout = "mono"
        elif leak == "subtitles":
            path.with_suffix(".srt").write_text("1\n00:00:00,000 --> 00:00:01,000\na place\n")
            words = av.open(str(path.with_suffix(".srt")))
            text = file.add_stream_from_template(words.streams[0])
        for stream in streams:
            for number in range(5):
                file.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((32, 48, 3), 40 * number, np.uint8))))
            file.mux(stream.encode(None))
        if leak == "sound":
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            silence.sample_rate = 48000
            file.mux([*voice.encode(silence), *voice.encode(None)])
        if leak == "subtitles":
            for packet in words.demux(words.streams[0]):
                if packet.dts is not None:
                    packet.stream = text
                    file.mux(packet)
            words.close()
    return path


@pytest.mark.parametrize(("suffix", "leak"), [
    *((suffix, leak) for suffix in (".mp4", ".mkv") for leak in ("film", "tag", "tag of a stream", "chapters", "sound")),
    (".mkv", "attachment"), (".mkv", "subtitles"),
])  # fmt: skip
def test_what_videos_can_carry_is_found(tmp_path, suffix, leak):
    with pytest.raises(VerificationError, match="holds"):
        check_video_contents(leaky_film(tmp_path / f"a{suffix}", leak), sound=False)


def test_sound_may_be_there_where_it_was_asked_for(tmp_path):
    check_video_contents(leaky_film(tmp_path / "a.mp4", "sound"), sound=True)


def test_words_in_a_free_box_are_found(tmp_path):
    path = film(tmp_path / "a.mp4")
    content = path.read_bytes()
    path.write_bytes(content + struct.pack(">I", 15) + b"freea place")
    with pytest.raises(VerificationError, match="free"):
        check_video_contents(path, sound=False)


# --- before a file gets its name ---


def refuse(path):
    assert path.stat().st_size > 0
    raise VerificationError("it holds a thing")


@pytest.mark.parametrize("write", [
    lambda path, **how: write_image(path.with_suffix(".png"), Image.fromarray(PIXELS), **how),
    lambda path, **how: film(path.with_suffix(".mp4"), **how),
])  # fmt: skip
def test_a_file_that_fails_its_check_never_appears(tmp_path, write):
    with pytest.raises(VerificationError, match=r"a\.(png|mp4)` was not written.*it holds a thing"):
        write(tmp_path / "a", check=refuse)
    assert not list(tmp_path.iterdir())
    write(tmp_path / "a", check=lambda path: None)
    (path,) = tmp_path.iterdir()
    before = path.read_bytes()
    with pytest.raises(VerificationError):
        write(tmp_path / "a", check=refuse, overwrite=True)
    assert list(tmp_path.iterdir()) == [path] and path.read_bytes() == before
