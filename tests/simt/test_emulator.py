"""What the host emulation of GPU kernels catches: each mistake is made once, and must show."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ["tests/simt/kernels.cpp", "csrc/simt/simt_host.cpp", "csrc/simt/fiber.cpp"]
SEEDS = ["0", "1", "2"]


def compile_kernels(folder: Path, *flags: str) -> Path:
    """The program of kernels.cpp; skips where there is no compiler."""
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler on this machine")
    program = folder / "kernels"
    command = [compiler, "-std=c++17", "-g", "-Icsrc", *flags, *SOURCES, "-o", str(program)]
    subprocess.run(command, check=True, cwd=ROOT)
    return program


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_kernels(tmp_path_factory.mktemp("kernels"), "-O1")


def run(program: Path, kernel: str, seed: str) -> str:
    result = subprocess.run([program, kernel, seed], capture_output=True, text=True, check=True)
    return result.stdout.strip()


@pytest.mark.parametrize("seed", SEEDS)
def test_a_correct_kernel_passes(kernels, seed):
    assert run(kernels, "good", seed) == "ok"


@pytest.mark.parametrize("seed", SEEDS)
def test_a_missing_barrier_gives_a_wrong_result(kernels, seed):
    assert run(kernels, "missing_barrier", seed) == "wrong"


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kernel, complaint", [
    ("undersized_shared", "shared memory was written past its end (380 bytes)"),
    ("odd_block", "a block has 32 to 1024 threads, a multiple of 32; got 95"),
    ("half_barrier", "divergent barrier: 48 of 96 threads reached it, the others have returned"),
    ("two_places_barrier", "divergent barrier: threads wait at different lines"),
    ("divergent_sum", "divergent warp operation: not all lanes of a warp reached it"),
    ("divergent_line", "divergent warp operation: not all lanes of a warp reached it"),
    ("misaligned_read", "misaligned read of 16 bytes"),
    ("misaligned_word", "misaligned read of 4 bytes"),
    ("sum_beside_barrier", "divergent warp operation: not all lanes of a warp reached it"),
])
def test_a_mistake_is_named(kernels, kernel, complaint, seed):
    output = run(kernels, kernel, seed)
    assert output.endswith(": " + complaint), output


def test_the_sanitizer_points_at_the_line_that_leaves_shared_memory(tmp_path):
    program = compile_kernels(tmp_path, "-O1", "-fsanitize=address")
    assert run(program, "good", "1") == "ok"
    result = subprocess.run([program, "undersized_shared", "0"], capture_output=True, text=True,
                            check=False)
    assert result.returncode != 0
    assert "AddressSanitizer" in result.stderr
    assert "reverse_kernel" in result.stderr
