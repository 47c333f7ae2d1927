"""Only changed blocks are new: tables, sampling and all other blocks are those of the source; nothing else of it is kept."""

import io
import sys

import cv2
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter, JpegImagePlugin

from diffdeid.io.images import read_image, write_image

jpegio = pytest.importorskip("jpegio", reason="it has no wheels for Linux on ARM")
ROUNDING = 6  # levels by which a turned block may be decoded otherwise
ALLOWED = {0xD8, 0xE0, 0xDB, 0xC0, 0xC1, 0xC4, 0xDA, 0xD9}  # JFIF's head, tables, frame, scan; an APP2 is the colour profile
SECRET = b"SECRETPLACE"


@pytest.fixture(scope="module")
def photo(astronaut):
    return Image.open(astronaut).convert("RGB")


def markers(content: bytes) -> list[int]:
    """All markers of a file, without those inside its compressed data."""
    found, position = [0xD8], 2
    while position < len(content):
        assert content[position] == 0xFF
        found.append(content[position + 1])
        if found[-1] == 0xD9:
            assert position + 2 == len(content)  # nothing behind the end
            break
        position += 2 + int.from_bytes(content[position + 2 : position + 4])
        if found[-1] == 0xDA:
            while content[position] != 0xFF or content[position + 1] == 0:
                position += 1
    return found


def changed(image: Image.Image, box: tuple[int, int, int, int]) -> Image.Image:
    """The picture with the negative of itself in a box of left, top, width and height."""
    pixels = np.array(image)
    left, top, width, height = box
    pixels[top : top + height, left : left + width] ^= 255
    return Image.fromarray(pixels)


