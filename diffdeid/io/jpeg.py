"""JPEG files in which only the faces changed.

A JPEG stores blocks of 8×8 samples as coefficients, and often one sample of colour for 2×2 pixels. To decode a photo and encode
it again changes all blocks a little. Here the new picture is encoded with the tables and the sampling of the source, and then
blocks in which no pixel is new get the coefficients of the source. Nothing else of the source enters the file: no marker, nothing
beyond the edges, and no coefficient of a block in which a pixel changed.
"""

from __future__ import annotations

import io
import tempfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, JpegImagePlugin, UnidentifiedImageError

ORIENTATION = 0x0112  # the number of the EXIF tag
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ON_THE_SIDE, _MIRRORED, _UPSIDE_DOWN = {5, 6, 7, 8}, {2, 3, 6, 7}, {3, 4, 7, 8}  # to be transposed, then flipped
_MOST_PIXELS = 64_000_000  # the coefficients of larger pictures take gigabytes
_TURNED = 6  # levels by which decoders may round a turned block differently
_HIDDEN = 4.0  # levels, root mean square, by which samples beyond an edge may differ from the repeated edge


def encode_like(source: Path, image: Image.Image, icc_profile: bytes | None) -> bytes | None:
    """A JPEG of `image` with the tables and the sampling of another JPEG, and with its blocks wherever no pixel is new.

    Args:
        source: the file that `image` was made from. Turned upright by its EXIF orientation, it must have the same size.
        image: upright RGB. A grey source gives a grey file.
        icc_profile: the colour profile to write, or `None`.

    Returns:
        The content of the file; `None` if the source is not a JPEG, holds inks (CMYK), or has another size.

    Raises:
        OSError: the source cannot be read.
    """
    try:
        with Image.open(source, formats=["JPEG"]) as stored:
            orientation = stored.getexif().get(ORIENTATION, 1)
            layout = _layout(stored, orientation)
            sampling = 0 if stored.mode == "L" else JpegImagePlugin.get_sampling(stored)
            mode, before = stored.mode, _pixels(stored, orientation)
    except (UnidentifiedImageError, KeyError):  # not a JPEG, or one with tables in an unusual place
        return None
    if mode not in ("L", "RGB") or before.shape[1::-1] != image.size:
        return None

    encoded = io.BytesIO()
    sampling = 0 if sampling == 1 and orientation in _ON_THE_SIDE else max(sampling, 0)  # others have no name in Pillow
    tables = [table for *_, table in layout]
    while len(tables) > 1 and tables[-1] == tables[-2]:
        tables.pop()  # Pillow takes the last for all components that follow
    (image if mode == image.mode else image.convert(mode)).save(
        encoded, "JPEG", qtables=tables, subsampling=sampling, icc_profile=icc_profile
    )
    with Image.open(encoded) as fresh:
        alike = _layout(fresh) == layout and image.width * image.height <= _MOST_PIXELS
    return alike and _spliced(source, orientation, before, np.asarray(image), encoded.getvalue()) or encoded.getvalue()


def _pixels(jpeg: Image.Image, orientation: int = 1) -> np.ndarray:
    """The RGB pixels `(height, width, 3)` of an opened file, made upright."""
    image = jpeg if jpeg.mode == "RGB" else jpeg.convert("RGB")
    return np.asarray(image.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else image)


def _layout(jpeg: Image.Image, orientation: int = 1) -> list[tuple[float, float, list[int]]]:
    """For each component of an opened file, made upright: horizontal and vertical sampling, at most 1, and quantization table."""
    finest = [max(layer[side] for layer in jpeg.layer) for side in (1, 2)]
    layout = [(h / finest[0], v / finest[1], list(jpeg.quantization[number])) for _, h, v, number in jpeg.layer]
    if orientation in _ON_THE_SIDE:
        return [(v, h, np.reshape(table, (8, 8)).T.ravel().tolist()) for h, v, table in layout]
    return layout


