"""What the CUDA compiler makes of the kernels: every op has one, none warns, none spills.

The build compiles the same files for every architecture; here two of them are looked at, the oldest
and the one that the project is aimed at.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "csrc/cuda").glob("*.cu"))
ARCHITECTURES = ("80", "90a")

# What `ptxas -v` says of one kernel, in three lines.
REPORT = re.compile(
    r"Compiling entry function '(?P<kernel>\w+)' for 'sm_(?P<architecture>\w+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, "
    r"(?P<loads>\d+) bytes spill loads.*?Used (?P<registers>\d+) registers", re.DOTALL)


class Usage(NamedTuple):
    """Of one kernel on one architecture, in bytes and registers per thread."""

    kernel: str
    architecture: str
    stack: int
    stores: int
    loads: int
    registers: int


def usages(report: str) -> list[Usage]:
    """Every kernel that a report of `ptxas -v` names."""
    return [Usage(*found.group("kernel", "architecture"),
                  *map(int, found.group("stack", "stores", "loads", "registers")))
            for found in REPORT.finditer(report)]


def compile_source(source: Path, target: Path) -> str:
    """What the compiler writes about the device code; skips where there is none."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("no nvcc on this machine")
    wanted = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in ARCHITECTURES]
    command = [nvcc, "-std=c++17", "-O3", "--fmad=false", "-Icsrc", "-Werror=all-warnings",
               "-Xptxas=-v", *wanted, "-fatbin", str(source), "-o", str(target)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_no_kernel_spills_its_registers(source, tmp_path):
    report = compile_source(source, tmp_path / "kernel.fatbin")
    found = usages(report)
    assert {usage.architecture for usage in found} == set(ARCHITECTURES), report
    assert len(found) == report.count("Compiling entry function"), report
    print("\n".join(map(str, found)))  # shown if the next line fails
    assert not [usage for usage in found if usage.stores or usage.loads]


def test_a_spill_is_noticed(tmp_path):
    source = tmp_path / "spill.cu"
    source.write_text("""\
__global__ void __launch_bounds__(1024, 2) spill(float* x) {
  float kept[64];
#pragma unroll
  for (int i = 0; i < 64; ++i) kept[i] = x[i * 1024 + threadIdx.x];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 64; ++i) x[(i * 7 % 64) * 1024 + threadIdx.x] = kept[i] * kept[63 - i];
}
""")
    found = usages(compile_source(source, tmp_path / "spill.fatbin"))
    assert len(found) == len(ARCHITECTURES)
    assert all(usage.kernel == "_Z5spillPf" and usage.stores and usage.loads for usage in found)


def test_every_kernel_that_has_a_twin_on_the_host_is_compiled():
    twins = {path.stem for path in (ROOT / "csrc/emulated").glob("*.cpp")}
    assert {path.stem for path in SOURCES} == twins
    described = (ROOT / "docs/kernels.md").read_text()
    names = {name for path in SOURCES for name in re.findall(r"int (\w+)_cuda", path.read_text())}
    assert [name for name in names if f"| `{name}` |" not in described] == []
    text = (ROOT / "CMakeLists.txt").read_text()
    assert [path.name for path in SOURCES if f"csrc/cuda/{path.name}" not in text] == []
