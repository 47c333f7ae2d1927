"""Check that a written file holds nothing besides pixels, sound and what a decoder needs.

The lists below say what may be there, format by format. Everything else is refused, harmless or not: EXIF, XMP, comments,
thumbnails, further pictures, tags, chapters, subtitles, attachments, and bytes behind the end.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterator
from pathlib import Path

import av

from diffdeid.errors import VerificationError

# JPEG: tables, the frame (baseline or progressive), scans, and two segments without room for a message.
_JPEG_ALLOWED = {0xC0: "SOF0", 0xC1: "SOF1", 0xC2: "SOF2", 0xC4: "DHT", 0xDA: "SOS", 0xDB: "DQT", 0xDD: "DRI"}
_JPEG_SHAPES = {0xE0: rb"JFIF\0.{7}\0\0", 0xEE: rb"Adobe.{7}", 0xE2: rb"ICC_PROFILE\0.*"}  # without a thumbnail; 0 × 0 pixels
_JPEG_SCAN_ENDS = re.compile(rb"\xff[^\0\xd0-\xd7]")
_PNG_ALLOWED = {b"IHDR", b"PLTE", b"iCCP", b"IDAT", b"IEND"}
_WEBP_ALLOWED = {b"VP8X", b"ICCP", b"ALPH", b"VP8 ", b"VP8L"}
# Sizes, bits, compression, meaning of colours, strips, resolution, planes, predictor, alpha, format of samples, profile.
_TIFF_ALLOWED = {256, 257, 258, 259, 262, 273, 277, 278, 279, 282, 283, 284, 296, 317, 338, 339, 34675}
_TIFF_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 7: 1}
# Boxes of ISO files, by their paths, and those among them that must be empty.
_HEIF_ALLOWED = {
    "ftyp", "mdat", "meta", *(f"meta/{name}" for name in ("hdlr", "iloc", "iinf", "iinf/infe", "pitm", "iprp", "iref")),
    "meta/iprp/ipco", "meta/iprp/ipma", *(f"meta/iprp/ipco/{name}" for name in ("hvcC", "colr", "ispe", "clap", "pixi", "auxC")),
}  # fmt: skip
_TRACK = {
    "tkhd", "edts", "edts/elst", "mdia", "mdia/mdhd", "mdia/hdlr", "mdia/minf", "mdia/minf/vmhd", "mdia/minf/smhd",
    "mdia/minf/hdlr", "mdia/minf/dinf", "mdia/minf/dinf/dref", "mdia/minf/stbl",
    *(f"mdia/minf/stbl/{name}" for name in ("stsd", "stts", "stss", "sdtp", "ctts", "stsc", "stsz", "stco", "co64")),
    "mdia/minf/stbl/sgpd", "mdia/minf/stbl/sbgp",
}  # fmt: skip
_MP4_ALLOWED = {
    "ftyp", "free", "wide", "mdat", "moov", "moov/mvhd", "moov/trak", *(f"moov/trak/{name}" for name in _TRACK),
    "moov/udta", "moov/udta/meta", "moov/udta/meta/hdlr", "moov/udta/meta/ilst",
}  # fmt: skip
_EMPTY = {"free", "wide", "moov/udta/meta/ilst"}
_INSIDE = {  # where the boxes in a box begin
    "moov": 0, "trak": 0, "edts": 0, "mdia": 0, "minf": 0, "dinf": 0, "stbl": 0, "udta": 0, "meta": 4, "iinf": 6, "iprp": 0,
    "ipco": 0,
}  # fmt: skip
# Matroska and WebM: header, segment, and in this the index, the description, tracks, tags, cues, clusters and zeros.
_EBML, _SEGMENT, _VOID = "1a45dfa3", "18538067", "ec"
_MATROSKA_ALLOWED = {"114d9b74", "1549a966", "1654ae6b", "1254c367", "1c53bb6b", "1f43b675", _VOID}
_TAGS_ALLOWED = {  # of files and streams; what FFmpeg writes by itself
    "major_brand": ".*", "minor_version": r"\d*", "compatible_brands": ".*", "encoder": "Lavf", "language": "und",
    "handler_name": "(Video|Sound)Handler", "vendor_id": r"FFMP|\[0\]\[0\]\[0\]\[0\]", "DURATION": r"[\d:.]*",
}  # fmt: skip


def check_picture_contents(path: Path) -> None:
    """Raise `VerificationError` if a picture file holds more than one picture, its alpha and a colour profile."""
    with _mapped(path) as content:
        parts = next((parts for head, parts in _PICTURES if re.match(head, content, re.DOTALL)), None)
        if parts is None:
            raise VerificationError("it is not a picture in a format that DiffDeID writes")
        _refuse(parts(content))


def check_video_contents(path: Path, sound: bool) -> None:
    """Raise `VerificationError` if a video file holds more than one film and, if `sound`, sound."""
    with _mapped(path) as content:
        _refuse(_matroska(content) if content[:4].hex() == _EBML else _boxes(content, _MP4_ALLOWED))
    try:
        with av.open(str(path)) as file:
            _refuse(_streams(file, sound))
    except (av.FFmpegError, OSError) as error:
        raise VerificationError(f"it cannot be read as a video ({error})") from error


def _mapped(path: Path) -> mmap.mmap:
    """Map the bytes of a file of any size into memory."""
    with path.open("rb") as file:
        try:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError as error:  # no bytes
            raise VerificationError("it is empty") from error


def _refuse(parts: Iterator[str]) -> None:
    """Raise for the first part that does not belong in a file; a file that ends within a part is damaged."""
    try:
        for part in parts:
            raise VerificationError(f"it holds {part}, which does not belong there")
    except (LookupError, ValueError, OverflowError) as error:
        raise VerificationError(f"its parts do not fit together ({error})") from error


# Each of these gives the parts that do not belong in a file, in words.


def _jpeg(content: mmap.mmap) -> Iterator[str]:
    place = 2
    while True:
        mark, marker = content[place], content[place + 1]
        if mark != 0xFF:
            raise ValueError("no marker where one must be")
        if marker == 0xD9:
            yield from _tail(content, place + 2)
            return
        end = place + 2 + int.from_bytes(content[place + 2 : place + 4])
        shape = _JPEG_SHAPES.get(marker)
        if marker not in _JPEG_ALLOWED and not (shape and re.fullmatch(shape, content[place + 4 : end], re.DOTALL)):
            yield f"a segment FF{marker:02X} ({content[place + 4 : place + 16]!r}…)"
        place = end
        if marker == 0xDA:
            found = _JPEG_SCAN_ENDS.search(content, place)
            if found is None:
                raise ValueError("the end is missing")
            place = found.start()


def _png(content: mmap.mmap) -> Iterator[str]:
    place, kind = 8, b""
    while kind != b"IEND":
        size, kind = int.from_bytes(content[place : place + 4]), content[place + 4 : place + 8]
        if len(kind) < 4:
            raise ValueError("the end is missing")
        if kind not in _PNG_ALLOWED:
            yield f"a chunk {kind!r}"
        place += 12 + size
    yield from _tail(content, place)


def _webp(content: mmap.mmap) -> Iterator[str]:
    end = 8 + int.from_bytes(content[4:8], "little")
    place, seen = 12, set()
    while place < end:
        kind, size = content[place : place + 4], int.from_bytes(content[place + 4 : place + 8], "little")
        if kind not in _WEBP_ALLOWED or kind in seen:
            yield f"a chunk {kind!r}"
        seen.add(kind)
        place += 8 + size + size % 2
    yield from _tail(content, end)


def _bmp(content: mmap.mmap) -> Iterator[str]:
    size, start, header, width, height, bits = (
        int.from_bytes(content[first:last], "little", signed=first == 22)
        for first, last in ((2, 6), (10, 14), (14, 18), (18, 22), (22, 26), (28, 30))
    )
    pixels = (width * bits + 31) // 32 * 4 * abs(height)
    if (bits, header, start, start + pixels) != (24, 40, 54, size):
        yield "more than a header and pixels"
    yield from _tail(content, size)


def _tiff(content: mmap.mmap) -> Iterator[str]:
    order = "little" if content[:2] == b"II" else "big"

    def number(place: int, size: int) -> int:
        return int.from_bytes(content[place : place + size], order)

    directory = number(4, 4)
    count = number(directory, 2)
    end = directory + 2 + 12 * count
    if number(end, 4):
        yield "another page"
    taken, values = [(0, 8), (directory, end + 4)], {}
    for entry in range(directory + 2, end, 12):
        tag, kind, length = number(entry, 2), number(entry + 2, 2), number(entry + 4, 4)
        if tag not in _TIFF_ALLOWED or kind not in _TIFF_SIZES:
            yield f"a tag {tag}"
            return
        size = _TIFF_SIZES[kind] * length
        start = entry + 8 if size <= 4 else number(entry + 8, 4)
        taken.append((start, start + size))
        values[tag] = [
            number(start + _TIFF_SIZES[kind] * row, _TIFF_SIZES[kind]) for row in range(length if tag in (273, 279) else 0)
        ]
    taken += [(start, start + size) for start, size in zip(values[273], values[279], strict=True)]
    reached = 0
    for start, stop in sorted(taken):
        if start > reached + 1:  # values begin at even places
            yield f"{start - reached} bytes that belong to nothing"
        reached = max(reached, stop)
    yield from _tail(content, reached + reached % 2)


def _heif(content: mmap.mmap) -> Iterator[str]:
    yield from _boxes(content, _HEIF_ALLOWED)
    kinds = re.findall(rb"infe\x02\0\0.\0.\0\0(....)", content[: content.find(b"mdat")], re.DOTALL)
    if not 1 <= len(kinds) <= 2 or set(kinds) != {b"hvc1"}:  # the picture, and its alpha
        yield f"the items {kinds}"
    links = content.find(b"iref")
    if len(kinds) == 2 and not (links >= 0 and content[links + 12 : links + 16] == b"auxl"):
        yield "a second picture"


def _boxes(content: mmap.mmap, allowed: set[str], start: int = 0, end: int | None = None, inside: str = "") -> Iterator[str]:
    """The parts that do not belong in an ISO file (MP4, QuickTime, HEIF)."""
    end = len(content) if end is None else end
    while start < end:
        size, kind, head = int.from_bytes(content[start : start + 4]), content[start + 4 : start + 8].decode("latin-1"), 8
        if size == 1:
            size, head = int.from_bytes(content[start + 8 : start + 16]), 16
        name = f"{inside}/{kind}".lstrip("/")
        if size < head or start + size > end:
            raise ValueError(f"a box {name!r} of {size} bytes where {end - start} are left")
        if name not in allowed or (name in _EMPTY and size > head):
            yield f"a box {name!r}"
        elif kind in _INSIDE:
            yield from _boxes(content, allowed, start + head + _INSIDE[kind], start + size, name)
        start += size


def _matroska(content: mmap.mmap) -> Iterator[str]:
    (_, _, header), (kind, start, end) = _element(content, 0), (None, 0, 0)
    kind, start, end = _element(content, header)
    if kind != _SEGMENT:
        yield f"an element {kind}"
    yield from _tail(content, end)
    while start < end:
        kind, inside, start = _element(content, start)
        if kind not in _MATROSKA_ALLOWED or (kind == _VOID and any(content[inside:start])):
            yield f"an element {kind}"


def _element(content: mmap.mmap, place: int) -> tuple[str, int, int]:
    """An element of an EBML file: its name, and where its content begins and ends."""
    length = 9 - content[place].bit_length()
    name = content[place : place + length].hex()
    place += length
    length = 9 - content[place].bit_length()
    size = int.from_bytes(content[place : place + length]) & (1 << 7 * length) - 1
    if place + length + size > len(content):
        raise ValueError(f"an element {name} of {size} bytes reaches beyond the end")
    return name, place + length, place + length + size


def _streams(file: av.container.InputContainer, sound: bool) -> Iterator[str]:
    kinds = [stream.type for stream in file.streams]
    for kind in kinds:
        if kind != "video" and not (kind == "audio" and sound):
            yield f"a stream of {kind}"
    if any(stream.type == "audio" and stream.codec_context.name == "vorbis" for stream in file.streams):
        yield "the header of a sound in Vorbis"
    if kinds.count("video") != 1:
        yield f"{kinds.count('video')} films"
    if file.chapters():
        yield "chapters"
    for tags in (file.metadata, *(stream.metadata for stream in file.streams)):
        for name, value in tags.items():
            if not re.fullmatch(_TAGS_ALLOWED.get(name, "(?!)"), value):
                yield f"a tag {name!r}"


def _tail(content: mmap.mmap, end: int) -> Iterator[str]:
    if end > len(content):
        raise ValueError("the end is missing")
    if end < len(content):
        yield f"{len(content) - end} bytes behind its end"


_PICTURES = (
    (rb"\xff\xd8", _jpeg),
    (rb"\x89PNG\r\n\x1a\n", _png),
    (rb"RIFF....WEBP", _webp),
    (rb"BM", _bmp),
    (rb"II\*\0|MM\0\*", _tiff),
    (rb"....ftyp", _heif),
)
