"""Pictures from wherever they come: one door, and what passes it is 8-bit RGB.

What is decided here, once for every form:

- EXIF orientation is applied (the reference does not: a photo held upright stays upright here).
- Transparency is composited on white, as transformers 5.23 does.
- 16-bit grey is scaled to 8 bits; CMYK and palettes are converted by Pillow, without profiles.
- Of an animation or a multi-page file the first frame is taken.
- Size limits are checked against the header, before any pixel is decoded.
- Nothing is fetched: remote addresses are refused by name.
"""

from __future__ import annotations

import base64
import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from pydstp.config import EngineConfig
from pydstp.errors import ImageError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")

ACCEPTED = "a path, bytes, a PIL image, a numpy array or a data URL"
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
_DATA_URL = re.compile(r"data:(?:image/[\w.+-]+)?(?:;[\w.+=-]+)*;base64,", re.IGNORECASE)
_EXIF_ORIENTATION = 0x0112
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def load_image(source: Any, *, max_image_pixels: int | None = None) -> Image.Image:
    """Any accepted form of a picture as an 8-bit RGB image.

    Args:
        source: a path (`str` or `Path`), the bytes of a file, a PIL image, a numpy array, or a
            base64 data URL. Files may be of the formats in `FORMATS`. Arrays are [height, width]
            or [height, width, 1 | 3 | 4]: uint8, uint16, or floating point within [0, 1].
        max_image_pixels: largest width x height; None takes `EngineConfig`'s default.

    Returns:
        An image in mode "RGB"; `source` itself if it is one that needs no change.

    Raises:
        ImageError: the source is of another kind, cannot be read, or is outside the limit.
    """
    limit = EngineConfig.max_image_pixels if max_image_pixels is None else max_image_pixels
    if isinstance(source, np.ndarray):
        return _prepare(_from_array(source, limit))
    if isinstance(source, Image.Image):
        _check_size(source.size, limit)
        return _prepare(source)
    if isinstance(source, bytes | bytearray | memoryview):
        return _read(io.BytesIO(bytes(source)), "bytes", limit)
    if isinstance(source, str) and source[:5].lower() == "data:":
        return _read(io.BytesIO(decode_data_url(source)), "data URL", limit)
    if isinstance(source, str | os.PathLike):
        with _open_file(source) as stream:
            return _read(stream, f"file {str(source)!r}", limit)
    raise ImageError(f"image: expected {ACCEPTED}, got {type(source).__name__}")


def decode_data_url(url: str) -> bytes:
    """The bytes in a base64 data URL, for example `data:image/png;base64,iVBOR...`.

    Raises:
        ImageError: not base64, or its media type is not an image.
    """
    match = _DATA_URL.match(url)
    if match is None:
        raise ImageError(f"image: expected a data URL that begins like 'data:image/png;base64,', "
                         f"got {_shorten(url, 40)}")
    try:
        return base64.b64decode("".join(url[match.end():].split()), validate=True)
    except ValueError:
        raise ImageError("image: the data URL does not hold valid base64") from None


@contextmanager
def _open_file(source: str | os.PathLike) -> Iterator[BinaryIO]:
    try:
        path = os.fsdecode(source)
    except TypeError:
        raise ImageError(f"image: expected {ACCEPTED}, got {type(source).__name__}, which is "
                         "no path") from None
    if scheme := _SCHEME.match(path):
        raise ImageError(f"image: {scheme[1]} addresses are refused, nothing is fetched; download "
                         f"the picture and pass its path or bytes (got {_shorten(path, 80)})")
    try:
        if not Path(path).is_file():
            raise ImageError(f"image: expected a file, got {_shorten(path, 200)}, which is none")
        stream = open(path, "rb")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not a path"
        raise ImageError(f"image: cannot open {_shorten(path, 200)}: {reason}") from None
    with stream:
        yield stream


def _shorten(text: str, length: int) -> str:
    return repr(text if len(text) <= length else text[:length] + "...")


