"""Read and write pictures: files, PIL images, arrays and tensors. Ranges and axes: docs/conventions.md.

Reading turns every mode into upright 8-bit RGB plus an alpha channel. Writing starts from the bare pixels, so EXIF, GPS, XMP,
comments, thumbnails and all else in the source is left out; only an RGB colour profile may be kept.

Pictures over Pillow's own limit (179 megapixels) are refused. HEIC needs `pip install diffdeid[heif]`.
"""

from __future__ import annotations

import io
import warnings
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageCms, UnidentifiedImageError

from diffdeid.errors import ImageError
from diffdeid.io.files import Check, fingerprint, taken, write_whole
from diffdeid.io.jpeg import ORIENTATION, UPRIGHT, encode_like

# How each format is written: (Pillow's name, options, can hold alpha).
_JPEG = ("JPEG", {"quality": 95, "subsampling": "4:4:4"}, False)
_TIFF = ("TIFF", {"compression": "tiff_adobe_deflate"}, True)
_HEIF = ("HEIF", {"quality": 95, "chroma": 444}, True)
_ENCODERS = {
    ".jpg": _JPEG,
    ".jpeg": _JPEG,
    ".png": ("PNG", {}, True),
    ".webp": ("WEBP", {"quality": 95, "exact": True}, True),  # exact: colours under transparent pixels are those we checked
    ".tif": _TIFF,
    ".tiff": _TIFF,
    ".bmp": ("BMP", {}, False),
    ".heic": _HEIF,
    ".heif": _HEIF,
}
IMAGE_SUFFIXES = frozenset(_ENCODERS)
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # large pictures are welcome, up to the limit above
_READABLE = ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF"]  # few parsers leave few ways to attack one
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_STILLS_WITH_EXTRAS = ["MPO", "HEIF"]  # photos that carry depth or gain maps as further frames: the first frame is the photo


@dataclass(frozen=True)
class Picture:
    """A picture file, decoded.

    Attributes:
        image: upright 8-bit RGB; colours under transparent pixels are kept, because a face can hide there.
        alpha: the transparency as "L", `None` when the picture is opaque.
        icc_profile: the colour profile of `image`, `None` for sRGB.
        format: Pillow's name of the file format.
    """

    image: Image.Image
    alpha: Image.Image | None
    icc_profile: bytes | None = field(repr=False)
    format: str


def read_image(path: str | Path) -> Picture:
    """Read a picture file.

    Raises:
        ImageError: the file cannot be read, is not one still picture, or cannot be shown faithfully in 8-bit RGB.
    """
    path = Path(path)
    try:
        file = path.open("rb")
    except OSError as error:
        raise ImageError(f"Cannot read `{path}`: {error.strerror}.") from error
    with file:
        head = file.read(12)
        if not head:
            raise ImageError(f"`{path}` is empty. Copy it again, or remove it from the input.")
        file.seek(0)
        formats = _READABLE
        if head[4:8] == b"ftyp" and head[8:] in _HEIF_BRANDS:
            _register_heif()
            formats = ["HEIF"]
        return _read(path, file, formats)


def read_with_fingerprint(path: Path) -> tuple[Picture, str]:
    """Read a picture file and the fingerprint of its content; raises `ImageError` as well if the file changes meanwhile."""
    try:
        before = fingerprint(path)
    except OSError as error:
        raise ImageError(f"Cannot read `{path}`: {error.strerror}.") from error
    picture = read_image(path)
    if fingerprint(path) != before:
        raise ImageError(f"`{path}` changed while it was read. Do not change it meanwhile.")
    return picture, before


def write_image(
    path: str | Path,
    image: Image.Image,
    alpha: Image.Image | None = None,
    icc_profile: bytes | None = None,
    overwrite: bool = False,
    check: Check | None = None,
    source: str | Path | None = None,
) -> None:
    """Write the pixels of `image` with `alpha` and `icc_profile`, and nothing else, in the format that the suffix names.

    The file appears complete or not at all, and an existing one is replaced only with `overwrite`. JPEG and HEIC are written
    without chroma subsampling; BMP drops the colour profile, which it cannot hold.

    Args:
        path: the file.
        image: of any mode. It is written in 8-bit RGB.
        alpha: the transparency as "L", `None` for an opaque picture.
        icc_profile: the colour profile of `image`, `None` for sRGB.
        overwrite: replace an existing file.
        check: called with the finished file before it gets its name; an error in it leaves no file.
        source: the file that `image` was made from. If both are JPEGs, the new one has the quality and the sampling of the
            source, is grey if the source is, and has the blocks of the source wherever no pixel changed, see `io.jpeg`.

    Raises:
        ImageError: the file exists, or cannot be written as asked; or the source cannot be read.
        VerificationError: `check` refuses the file.
    """
    path = Path(path)
    check_writable(path, alpha is not None, overwrite)
    file_format, options, _ = _ENCODERS[path.suffix.lower()]
    if file_format == "HEIF":
        _register_heif()
    pixels = Image.fromarray(np.asarray(image.convert("RGB")))  # a new image has no `info` that an encoder could write
    if alpha is not None:
        pixels.putalpha(alpha)
    try:
        content = None if source is None or file_format != "JPEG" else encode_like(Path(source), pixels, icc_profile)
        if content is None:
            encoded = io.BytesIO()
            pixels.save(encoded, format=file_format, icc_profile=icc_profile, **options)
            content = encoded.getbuffer()
        write_whole(path, content, overwrite, check)
    except FileExistsError as error:  # another program wrote it meanwhile
        raise ImageError(taken(path)) from error
    except (OSError, ValueError) as error:
        raise ImageError(f"Cannot write `{path}`: {error}.") from error


