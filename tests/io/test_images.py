import errno
import io
import os
import stat
import struct
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageCms, ImageOps, PngImagePlugin

from diffdeid.errors import ImageError
from diffdeid.io.files import write_whole
from diffdeid.io.images import IMAGE_SUFFIXES, read_image, to_uint8_array, write_image

LOSSLESS = [".bmp", ".png", ".tif", ".tiff"]
LOSSY = sorted(IMAGE_SUFFIXES - set(LOSSLESS))
RGB_PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
SMALL_PICTURES = arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(3)))


def smooth(height=48, width=64) -> np.ndarray:
    """A picture that lossy encoders keep almost as it is."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x * 3, y * 4, (x + y) * 2], axis=-1).astype(np.uint8)


def saved(image: Image.Image, path, **options):
    image.save(path, **options)
    return path


# --- reading ---


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".webp"])
def test_exif_orientation_is_applied(tmp_path, orientation, suffix):
    image = Image.fromarray(smooth())
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if suffix == ".webp" else {"quality": 100, "subsampling": 0} if suffix == ".jpg" else {}
    path = saved(image, tmp_path / f"picture{suffix}", exif=exif, **options)
    image.getexif()[0x0112] = orientation
    expected = np.asarray(ImageOps.exif_transpose(image)).astype(int)
    picture = read_image(path)
    assert picture.image.size == expected.shape[1::-1]
    assert np.abs(np.asarray(picture.image) - expected).max() <= (4 if suffix == ".jpg" else 0)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "LA", "RGBA", "CMYK", "YCbCr", "HSV"])
def test_pil_images_of_every_mode_become_rgb(mode):
    image = Image.fromarray(smooth()).convert(mode)
    expected = np.asarray(image.convert("RGBA").convert("RGB") if mode.endswith("A") else image.convert("RGB"))
    assert np.array_equal(to_uint8_array(image), expected)


def test_a_grey_alpha_picture_keeps_both_channels(tmp_path):
    grey, alpha = smooth()[..., 0], smooth()[..., 1]
    image = Image.merge("LA", [Image.fromarray(grey), Image.fromarray(alpha)])
    picture = read_image(saved(image, tmp_path / "grey.png"))
    assert np.array_equal(np.asarray(picture.image), np.stack([grey] * 3, axis=-1))
    assert np.array_equal(np.asarray(picture.alpha), alpha)


def test_colours_under_transparent_pixels_are_kept(tmp_path):
    rgba = np.dstack([smooth(), np.zeros((48, 64), np.uint8)])
    picture = read_image(saved(Image.fromarray(rgba), tmp_path / "hidden.png"))
    assert np.array_equal(np.asarray(picture.image), smooth())
    assert not np.asarray(picture.alpha).any()


def test_a_palette_with_a_transparent_colour_has_alpha(tmp_path):
    image = Image.new("P", (4, 4), 1)
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.putpixel((0, 0), 0)
    picture = read_image(saved(image, tmp_path / "palette.png", transparency=0))
    assert picture.image.getpixel((0, 0)) == (255, 0, 0) and picture.image.getpixel((1, 1)) == (0, 255, 0)
    assert picture.alpha.getpixel((0, 0)) == 0 and picture.alpha.getpixel((1, 1)) == 255


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bit_grey_is_scaled_to_8_bits(tmp_path, suffix):
    values = np.array([[0, 256, 32896, 65535]], np.uint16)
    picture = read_image(saved(Image.fromarray(values), tmp_path / f"deep{suffix}"))
    assert np.asarray(picture.image)[0, :, 0].tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_pixels_without_a_fixed_range_are_refused(tmp_path, dtype):
    with pytest.raises(ImageError, match="no fixed range"):
        read_image(saved(Image.fromarray(np.zeros((4, 4), dtype)), tmp_path / "range.tif"))


@pytest.mark.parametrize("suffix", [".jpg", ".tif"])
def test_cmyk_is_read_as_rgb(tmp_path, suffix):
    picture = read_image(saved(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), tmp_path / f"print{suffix}"))
    assert np.abs(np.array(picture.image.getpixel((4, 4))) - (255, 0, 0)).max() <= 3


def grey_profile(gamma: int) -> bytes:
    """A small ICC profile: grey, with the given gamma."""
    white = b"XYZ " + bytes(4) + struct.pack(">3i", 63190, 65536, 54061)
    curve = b"curv" + bytes(4) + struct.pack(">IHH", 1, gamma * 256, 0)
    tags = struct.pack(">I", 2) + b"wtpt" + struct.pack(">2I", 156, 20) + b"kTRC" + struct.pack(">2I", 176, 14)
    header = struct.pack(">I4sI4s4s4s12x4s", 192, bytes(4), 0x02400000, b"mntr", b"GRAY", b"XYZ ", b"acsp")
    return header.ljust(128, b"\0") + tags + white + curve


def test_a_grey_profile_is_used_up(tmp_path):
    picture = read_image(saved(Image.new("L", (4, 4), 55), tmp_path / "linear.png", icc_profile=grey_profile(gamma=1)))
    assert picture.icc_profile is None
    assert np.abs(np.array(picture.image.getpixel((0, 0))) - 128).max() <= 2  # linear light 55 / 255 is 128 in sRGB


def test_an_rgb_profile_stays_with_a_grey_picture(tmp_path):
    picture = read_image(saved(Image.new("L", (4, 4), 128), tmp_path / "grey.png", icc_profile=RGB_PROFILE))
    assert picture.icc_profile == RGB_PROFILE and picture.image.getpixel((0, 0)) == (128, 128, 128)


def test_a_damaged_profile_is_dropped(tmp_path):
    picture = read_image(saved(Image.fromarray(smooth()), tmp_path / "profile.png", icc_profile=b"secret message"))
    assert picture.icc_profile is None


@pytest.mark.parametrize("suffix", [".gif", ".png", ".webp", ".tif"])
def test_animated_and_multi_page_files_are_refused(tmp_path, suffix):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green", "blue")]
    path = saved(frames[0], tmp_path / f"moving{suffix}", save_all=True, append_images=frames[1:])
    with pytest.raises(ImageError, match="3 frames or pages"):
        read_image(path)


def test_a_photo_with_further_pictures_inside_is_read_as_its_first(tmp_path):
    first, second = Image.fromarray(smooth()), Image.new("RGB", (8, 8))
    path = saved(first, tmp_path / "phone.jpg", format="MPO", save_all=True, append_images=[second])
    assert read_image(path).image.size == first.size


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.jpg", b"", "is empty"),
        ("text.jpg", b"not a picture", "no picture that can be read.*save it from there as JPEG or PNG"),
        ("head.png", b"\x89PNG\r\n\x1a\n", "save it from there as JPEG or PNG"),
    ],
)
def test_files_that_are_no_pictures_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ImageError, match=message):
        read_image(tmp_path / name)


def test_a_missing_file_is_an_image_error(tmp_path):
    with pytest.raises(ImageError, match="No such file"):
        read_image(tmp_path / "nowhere.jpg")


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".bmp", ".heic"])
def test_truncated_files_are_refused(tmp_path, suffix):
    path = tmp_path / f"cut{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    write_image(path, Image.fromarray(noise))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ImageError):
        read_image(path)


@given(st.binary(max_size=200), st.integers(0, 2000))
def test_damaged_bytes_give_a_picture_or_an_image_error(tmp_path_factory, junk, position):
    buffer = io.BytesIO()
    Image.fromarray(smooth()).save(buffer, "PNG")
    data = buffer.getvalue()
    path = tmp_path_factory.mktemp("damaged") / "picture.png"
    path.write_bytes(data[:position] + junk + data[position + len(junk) :])
    try:
        assert read_image(path).image.mode == "RGB"
    except ImageError:
        pass


def test_heic_without_its_package_names_the_extra(tmp_path, monkeypatch):
    path = tmp_path / "picture.heic"
    write_image(path, Image.fromarray(smooth()))
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(ImageError, match=r"diffdeid\[heif\]"):
        read_image(path)


def test_too_many_pixels_are_refused(tmp_path, monkeypatch):
    path = saved(Image.fromarray(smooth()), tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ImageError, match="more than 2,000 pixels"):
        read_image(path)


# --- writing ---


@pytest.mark.parametrize("suffix", LOSSLESS)
@given(pixels=SMALL_PICTURES)
def test_lossless_formats_return_the_same_pixels(tmp_path_factory, suffix, pixels):
    path = tmp_path_factory.mktemp("lossless") / f"picture{suffix}"
    write_image(path, Image.fromarray(pixels))
    assert np.array_equal(np.asarray(read_image(path).image), pixels)


@pytest.mark.parametrize("suffix", LOSSY)
def test_lossy_formats_return_nearly_the_same_pixels(tmp_path, suffix):
    path = tmp_path / f"picture{suffix}"
    write_image(path, Image.fromarray(smooth()))
    assert np.abs(np.asarray(read_image(path).image).astype(int) - smooth()).mean() < 3


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif", ".heic"])
def test_alpha_and_profile_survive(tmp_path, suffix):
    alpha = Image.new("L", (64, 48), 255)
    alpha.paste(0, (0, 0, 32, 48))
    path = tmp_path / f"picture{suffix}"
    write_image(path, Image.fromarray(smooth()), alpha, RGB_PROFILE)
    picture = read_image(path)
    assert np.abs(np.asarray(picture.alpha).astype(int) - np.asarray(alpha)).max() <= 2
    assert picture.icc_profile == RGB_PROFILE


@pytest.mark.parametrize("suffix", [".jpg", ".bmp"])
def test_alpha_that_the_format_cannot_hold_is_an_error(tmp_path, suffix):
    with pytest.raises(ImageError, match="no transparency"):
        write_image(tmp_path / f"picture{suffix}", Image.fromarray(smooth()), Image.new("L", (64, 48)))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("source", [".jpg", ".png", ".webp", ".tif", ".heic"])
@pytest.mark.parametrize("target", sorted(IMAGE_SUFFIXES))
def test_no_metadata_gets_through(tmp_path, source, target):
    secret = b"SECRETPLACE"
    exif = Image.Exif()
    exif[0x010E] = secret.decode()  # description
    exif.get_ifd(0x8825)[29] = secret.decode()  # GPS date
    xmp = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'>" + secret + b"</x:xmpmeta>"
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", secret.decode())
    options = {
        ".jpg": {"exif": exif, "comment": secret, "xmp": xmp},
        ".png": {"exif": exif, "pnginfo": text},
        ".webp": {"exif": exif, "xmp": xmp},
        ".tif": {"exif": exif, "description": secret.decode()},
        ".heic": {"exif": exif, "xmp": xmp},
    }
    path = saved(Image.fromarray(smooth()), tmp_path / f"source{source}", **options[source])
    assert secret in path.read_bytes()
    if source == ".jpg":  # a motion photo appends its film
        path.write_bytes(path.read_bytes() + secret)

    picture = read_image(path)
    assert not picture.image.info
    picture.image.info.update(comment=secret, exif=exif.tobytes(), xmp=xmp)  # what a careless caller may hand over
    out = tmp_path / f"out{target}"
    write_image(out, picture.image, picture.alpha, picture.icc_profile)
    assert secret not in out.read_bytes()
    with Image.open(out) as written:
        assert not dict(written.getexif()) or target in (".tif", ".tiff")  # TIFF keeps its own layout there
        assert not {"exif", "xmp", "comment", "photoshop"} & {key for key, value in written.info.items() if value}


def test_an_existing_file_is_kept_unless_told(tmp_path):
    path = tmp_path / "picture.png"
    path.write_bytes(b"mine")
    with pytest.raises(ImageError, match="exists"):
        write_image(path, Image.fromarray(smooth()))
    assert path.read_bytes() == b"mine"
    write_image(path, Image.fromarray(smooth()), overwrite=True)
    assert np.array_equal(np.asarray(read_image(path).image), smooth())


def test_a_link_is_replaced_and_its_target_kept(tmp_path):
    (tmp_path / "original.png").write_bytes(b"mine")
    (tmp_path / "link.png").symlink_to(tmp_path / "original.png")
    write_image(tmp_path / "link.png", Image.fromarray(smooth()), overwrite=True)
    assert (tmp_path / "original.png").read_bytes() == b"mine"


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_write_leaves_the_folder_as_it_was(tmp_path, monkeypatch, call, error):
    path = tmp_path / "picture.png"
    path.write_bytes(b"mine")

    def fail(*_):
        raise error

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(ImageError if isinstance(error, OSError) else KeyboardInterrupt):
        write_image(path, Image.fromarray(smooth()), overwrite=True)
    assert list(tmp_path.iterdir()) == [path] and path.read_bytes() == b"mine"


def test_a_picture_too_large_for_the_format_is_an_error(tmp_path):
    with pytest.raises(ImageError):
        write_image(tmp_path / "wide.webp", Image.new("RGB", (20000, 1)))
    assert not list(tmp_path.iterdir())


def test_written_files_have_the_usual_permissions(tmp_path):
    (tmp_path / "usual").touch()
    write_image(tmp_path / "picture.png", Image.fromarray(smooth()))
    mode = stat.S_IMODE((tmp_path / "picture.png").stat().st_mode)
    assert mode == stat.S_IMODE((tmp_path / "usual").stat().st_mode)


@pytest.mark.parametrize("name", ["picture.gif", "picture.xyz", "picture"])
def test_unknown_suffixes_are_refused(tmp_path, name):
    with pytest.raises(ImageError, match="suffix"):
        write_image(tmp_path / name, Image.fromarray(smooth()))


# --- arrays ---


@given(SMALL_PICTURES)
def test_every_form_of_a_picture_gives_the_same_array(pixels):
    chw = torch.from_numpy(pixels).permute(2, 0, 1).double() / 255
    for form in (pixels, Image.fromarray(pixels), chw, chw.float(), chw.numpy(), chw.float().numpy()):
        assert np.array_equal(to_uint8_array(form), pixels)


def test_the_array_is_the_callers_own():
    pixels = smooth()
    to_uint8_array(pixels)[:] = 0
    assert np.array_equal(pixels, smooth())


def test_a_grey_array_gets_three_equal_channels():
    grey = smooth()[..., 0]
    assert np.array_equal(to_uint8_array(grey), np.stack([grey] * 3, axis=-1))


@pytest.mark.parametrize(
    "bad",
    [
        np.full((3, 4, 4), np.nan),
        np.full((3, 4, 4), 1.5),
        np.full((3, 4, 4), -0.5),
        torch.full((3, 4, 4), float("inf")),
        torch.zeros(1, 3, 4, 4),
        torch.zeros(4, 4, 3),
        torch.zeros(3, 4, 4, dtype=torch.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((4, 4, 3), np.int64),
    ],
    ids=lambda bad: f"{bad.dtype}-{tuple(bad.shape)}",
)
def test_arrays_of_the_wrong_shape_or_range_are_refused(bad):
    with pytest.raises(ValueError, match="`image` must"):
        to_uint8_array(bad)


def test_other_types_are_refused():
    with pytest.raises(TypeError, match="str"):
        to_uint8_array("photo.jpg")


def test_an_interrupted_write_keeps_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "a.bin"
    write_whole(path, b"old")

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", interrupt)
        write_whole(path, b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
    write_whole(path, b"new")
    assert path.read_bytes() == b"new"
