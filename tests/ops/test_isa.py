"""Which implementation runs, and how far implementations may differ."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from pydstp import ops
from pydstp.errors import OptionError
from tests.generators import normal
from tests.ops.conftest import ONE_FOR_ALL_TIERS

ROOT = Path(__file__).resolve().parents[2]
PRODUCTION = [isa for isa in ops.available_isas() if isa in ("avx512bf16", "avx2", "portable")]


def test_the_best_tier_is_the_default_and_portable_is_always_there():
    assert ops.current_isa() == ops.available_isas()[0]
    assert "portable" in PRODUCTION
    for tier in ("avx512bf16", "avx2"):
        assert (tier in PRODUCTION) == ops.cpu_features().get(tier, False)


def test_a_tier_can_be_chosen_and_given_back():
    best = ops.current_isa()
    for isa in ops.available_isas():
        ops.set_isa(isa)
        assert ops.current_isa() == isa
    ops.set_isa(None)
    assert ops.current_isa() == best


@pytest.mark.parametrize("tier", ["", "avx1024"])
def test_an_unknown_tier_is_refused(tier):
    with pytest.raises(OptionError, match="tier: expected one of"):
        ops.set_isa(tier)


def test_implementations_agree_closely(isa, dtype, pool):
    x, weight = normal(3, 1025, dtype=dtype), normal(97, 1025, dtype=dtype, seed=1)
    ops.set_isa("portable")
    expected = ops.linear(x, weight, pool=pool).float()
    ops.set_isa(isa)
    error = (ops.linear(x, weight, pool=pool).float() - expected).abs().max()
    assert error <= (1e-5 if dtype == torch.float32 else 2**-8) * expected.abs().max()


@pytest.mark.parametrize("module", ONE_FOR_ALL_TIERS)
def test_what_is_tested_on_one_tier_is_compiled_once(module):
    text = (ROOT / "CMakeLists.txt").read_text()
    tiered = re.search(r"set\(tiered_sources\s([^)]*)\)", text).group(1).split()
    assert "csrc/cpu/linear.cpp" in tiered
    for name in ONE_FOR_ALL_TIERS[module]:
        assert f"csrc/cpu/{name}.cpp" in text and f"csrc/cpu/{name}.cpp" not in tiered


@pytest.mark.parametrize("tier", ["avx2", "avx512bf16"])
def test_a_tier_shares_no_code_with_files_for_other_machines(tier):
    """A weak symbol could be merged with another file's copy and crash machines without it."""
    objects = list((ROOT / f"build/dev/CMakeFiles/pydstp_{tier}.dir").rglob("*.o"))
    if not objects or shutil.which("nm") is None:
        pytest.skip("needs nm and the objects of an in-place build for x86-64")
    result = subprocess.run(["nm", "-C", *objects], capture_output=True, text=True, check=True)
    weak = re.findall(r"^\w+ [VWu] (.*)$", result.stdout, re.MULTILINE)
    assert [name for name in weak if f"pydstp::{tier}::" not in name] == []