def touched(old: Image.Image, new: Image.Image, unit: tuple[int, int]) -> np.ndarray:
    """`(rows, columns)` bool: the units of a given number of pixels in which two pictures differ."""
    rows, columns = -(-old.height // unit[0]), -(-old.width // unit[1])
    out = np.zeros((rows, columns), bool)
    y, x = np.nonzero((np.asarray(old) != np.asarray(new)).any(axis=-1))
    out[y // unit[0], x // unit[1]] = True
    return out


def grown(units: np.ndarray, unit: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """`(height, width)` bool: the pixels of units and one pixel beyond, as far as colours of neighbours reach."""
    pixels = units.repeat(unit[0], 0).repeat(unit[1], 1)[: size[1], : size[0]]
    return np.asarray(Image.fromarray(pixels).filter(ImageFilter.MaxFilter(3))) if pixels.any() else pixels


def layout(path) -> list:
    with Image.open(path) as image:
        return [(h, v, image.quantization[table]) for _, h, v, table in image.layer]


@settings(max_examples=25)
@given(
    box=st.tuples(st.integers(0, 90), st.integers(0, 60), st.integers(1, 40), st.integers(1, 30)),
    quality=st.integers(10, 100),
    sampling=st.sampled_from(["4:4:4", "4:2:2", "4:2:0", "grey"]),
    progressive=st.booleans(),
)
@example(box=(16, 16, 16, 16), quality=75, sampling="4:2:0", progressive=False)
def test_untouched_blocks_are_the_sources_and_touched_ones_are_not(tmp_path_factory, photo, box, quality, sampling, progressive):
    folder = tmp_path_factory.mktemp("splice")
    source, plain, target = folder / "source.jpg", folder / "plain.jpg", folder / "target.jpg"
    options = {} if sampling == "grey" else {"subsampling": sampling}
    region = photo.crop((160, 20, 288, 116)).convert("L" if sampling == "grey" else "RGB")
    region.save(source, quality=quality, progressive=progressive, **options)
    before = read_image(source).image
    after = changed(before, box)
    write_image(target, after, source=source)
    assert layout(target) == layout(source)

    with Image.open(source) as stored:
        after.convert(stored.mode).save(plain, qtables=stored.quantization, **options)
    old, fresh, new = jpegio.read(source), jpegio.read(plain), jpegio.read(target)
    unit = 8 * new.max_v_samp_factor, 8 * new.max_h_samp_factor
    units = touched(before, after, unit)
    for component, *coefficients in zip(new.comp_info, new.coef_arrays, old.coef_arrays, fresh.coef_arrays, strict=True):
        mask = units.repeat(8 * component.v_samp_factor, 0).repeat(8 * component.h_samp_factor, 1)
        ours, theirs, encoded = coefficients
        assert np.array_equal(ours, np.where(mask, encoded, theirs))

    same = ~grown(units, unit, before.size)
    for decode in (lambda path: np.asarray(Image.open(path).convert("RGB")), lambda path: cv2.imread(str(path))):
        assert np.array_equal(decode(target)[same], decode(source)[same])
    assert set(markers(target.read_bytes())) <= ALLOWED


@pytest.mark.parametrize("quality", [50, 95])
def test_sides_that_blocks_do_not_fill(tmp_path, photo, quality):
    source, target = tmp_path / "source.jpg", tmp_path / "target.jpg"
    photo.crop((100, 0, 231, 107)).save(source, quality=quality)
    before = read_image(source).image
    after = changed(before, (40, 30, 20, 20))
    write_image(target, after, source=source)
    difference = np.abs(np.asarray(read_image(target).image).astype(int) - np.asarray(before))
    same = ~grown(touched(before, after, (16, 16)), (16, 16), before.size)
    assert not difference[:88, :120][same[:88, :120]].any()  # blocks at the edge are new where they cannot be compared
    assert difference[same].max() < 20 and difference[same].mean() < 0.2


def test_nothing_that_hides_beyond_the_edges_stays(tmp_path, photo):
    source, target = tmp_path / "source.jpg", tmp_path / "target.jpg"
    hidden = np.array(photo.crop((0, 0, 64, 64)))
    hidden[52:, :] = hidden[:, 57:] = np.random.default_rng(0).integers(0, 256, 3)  # what a lossless crop leaves there
    hidden[52::2, :] ^= 255
    Image.fromarray(hidden).save(source, quality=90)

    def resized(content: bytes, width: int, height: int) -> bytes:
        place = content.index(b"\xff\xc0") + 5
        return content[:place] + height.to_bytes(2) + width.to_bytes(2) + content[place + 4 :]

    source.write_bytes(resized(source.read_bytes(), 57, 52))
    before = read_image(source).image
    assert before.size == (57, 52)
    write_image(target, before, source=source)
    assert np.array_equal(np.asarray(read_image(target).image)[:47, :47], np.asarray(before)[:47, :47])
    whole = np.asarray(Image.open(io.BytesIO(resized(target.read_bytes(), 64, 64)))).astype(int)
    assert np.abs(whole[52:, :48] - whole[51, :48]).mean() < 25  # the edge, repeated
    assert np.abs(whole[52:, :48] - hidden[52:, :48]).mean() > 50


@pytest.mark.parametrize("sampling", ["4:4:4", "4:2:2", "4:2:0", "grey"])
@pytest.mark.parametrize("orientation", range(2, 9))
def test_photos_that_lie_on_their_side(tmp_path, photo, orientation, sampling):
    source, target, exif = tmp_path / "source.jpg", tmp_path / "target.jpg", Image.Exif()
    exif[0x0112], exif[0x010E] = orientation, SECRET.decode()
    options = {} if sampling == "grey" else {"subsampling": sampling}
    region = photo.crop((160, 20, 288, 116)).convert("L" if sampling == "grey" else "RGB")
    region.save(source, quality=60, exif=exif, **options)
    before = read_image(source).image
    after = changed(before, (30, 30, 20, 20))
    write_image(target, after, source=source)
    assert SECRET not in target.read_bytes()

    if sampling == "4:2:2" and orientation > 4:  # would be 4:4:0, which Pillow does not write: all is encoded anew, at 4:4:4
        assert JpegImagePlugin.get_sampling(Image.open(target)) == 0
        return
    difference = np.abs(np.asarray(read_image(target).image).astype(int) - np.asarray(before))
    same = ~grown(touched(before, after, (16, 16)), (16, 16), before.size)
    assert difference[same].max() <= ROUNDING
    stored, written = layout(source), layout(target)
    assert [sorted(one[2]) for one in stored] == [sorted(one[2]) for one in written]


def test_a_photo_whose_sides_cannot_be_turned_block_by_block_is_encoded_with_its_own_tables(tmp_path, photo):
    source, target, exif = tmp_path / "source.jpg", tmp_path / "target.jpg", Image.Exif()
    exif[0x0112] = 6
    photo.crop((160, 20, 288, 120)).save(source, quality=60, exif=exif)
    before = read_image(source).image
    write_image(target, before, source=source)
    assert [sorted(one[2]) for one in layout(source)] == [sorted(one[2]) for one in layout(target)]
    assert np.abs(np.asarray(read_image(target).image).astype(int) - np.asarray(before)).mean() < 6


def test_a_copy_has_the_pixels_and_no_metadata(tmp_path, photo):
    source, target, exif = tmp_path / "source.jpg", tmp_path / "target.jpg", Image.Exif()
    exif[0x010E] = SECRET.decode()
    region, other = photo.crop((160, 20, 288, 116)), Image.new("RGB", (64, 64))
    options = {"exif": exif, "comment": SECRET, "xmp": SECRET, "quality": 80}
    region.save(source, format="MPO", save_all=True, append_images=[other], **options)  # a phone's: it holds more pictures
    source.write_bytes(source.read_bytes() + SECRET)
    before = read_image(source)
    assert before.format == "MPO"
    write_image(target, before.image, source=source)
    assert np.array_equal(np.asarray(read_image(target).image), np.asarray(before.image))
    assert Image.open(target).quantization == Image.open(source).quantization
    assert SECRET not in target.read_bytes() and set(markers(target.read_bytes())) <= ALLOWED
    write_image(target, before.image, icc_profile=(profile := b"\0" * 128), overwrite=True, source=source)
    assert set(markers(target.read_bytes())) <= ALLOWED | {0xE2} and read_image(target).icc_profile in (None, profile)


def test_what_the_decoder_smoothed_is_not_brought_back(tmp_path, photo):
    """For an unfinished progressive file, decoders show smoother pixels than its coefficients give."""
    source, target = tmp_path / "source.jpg", tmp_path / "target.jpg"
    photo.crop((160, 20, 288, 116)).save(source, quality=80, progressive=True)
    content = source.read_bytes()
    second = content.index(b"\xff\xda", content.index(b"\xff\xda") + 1)
    source.write_bytes(content[:second] + b"\xff\xd9")  # the first scan alone: an average for each block
    before = read_image(source).image
    write_image(target, before, source=source)
    assert np.abs(np.asarray(read_image(target).image).astype(int) - np.asarray(before)).mean() < 3
    old, new = (jpegio.read(path).coef_arrays[0] for path in (source, target))
    assert not np.array_equal(old, new)


@pytest.mark.parametrize("name", ["inks.jpg", "smaller.jpg", "picture.png"])
def test_other_sources_change_nothing(tmp_path, photo, name):
    source, target, plain = tmp_path / name, tmp_path / "target.jpg", tmp_path / "plain.jpg"
    region = photo.crop((160, 20, 288, 116))
    (region.convert("CMYK") if name == "inks.jpg" else region.resize((64, 48)) if name == "smaller.jpg" else region).save(source)
    write_image(target, region, source=source)
    write_image(plain, region)
    assert target.read_bytes() == plain.read_bytes()


def test_without_access_to_coefficients_the_tables_are_the_sources_all_the_same(tmp_path, photo, monkeypatch):
    monkeypatch.setitem(sys.modules, "jpegio", None)
    source, target = tmp_path / "source.jpg", tmp_path / "target.jpg"
    photo.crop((160, 20, 288, 116)).save(source, quality=40)
    write_image(target, read_image(source).image, source=source)
    assert layout(target) == layout(source)
