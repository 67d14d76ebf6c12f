"""Sizes, pixel values and grids against transformers' processor; the file and its limits."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
    Qwen2VLImageProcessorPil,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
    smart_resize as reference_resize,
)

from pydstp.errors import CheckpointError, ImageError, OptionError, UnsupportedModelError
from pydstp.image import ImageProcessor, load_image, smart_resize
from tests.prompts.pictures import picture

FILE = {
    "size": {"shortest_edge": 65536, "longest_edge": 16777216}, "patch_size": 16,
    "temporal_patch_size": 2, "merge_size": 2, "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5], "image_processor_type": "Qwen2VLImageProcessorFast",
}  # fmt: skip
CONFIG = {"vision_config": {"patch_size": 16, "temporal_patch_size": 2, "spatial_merge_size": 2}}


def folder(path: Path, *, config: dict | None = None, **changes: object) -> Path:
    """A folder with the two files; a change to None removes the key."""
    content = {key: value for key, value in {**FILE, **changes}.items() if value is not None}
    (path / "preprocessor_config.json").write_text(json.dumps(content))
    (path / "config.json").write_text(json.dumps(config or CONFIG))
    return path


def reference(processor: ImageProcessor) -> Qwen2VLImageProcessorPil:
    return Qwen2VLImageProcessorPil(
        patch_size=processor.patch_size, temporal_patch_size=processor.temporal_patch_size,
        merge_size=processor.merge_size, image_mean=list(processor.levels.mean),
        image_std=list(processor.levels.std), size={"shortest_edge": processor.min_pixels,
                                            "longest_edge": processor.max_pixels})


def sizes(count: int, largest: int) -> list[tuple[int, int]]:
    """(width, height): corners, small ones on a diagonal, then random ones up to `largest`."""
    rng = np.random.default_rng(1)
    corners = [(1, 1), (1, 200), (200, 1), (2, 400), (16, 16), (31, 33), (32, 32), (33, 33),
               (47, 48), (48, 48), (80, 80), (16, 3200), (largest, largest), (3, largest // 3)]
    diagonal = [(n, 2 * n + 1) for n in range(3, 40)]
    random = [tuple(int(v) for v in np.exp(rng.uniform(1, math.log(largest), 2)))
              for _ in range(count)]
    return [(w, h) for w, h in corners + diagonal + random if max(w, h) <= 200 * min(w, h)]


def test_smart_resize_equals_the_reference_on_many_sizes() -> None:
    rng = np.random.default_rng(0)
    for width, height in sizes(6_000, 6000):
        for factor, low, high in ((32, 65536, 16777216), (32, 4096, 1_300_000), (28, 3136, 12544)):
            expected = reference_resize(height, width, factor, low, high)
            found = smart_resize(height, width, factor=factor, min_pixels=low, max_pixels=high)
            assert found == expected, (width, height, factor, low, high)
        low, high = sorted(rng.integers(1, 200_000, 2).tolist())
        expected = reference_resize(height, width, 32, low, high)
        assert smart_resize(height, width, factor=32, min_pixels=low, max_pixels=high) == expected


@pytest.mark.parametrize("size, resized, num_tokens", [
    ((640, 480), (640, 480), 300), ((1000, 747), (992, 736), 713), ((100, 30), (480, 160), 75),
    ((33, 33), (256, 256), 64), ((16, 16), (256, 256), 64), ((5000, 4000), (4576, 3648), 16302),
])
def test_known_sizes_of_qwen3_vl(size: tuple, resized: tuple, num_tokens: int) -> None:
    height, width = smart_resize(size[1], size[0], factor=32, min_pixels=65536, max_pixels=16777216)
    assert (width, height) == resized and width * height // 32**2 == num_tokens


@pytest.mark.parametrize("size", [(1, 201), (20_000, 1), (1, 20_000), (2, 401)])
def test_slivers_are_refused(size: tuple[int, int], tmp_path: Path) -> None:
    processor = ImageProcessor.from_checkpoint(folder(tmp_path))
    with pytest.raises(ImageError, match=f"ratio of 200, got {size[0]} x {size[1]}"):
        processor.preprocess(Image.new("RGB", size))


@pytest.mark.parametrize("changes", [
    {}, {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26, 0.3, 0.27]},
    {"patch_size": 14, "temporal_patch_size": 1, "merge_size": 3},
], ids=["qwen3", "other-mean", "other-patches"])
def test_pixel_values_and_grids_equal_the_reference(changes: dict, tmp_path: Path) -> None:
    patch = changes.get("patch_size", 16)
    config = {"vision_config": {"patch_size": patch, "spatial_merge_size":
                                changes.get("merge_size", 2), "temporal_patch_size":
                                changes.get("temporal_patch_size", 2)}}
    processor = ImageProcessor.from_checkpoint(
        folder(tmp_path, config=config, **changes), min_pixels=4096, max_pixels=32_768)
    oracle = reference(processor)
    for index, (width, height) in enumerate(sizes(30 if changes else 160, 400)):
        image = picture(width, height, seed=index)
        found, expected = processor.preprocess(image), oracle(image, return_tensors="pt")
        assert [[1, *found.grid]] == expected["image_grid_thw"].tolist(), (width, height)
        assert torch.equal(found.patches, expected["pixel_values"]), (width, height)
        assert found.num_tokens * processor.merge_size**2 == len(found.patches)
        assert found.resized == (found.grid[1] * patch, found.grid[0] * patch)
        assert found.original_size == (width, height)


def test_a_large_picture_equals_the_reference(tmp_path: Path) -> None:
    processor = ImageProcessor.from_checkpoint(folder(tmp_path))
    image = picture(1400, 1101)
    found, expected = processor.preprocess(image), reference(processor)(image, return_tensors="pt")
    assert torch.equal(found.patches, expected["pixel_values"])
    assert found.patches.dtype == torch.float32 and found.patches.is_contiguous()
    assert found.shrunk and found.resized[0] * found.resized[1] <= 1_300_000


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "CMYK", "1"])
def test_other_modes_equal_the_reference(mode: str, tmp_path: Path) -> None:
    processor = ImageProcessor.from_checkpoint(folder(tmp_path))
    rgba = picture(60, 40).convert("RGBA")
    rgba.putalpha(picture(60, 40, seed=5).convert("L"))
    image = rgba.convert(mode)
    expected = reference(processor)(image, return_tensors="pt")["pixel_values"]
    assert torch.equal(processor.preprocess(load_image(image)).patches, expected)


def test_rows_are_in_merge_block_order(tmp_path: Path) -> None:
    processor = ImageProcessor.from_checkpoint(folder(tmp_path), min_pixels=1)
    pixels = np.zeros((64, 96, 3), np.uint8)
    for row in range(4):
        for column in range(6):
            pixels[16 * row:16 * row + 16, 16 * column:16 * column + 16] = 10 * row + column
    found = processor.preprocess(Image.fromarray(pixels))
    levels = torch.round((found.patches[:, 0] + 1) * 127.5).int().tolist()
    assert found.grid == (4, 6)
    assert levels == [0, 1, 10, 11, 2, 3, 12, 13, 4, 5, 14, 15,
                      20, 21, 30, 31, 22, 23, 32, 33, 24, 25, 34, 35]


class TestLimits:
    def limits(self, path: Path, **options: object) -> tuple[int, int]:
        processor = ImageProcessor.from_checkpoint(path, **options)
        return processor.min_pixels, processor.max_pixels

    def test_default_on_the_cpu(self, tmp_path: Path) -> None:
        path = folder(tmp_path)
        assert self.limits(path) == (65536, 1_300_000)
        assert self.limits(path, device="cuda") == (65536, 16777216)
        assert self.limits(path, max_pixels="checkpoint") == (65536, 16777216)
        assert self.limits(path, min_pixels=1024, max_pixels=2048) == (1024, 2048)
        assert self.limits(path, max_pixels=2048) == (2048, 2048)

    def test_a_smaller_limit_of_the_file_stays(self, tmp_path: Path) -> None:
        size = {"shortest_edge": 4096, "longest_edge": 65536}
        assert self.limits(folder(tmp_path, size=size)) == (4096, 65536)

    def test_a_larger_lower_limit_of_the_file_stays(self, tmp_path: Path) -> None:
        size = {"shortest_edge": 2_000_000, "longest_edge": 3_000_000}
        assert self.limits(folder(tmp_path, size=size)) == (2_000_000, 2_000_000)

    @pytest.mark.parametrize("changes", [
        {"size": None, "min_pixels": 4096, "max_pixels": 65536},
        {"size": {"min_pixels": 4096, "max_pixels": 65536}},
        {"min_pixels": 4096, "max_pixels": 65536},  # beside a size that says otherwise
    ])
    def test_the_other_spelling(self, changes: dict, tmp_path: Path) -> None:
        assert self.limits(folder(tmp_path, **changes)) == (4096, 65536)

    @pytest.mark.parametrize("options, message", [
        ({"min_pixels": 0}, "min_pixels: expected an integer >= 1, got 0"),
        ({"max_pixels": -5}, "max_pixels: .* got -5"), ({"max_pixels": True}, "got True"),
        ({"max_pixels": "file"}, "got 'file'"), ({"max_pixels": 1e6}, "got 1000000.0"),
        ({"min_pixels": 5000, "max_pixels": 4000}, "at most max_pixels = 4000, got 5000"),
    ])
    def test_bad_limits(self, options: dict, message: str, tmp_path: Path) -> None:
        with pytest.raises(OptionError, match=message):
            ImageProcessor.from_checkpoint(folder(tmp_path), **options)

    def test_shrunk_means_that_max_pixels_took_effect(self, tmp_path: Path) -> None:
        processor = ImageProcessor.from_checkpoint(folder(tmp_path), max_pixels=65536)
        assert not processor.preprocess(picture(256, 256)).shrunk
        assert not processor.preprocess(picture(100, 100)).shrunk
        assert not processor.preprocess(picture(271, 256)).shrunk  # rounded down, nothing lost
        assert processor.preprocess(picture(290, 256)).shrunk


class TestFile:
    def test_missing_files_are_named(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="preprocessor_config.json and processor_config"):
            ImageProcessor.from_checkpoint(tmp_path)
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(FILE))
        with pytest.raises(CheckpointError, match="config.json is missing"):
            ImageProcessor.from_checkpoint(tmp_path)

    def test_processor_config_of_newer_savers(self, tmp_path: Path) -> None:
        expected = ImageProcessor.from_checkpoint(folder(tmp_path))
        (tmp_path / "preprocessor_config.json").unlink()
        content = {"processor_class": "Qwen3VLProcessor", "image_processor": FILE}
        (tmp_path / "processor_config.json").write_text(json.dumps(content))
        assert ImageProcessor.from_checkpoint(tmp_path) == expected

    @pytest.mark.parametrize("changes, message", [
        ({"image_processor_type": "CLIPImageProcessor"}, "image_processor_type = .*CLIP"),
        ({"do_resize": False}, "do_resize = false is not supported"),
        ({"do_normalize": False}, "do_normalize = false"),
        ({"resample": 2}, "resample = 2 is not supported"),
    ])
    def test_unsupported_values_are_refused_by_name(
        self, changes: dict, message: str, tmp_path: Path
    ) -> None:
        with pytest.raises(UnsupportedModelError, match=message):
            ImageProcessor.from_checkpoint(folder(tmp_path, **changes))

    @pytest.mark.parametrize("changes, message", [
        ({"patch_size": 14}, "patch_size: expected 16, as .*vision_config.patch_size says, got 14"),
        ({"merge_size": 1}, "merge_size: expected 2, as .*spatial_merge_size says, got 1"),
        ({"temporal_patch_size": 1}, "temporal_patch_size: expected 2"),
        ({"patch_size": None}, "patch_size is missing"),
        ({"patch_size": "16"}, "patch_size: expected an integer"),
        ({"image_mean": [0.5]}, "image_mean: expected a list of three numbers"),
        ({"image_std": [0.5, 0.5, 0]}, "image_std: expected a list of three numbers > 0"),
        ({"image_std": None}, "image_std: expected"),
        ({"size": {"height": 224, "width": 224}}, "size.shortest_edge is missing"),
        ({"size": None}, "shortest_edge is missing"),
        ({"rescale_factor": 0}, "rescale_factor: expected a finite number > 0"),
    ])
    def test_wrong_values_name_file_key_and_value(
        self, changes: dict, message: str, tmp_path: Path
    ) -> None:
        with pytest.raises(CheckpointError, match=f"preprocessor_config.json: {message}"):
            ImageProcessor.from_checkpoint(folder(tmp_path, **changes))

    @pytest.mark.parametrize("text", ["", "{", "[1]", "\xff", "[" * 100_000])
    def test_damaged_json(self, text: str, tmp_path: Path) -> None:
        folder(tmp_path)
        (tmp_path / "preprocessor_config.json").write_text(text, encoding="latin-1")
        with pytest.raises(CheckpointError, match="preprocessor_config.json"):
            ImageProcessor.from_checkpoint(tmp_path)


def test_only_rgb_images_are_processed(tmp_path: Path) -> None:
    processor = ImageProcessor.from_checkpoint(folder(tmp_path))
    with pytest.raises(ImageError, match="mode RGB, got L"):
        processor.preprocess(picture(40, 40).convert("L"))
    with pytest.raises(ImageError, match="mode RGB, got ndarray"):
        processor.preprocess(np.zeros((4, 4, 3), np.uint8))
