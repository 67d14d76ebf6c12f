"""Every form a picture comes in, and every way in which it can be no picture."""

import base64
import io
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pydstp.errors import ImageError
from pydstp.image_source import FORMATS, load_image
from tests.prompts.pictures import encoded, noise, picture, png_16bit, png_bomb

LOSSLESS = ("PNG", "BMP", "TIFF", "PPM")


def pixels(source: object, **options: object) -> np.ndarray:
    image = load_image(source, **options)
    assert type(image) is Image.Image and image.mode == "RGB"
    return np.asarray(image)


def data_url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


@pytest.mark.parametrize("form", ["str", "Path", "bytes", "bytearray", "memoryview", "PIL",
                                  "opened", "array", "data URL"])
def test_every_form_gives_the_same_pixels(form: str, tmp_path: Path) -> None:
    image = picture(37, 23)
    data = encoded(image)
    file = tmp_path / "a picture.png"
    file.write_bytes(data)
    source = {"str": str(file), "Path": file, "bytes": data, "bytearray": bytearray(data),
              "memoryview": memoryview(data), "PIL": image, "opened": Image.open(file),
              "array": np.asarray(image), "data URL": data_url(data)}[form]
    np.testing.assert_array_equal(pixels(source), np.asarray(image))


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_is_read(format: str) -> None:
    image = picture(20, 10)
    found = pixels(encoded(image, format)).astype(int)
    if format in LOSSLESS:
        np.testing.assert_array_equal(found, np.asarray(image))
    assert found.shape == (10, 20, 3)


def test_other_formats_are_not_tried() -> None:
    for format in ("ICO", "PCX", "TGA"):
        with pytest.raises(ImageError, match="expected a picture in one of the formats PNG, JPEG"):
            load_image(encoded(picture(16, 16), format))


def test_a_plain_rgb_image_is_passed_on_without_a_copy() -> None:
    image = picture(4, 4)
    assert load_image(image) is image


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied(orientation: int, format: str) -> None:
    upright = np.zeros((16, 32, 3), np.uint8)
    upright[:8, :8] = 255  # a white corner at the top left
    stored = {1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1],
              5: upright.transpose(1, 0, 2), 6: upright.transpose(1, 0, 2)[::-1],
              7: upright.transpose(1, 0, 2)[::-1, ::-1],
              8: upright.transpose(1, 0, 2)[:, ::-1]}[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(np.ascontiguousarray(stored))
    options = {"quality": 95} if format in ("JPEG", "WEBP") else {}
    found = pixels(encoded(image, format, exif=exif, **options)).astype(int)
    np.testing.assert_allclose(found, upright, atol=40 if options else 0)  # only these are lossy


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_exif_does_not_cost_the_picture() -> None:
    image = picture(8, 8)
    data = encoded(image, "PNG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    np.testing.assert_array_equal(pixels(data), np.asarray(image))


def on_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[..., None] / 255
    return colour * share + 255 * (1 - share)


@pytest.mark.parametrize("form", ["RGBA", "LA", "array", "RGBa", "La", "palette", "key colour"])
def test_transparency_is_composited_on_white(form: str) -> None:
    colour, alpha = noise(16, 16), noise(16, 16, seed=1, channels=1)[..., 0]
    rgba = Image.fromarray(np.dstack([colour, alpha]))
    if form in ("LA", "La"):
        source = rgba.convert("LA").convert(form)
        colour = np.repeat(np.asarray(source.convert("LA"))[..., :1], 3, axis=2)
    elif form == "palette":
        source = Image.fromarray(alpha, "P")
        source.putpalette(list(range(256)) * 3)
        source.info["transparency"] = bytes(range(256))
        colour, alpha = np.asarray(source.convert("RGBA"))[..., :3], alpha
    elif form == "key colour":
        colour[:8] = (1, 2, 3)
        alpha = np.where((colour == (1, 2, 3)).all(axis=2), 0, 255)
        source = encoded(Image.fromarray(colour), "PNG", transparency=(1, 2, 3))
    else:
        source = {"RGBA": rgba, "array": np.asarray(rgba), "RGBa": rgba.convert("RGBa")}[form]
    tolerance = 1.01 if form not in ("RGBa", "La") else 3  # premultiplied: colours lose bits
    found = pixels(source).astype(int)
    np.testing.assert_allclose(found, on_white(colour, alpha), atol=tolerance)


def test_16bit_grey_is_scaled() -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    expected = np.rint(values / 257).astype(np.uint8)
    for source in (png_16bit(values), values, Image.fromarray(values),
                   Image.fromarray(values.astype(np.int32))):
        found = pixels(source)
        np.testing.assert_array_equal(found, np.repeat(expected[..., None], 3, axis=2))


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "HSV"])
def test_other_modes_are_converted(mode: str) -> None:
    image = picture(16, 16).convert(mode)
    np.testing.assert_array_equal(pixels(image), np.asarray(image.convert("RGB")))


