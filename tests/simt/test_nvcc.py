"""Every kernel compiles for GPUs, through the ten lines that an instantiation takes."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
KERNELS = sorted(p.stem for p in (ROOT / "csrc/kernels").glob("*.cuh")
                 if (ROOT / "csrc/emulated" / f"{p.stem}.cpp").exists())

OPS = {"key_sketch": ("sketch_scale", "sketch_keys")}  # where a file is not named after its op

INSTANTIATION = """\
namespace pydstp {{
int {op}_cuda(const {params}& p, void* stream) {{ return launch_{op}(p, stream); }}
}}  // namespace pydstp
"""


@pytest.mark.parametrize("op", KERNELS)
def test_the_kernel_compiles_for_ampere_and_hopper(op, tmp_path):
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("no nvcc on this machine")
    source = tmp_path / f"{op}.cu"
    parts = [f'#include "kernels/{op}.cuh"\n']
    for name in OPS.get(op, (op,)):
        params = "".join(word.capitalize() for word in name.split("_")) + "Params"
        parts.append(INSTANTIATION.format(op=name, params=params))
    source.write_text("\n".join(parts))
    architectures = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in ("80", "90a")]
    command = [nvcc, "-std=c++17", "-Icsrc", "-Werror=all-warnings", *architectures,
               "-c", str(source), "-o", str(tmp_path / f"{op}.o")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_there_are_kernels_to_compile():
    assert "decode_attention" in KERNELS