def _spliced(source: Path, orientation: int, before: np.ndarray, after: np.ndarray, fresh: bytes) -> bytes | None:
    """Replace coefficients of `fresh`, which encodes the picture `after`, by those of the source where it agrees with `before`.

    `None` if that cannot be done. The pictures are upright, `(height, width, 3)`.
    """
    try:
        import jpegio
    except ImportError:  # it has no wheels for Linux on ARM
        return None
    with tempfile.TemporaryDirectory() as folder:  # only the de-identified picture is written there
        file = Path(folder, "fresh.jpg")
        file.write_bytes(fresh)
        try:
            new, old = jpegio.read(file), jpegio.read(source)
            kept = _splice(new, old, orientation, _difference(before, after) == 0)
            if kept is None:
                return None
            new.optimize_coding = True
            new.write(file)
        except RuntimeError:  # libjpeg cannot read a damaged file
            return None
        content = file.read_bytes()
    # Two decoders may see different pictures in a damaged or malicious file. Kept pixels must be those searched for faces.
    with Image.open(io.BytesIO(content)) as written:
        difference = _difference(_pixels(written), before)
    return content if difference[kept].max(initial=0) <= (_TURNED if orientation in UPRIGHT else 0) else None


def _splice(new: Any, old: Any, orientation: int, same: np.ndarray) -> np.ndarray | None:
    """Put coefficients of the source into those of the new picture.

    Args:
        new, old: what jpegio read of the new picture's file, and of the source.
        orientation: of the source. The new picture is upright.
        same: `(height, width)` bool, where pixels agree.

    Returns:
        `(height, width)` bool, which pixels must now be those of the source; `None` if the blocks of the two do not align.
    """
    high, wide = new.max_v_samp_factor, new.max_h_samp_factor
    unit = 8 * high, 8 * wide  # the pixels of a minimum coded unit
    height, width = same.shape
    if orientation in _MIRRORED and width % unit[1] or orientation in _UPSIDE_DOWN and height % unit[0]:
        return None
    if len(new.coef_arrays) != len(old.coef_arrays) or new.jpeg_color_space != old.jpeg_color_space:
        return None

    padded = np.pad(same, ((0, -height % unit[0]), (0, -width % unit[1])), constant_values=True)
    untouched = padded.reshape(len(padded) // unit[0], unit[0], -1, unit[1]).all(axis=(1, 3))
    kept = np.ones((-(-height // 8), -(-width // 8)), bool)  # of all components
    for component, ours, theirs in zip(new.comp_info, new.coef_arrays, old.coef_arrays, strict=True):
        ours, theirs = _blocks(ours), _upright(_blocks(theirs), orientation)
        if ours.shape != theirs.shape:
            return None
        rows, columns = ours.shape[:2]
        keep = untouched.repeat(component.v_samp_factor, 0).repeat(component.h_samp_factor, 1)[:rows, :columns]
        table = new.quant_tables[component.quant_tbl_no]
        if component.downsampled_height % 8:  # the last blocks go beyond the edge, where something may hide
            keep[-1] &= _distance(ours[-1], theirs[-1], table) <= _HIDDEN
        if component.downsampled_width % 8:
            keep[:, -1] &= _distance(ours[:, -1], theirs[:, -1], table) <= _HIDDEN
        new_blocks = ours[~keep]
        ours[:] = theirs
        ours[~keep] = new_blocks
        keep = keep.repeat(high // component.v_samp_factor, 0).repeat(wide // component.h_samp_factor, 1)
        kept &= keep[: len(kept), : kept.shape[1]]
    pixels = kept.repeat(8, 0).repeat(8, 1)[:height, :width]
    return cv2.erode(pixels.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0  # colours reach a pixel into the next block


def _difference(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """`(height, width)`, by how many levels two pictures differ in any channel."""
    return np.maximum.reduce(cv2.split(cv2.absdiff(one, other)))


def _blocks(coefficients: np.ndarray) -> np.ndarray:
    """`(8·rows, 8·columns)` -> a view of the blocks `(rows, columns, 8, 8)`; frequencies grow down and to the right."""
    height, width = coefficients.shape
    return coefficients.reshape(height // 8, 8, width // 8, 8).swapaxes(1, 2)


def _upright(blocks: np.ndarray, orientation: int) -> np.ndarray:
    """The blocks of the picture turned upright. Odd frequencies of a mirrored block change their sign."""
    signs = np.where(np.arange(8) % 2, -1, 1)
    if orientation in _ON_THE_SIDE:
        blocks = blocks.transpose(1, 0, 3, 2)
    if orientation in _MIRRORED:
        blocks = blocks[:, ::-1] * signs
    if orientation in _UPSIDE_DOWN:
        blocks = blocks[::-1] * signs[:, None]
    return blocks


def _distance(blocks: np.ndarray, others: np.ndarray, table: np.ndarray) -> np.ndarray:
    """How far blocks `(…, 8, 8)` of coefficients are from others: levels, root mean square over their samples."""
    return np.sqrt((((blocks - others) * table) ** 2.0).sum(axis=(-2, -1))) / 8