def test_cmyk_jpeg() -> None:
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    np.testing.assert_allclose(pixels(encoded(image, "JPEG")), [[[255, 0, 0]] * 16] * 16, atol=6)


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_of_an_animation_is_taken(format: str) -> None:
    frames = [Image.new("RGB", (12, 8), colour) for colour in ("red", "green", "blue")]
    options = {"lossless": True} if format == "WEBP" else {}
    data = encoded(frames[0], format, save_all=True, append_images=frames[1:], **options)
    assert Image.open(io.BytesIO(data)).n_frames == 3
    np.testing.assert_array_equal(pixels(data), np.asarray(frames[0]))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_float_arrays_are_read_from_0_to_1(dtype: type) -> None:
    values = np.array([[[0, 0.5, 1]]], dtype)
    np.testing.assert_array_equal(pixels(values), [[[0, 128, 255]]])


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 1), (5, 7, 3), (5, 7, 4)])
def test_array_shapes(shape: tuple[int, ...]) -> None:
    array = np.full(shape, 255, np.uint8)
    np.testing.assert_array_equal(pixels(array[::-1]), np.full((5, 7, 3), 255))


@pytest.mark.parametrize("array, message", [
    (np.zeros((3, 5, 7), np.uint8), r"got shape \[3, 5, 7\]"),
    (np.zeros((2, 5, 7, 3), np.uint8), r"got shape \[2, 5, 7, 3\]"),
    (np.zeros(5, np.uint8), r"got shape \[5\]"),
    (np.zeros((5, 7, 2), np.uint8), r"got shape \[5, 7, 2\]"),
    (np.zeros((0, 7, 3), np.uint8), "at least 1 x 1 pixels, got 7 x 0"),
    (np.full((5, 7), 1.5), r"within \[0, 1\] in an array of float64, got \[1.5, 1.5\]"),
    (np.full((5, 7), -0.1, np.float32), r"within \[0, 1\]"),
    (np.full((5, 7), np.nan), r"within \[0, 1\]"),
    (np.zeros((5, 7), np.int64), "got an array of int64"),
    (np.zeros((5, 7), bool), "got an array of bool"),
    (np.zeros((5, 7), complex), "got an array of complex128"),
    (np.full((5, 7), 200, np.int32), "got an array of int32"),  # 8 bits or 16?
    (Image.fromarray(np.full((5, 7), 70000, np.int32)), r"within \[0, 65535\]"),
])
def test_arrays_that_are_no_picture(array: np.ndarray | Image.Image, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        load_image(array)


def damaged() -> dict[str, bytes]:
    data = encoded(picture(64, 64))
    jpeg = encoded(picture(64, 64), "JPEG")
    return {
        "empty": b"", "text": b"no picture at all", "one byte": b"\x89",
        "only a signature": data[:8], "half a header": data[:20],
        "half a PNG": data[:len(data) // 2],
        "half a JPEG": jpeg[:len(jpeg) // 2], "wrong checksum": data[:100] + b"\0\0" + data[102:],
        "half a WEBP": encoded(picture(64, 64), "WEBP")[:300],
        "half a GIF": encoded(picture(64, 64), "GIF")[:300],
        "half a TIFF": encoded(picture(64, 64), "TIFF")[:300],
        "half a PPM": encoded(picture(64, 64), "PPM")[:300],
    }  # fmt: skip


@pytest.mark.parametrize("name", damaged())
@pytest.mark.parametrize("form", ["bytes", "file", "data URL"])
def test_damaged_files(name: str, form: str, tmp_path: Path) -> None:
    data = damaged()[name]
    file = tmp_path / "damaged.png"
    file.write_bytes(data)
    source = {"bytes": data, "file": file, "data URL": data_url(data)}[form]
    with pytest.raises(ImageError, match="image: ") as caught:
        load_image(source)
    assert caught.value.__cause__ is None
    assert not re.search(r"0x[0-9a-f]{6}|object at", str(caught.value))


def test_random_damage_is_always_an_image_error() -> None:
    rng = np.random.default_rng(0)
    for format in FORMATS:
        data = np.frombuffer(encoded(picture(24, 24), format), np.uint8)
        for _ in range(60):
            copy = data.copy()
            copy[rng.integers(0, len(copy), 4)] = rng.integers(0, 256, 4)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    load_image(copy.tobytes(), max_image_pixels=100_000)
                except ImageError as error:
                    assert "object at" not in str(error)


@pytest.mark.parametrize("bits", [1, 8])
def test_a_decompression_bomb_is_refused_by_its_header(bits: int) -> None:
    with pytest.raises(ImageError, match="max_image_pixels = .* not decoded"):
        load_image(png_bomb(30_000, 30_000, bits))
    with pytest.raises(ImageError, match=r"12000 x 12000 = 144000000 pixels.*not decoded"), \
            warnings.catch_warnings():
        warnings.simplefilter("ignore")
        load_image(png_bomb(12_000, 12_000, bits))


def test_pillows_warning_as_an_error_is_an_image_error() -> None:
    with warnings.catch_warnings(), pytest.raises(ImageError, match="Pillow's own limit"):
        warnings.simplefilter("error")
        load_image(png_bomb(10_000, 10_000), max_image_pixels=10**9)


@pytest.mark.parametrize("form", ["bytes", "PIL", "array"])
def test_the_pixel_limit_is_a_parameter(form: str) -> None:
    image = picture(20, 10)
    source = {"bytes": encoded(image), "PIL": image, "array": np.asarray(image)}[form]
    assert load_image(source, max_image_pixels=200).size == (20, 10)
    with pytest.raises(ImageError, match="20 x 10 = 200 pixels .* max_image_pixels = 199"):
        load_image(source, max_image_pixels=199)


@pytest.mark.parametrize("url, scheme", [
    ("http://example.org/a.png", "http"), ("https://example.org/a.png", "https"),
    ("FTP://example.org/a.png", "FTP"), ("file:///etc/hostname", "file"), ("s3://b/k", "s3")])
def test_remote_addresses_are_refused_by_name(url: str, scheme: str) -> None:
    with pytest.raises(ImageError, match=f"{scheme} addresses are refused, nothing is fetched"):
        load_image(url)


@pytest.mark.parametrize("url, message", [
    ("data:image/png;base64,@@@@", "valid base64"),
    ("data:image/png;base64,QUJ", "valid base64"),
    ("data:image/png,rawdata", "expected a data URL"),
    ("data:text/html;base64,QUJD", "expected a data URL"),
    ("data:", "expected a data URL"),
    ("data:image/png;base64,", "0 bytes"),
])
def test_bad_data_urls(url: str, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        load_image(url)


def test_data_urls_may_be_wrapped_and_need_no_media_type() -> None:
    data = encoded(picture(8, 8))
    wrapped = base64.encodebytes(data).decode()
    for head in ("data:image/png;base64,", "data:;base64,", "DATA:image/webp;charset=x;BASE64,"):
        np.testing.assert_array_equal(pixels(head + wrapped), pixels(data))


@pytest.mark.parametrize("source", ["", "no/such/file.png", ".", "a\0b", "x" * 5000])
def test_paths_that_are_no_file(source: str) -> None:
    with pytest.raises(ImageError, match="image: "):
        load_image(source)


@pytest.mark.parametrize("source", [None, 3, ["a.png"], object(), {"url": "a"}])
def test_other_types_are_named(source: object) -> None:
    with pytest.raises(ImageError, match=f"got {type(source).__name__}"):
        load_image(source)


def test_a_file_is_closed_again(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(encoded(picture(8, 8)))
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        image = load_image(file)
        file.unlink()
        image.copy()