def check_writable(path: Path, has_alpha: bool, overwrite: bool) -> None:
    """Raise `ImageError` if `write_image` would refuse, before time is spent on the pixels."""
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        raise ImageError(f"Cannot write `{path.name}`: the suffix must be one of {', '.join(sorted(IMAGE_SUFFIXES))}.")
    file_format, _, holds_alpha = _ENCODERS[path.suffix.lower()]
    if has_alpha and not holds_alpha:
        raise ImageError(f"Cannot write `{path.name}`: {file_format} has no transparency and the picture does. Write a PNG.")
    if path.exists() and not overwrite:
        raise ImageError(taken(path))


def to_uint8_array(image: Image.Image | np.ndarray | torch.Tensor) -> np.ndarray:
    """A picture in any accepted form as a new `(height, width, 3)` uint8 RGB array.

    Args:
        image: a PIL image of any mode (made upright, alpha ignored), a uint8 array `(height, width, 3)` or `(height, width)`,
            or a floating-point array or tensor `(3, height, width)` in [0, 1].

    Raises:
        TypeError: `image` is of another type.
        ValueError: its shape, dtype or values are others.
        ImageError: a PIL image has a mode without a fixed range of colours.
    """
    if isinstance(image, Image.Image):
        return np.array(_decode(image)[0])
    if isinstance(image, torch.Tensor):
        image = image.detach().cpu()
        image = image.float().numpy() if image.is_floating_point() else image.numpy()
    if not isinstance(image, np.ndarray):
        raise TypeError(f"`image` must be a PIL image, an array or a tensor, got `{type(image).__name__}`.")
    expected = "uint8 (height, width, 3) or (height, width), or floating point (3, height, width)"
    if image.size and image.dtype == np.uint8 and image.ndim == 2:
        return np.stack([image] * 3, axis=-1)
    if image.size and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3:
        return image.copy()
    if image.size and np.issubdtype(image.dtype, np.floating) and image.ndim == 3 and image.shape[0] == 3:
        if not (image.min() >= 0 and image.max() <= 1):  # also false for NaN
            raise ValueError(f"`image` must lie in [0, 1], got values from {image.min()} to {image.max()}.")
        return np.ascontiguousarray((image * 255).round().astype(np.uint8).transpose(1, 2, 0))
    raise ValueError(f"`image` must be {expected}, got {image.dtype} {image.shape}.")


def _read(path: Path, file: BinaryIO, formats: list[str]) -> Picture:
    try:
        image = Image.open(file, formats=formats)
        if getattr(image, "n_frames", 1) > 1 and image.format not in _STILLS_WITH_EXTRAS:
            raise ImageError(
                f"`{path}` has {image.n_frames} frames or pages (animated or multi-page). Save them as single pictures."
            )
        image.load()
        return Picture(*_decode(image), format=image.format)
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError(
            f"`{path}` is no picture that can be read. Check that it opens in a picture viewer, and save it from there as JPEG "
            "or PNG. If it is no picture, remove it from the input."
        ) from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"`{path}` has more than {2 * Image.MAX_IMAGE_PIXELS:,} pixels. Scale it down first.") from error
    except Exception as error:  # decoders raise almost anything on damaged files
        raise ImageError(
            f"`{path}` cannot be decoded ({str(error).rstrip('.')}). It is incomplete, damaged or of an unsupported kind. "
            "Copy it again, or open it in a picture viewer and save it from there as JPEG or PNG."
        ) from error


def _decode(image: Image.Image) -> tuple[Image.Image, Image.Image | None, bytes | None]:
    """Upright RGB, alpha and colour profile of a loaded picture of any mode."""
    icc_profile = image.info.get("icc_profile")
    transpose = UPRIGHT.get(image.getexif().get(ORIENTATION))
    if transpose is not None:
        image = image.transpose(transpose)
    if image.mode.startswith("I;16"):
        if "transparency" in image.info:
            raise ImageError("16-bit grey pictures with a transparent colour are not supported. Save the picture with 8 bits.")
        image = Image.fromarray((np.asarray(image) / np.float32(257)).round().astype(np.uint8))
    elif image.mode in ("I", "F", "LAB"):
        raise ImageError(f"Pixels of mode {image.mode} have no fixed range of colours. Save the picture as 8- or 16-bit RGB.")
    alpha = None
    if image.has_transparency_data:
        image = image.convert("RGBA")
        alpha = image.getchannel("A")

    profile = _parse_profile(icc_profile)
    if profile is None:
        icc_profile = None
    elif profile.profile.xcolor_space.strip() != "RGB":  # it is for CMYK or grey, so it must be applied here
        icc_profile = None
        with suppress(ImageCms.PyCMSError):  # a profile for some other mode is ignored
            image = ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
    image = image.convert("RGB")
    image.info = {}
    return image, alpha, icc_profile


def _parse_profile(icc_profile: bytes | None) -> ImageCms.ImageCmsProfile | None:
    """The parsed profile, or `None` if there is none or it is damaged."""
    try:
        return ImageCms.ImageCmsProfile(io.BytesIO(icc_profile)) if icc_profile else None
    except (OSError, ImageCms.PyCMSError):
        return None


def _register_heif() -> None:
    try:
        import pillow_heif
    except ImportError as error:
        raise ImageError("HEIC pictures need another package: `pip install diffdeid[heif]`.") from error
    pillow_heif.register_heif_opener()