def _read(stream: BinaryIO, name: str, limit: int) -> Image.Image:
    try:
        image = Image.open(stream, formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageError(f"image: the {name} has more pixels than max_image_pixels = {limit} or "
                         f"Pillow's own limit; it was not decoded") from None
    except UnidentifiedImageError:
        size = stream.seek(0, os.SEEK_END)
        raise ImageError(f"image: expected a picture in one of the formats {', '.join(FORMATS)}; "
                         f"the {name} ({size} bytes) is none") from None
    except Exception as error:  # whatever a format reader trips over in a hostile header
        raise ImageError(f"image: the header of the {name} is damaged "
                         f"({type(error).__name__})") from None
    _check_size(image.size, limit)
    return _prepare(image)


def _check_size(size: tuple[int, int], limit: int) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise ImageError(f"image: expected at least 1 x 1 pixels, got {width} x {height}")
    if width * height > limit:
        raise ImageError(f"image: {width} x {height} = {width * height} pixels are more than "
                         f"max_image_pixels = {limit}; it was not decoded")


def _prepare(image: Image.Image) -> Image.Image:
    """Decode, turn upright, convert. Error texts of readers may hold addresses: not passed on."""
    try:
        image.load()
    except Exception as error:
        raise ImageError(f"image: the {image.format or 'picture'} data is truncated or damaged "
                         f"({type(error).__name__})") from None
    try:
        return _to_rgb(_upright(image))
    except ImageError:
        raise
    except Exception as error:
        raise ImageError(f"image: mode {image.mode} cannot be converted to RGB "
                         f"({type(error).__name__})") from None


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION)
    except Exception:  # damaged metadata does not make the pixels worse
        return image
    return image.transpose(_TRANSPOSE[orientation]) if orientation in _TRANSPOSE else image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        pixels = _to_8bit(np.asarray(image), f"mode {image.mode}", ("u2", "i4"))
        image = Image.fromarray(pixels)
    if image.mode == "La":
        image = image.convert("LA")
    has_alpha = image.mode.endswith(("A", "a")) or image.info.get("transparency") is not None
    if has_alpha:
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image.convert("RGBA"))
    is_plain = image.mode == "RGB" and not isinstance(image, ImageFile.ImageFile)
    return image if is_plain else image.convert("RGB")


def _from_array(array: np.ndarray, limit: int) -> Image.Image:
    is_grey = array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 1)
    if not is_grey and (array.ndim != 3 or array.shape[2] not in (3, 4)):
        raise ImageError(f"image: expected an array [height, width] or [height, width, 1, 3 or 4], "
                         f"got shape {list(array.shape)}")
    height, width = array.shape[:2]
    _check_size((width, height), limit)
    pixels = _to_8bit(array, f"an array of {array.dtype}")
    pixels = pixels.reshape(height, width) if is_grey else pixels
    return Image.fromarray(np.ascontiguousarray(pixels))


def _to_8bit(array: np.ndarray, what: str, kinds: tuple[str, ...] = ("u2",)) -> np.ndarray:
    """Pixel values as uint8: 16 bits divided by 257, floats in [0, 1] x 255.

    kinds: types that hold 16 bits. Pillow has them in int32; an array of int32 may mean 8 bits.
    """
    if array.dtype == np.uint8:
        return array
    is_float = np.issubdtype(array.dtype, np.floating)
    if not is_float and array.dtype.kind + str(array.dtype.itemsize) not in kinds:
        raise ImageError(f"image: expected uint8, uint16 or floating point values, got {what}")
    low, high = array.min(), array.max()
    if not (low >= 0 and high <= (1 if is_float else 65535)):  # NaN fails this too
        expected = "[0, 1]" if is_float else "[0, 65535]"
        raise ImageError(f"image: expected values within {expected} in {what}, "
                         f"got [{low}, {high}]")
    scaled = array * 255.0 if is_float else array / 257.0
    return np.rint(scaled).astype(np.uint8)
