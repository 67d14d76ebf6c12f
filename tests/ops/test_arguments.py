"""Bad arguments: a typed error that says what was expected, what came, and which argument."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from pydstp import ops
from pydstp.errors import OptionError

X = torch.ones(3, 8)
W = torch.ones(5, 8)
VISUAL = torch.zeros(2, 4, 2, 2, 8)
TEXT = torch.zeros(2, 3, 2, 2, 8)
TWO = torch.zeros(2, dtype=torch.int32)
K = torch.ones(2, 2, 8)
LISTS = {
    "seq_idx": TWO, "visible_indices": torch.zeros(2, 1, 4, dtype=torch.int32),
    "visible_len": torch.zeros(2, 1, dtype=torch.int32),
    "layer_to_group": torch.zeros(2, 3, dtype=torch.int32), "layer_idx": 0, "text_len": TWO,
    "scale": 1.0,
}
MONITOR = ops.Monitor(torch.zeros(2, 4), None, torch.ones(2, 4), torch.zeros(2, 3), TWO)
STATE = ops.ShiftState.allocate(2, 4, 3, 4)
HEADS = {"num_heads": 2, "num_kv_heads": 1, "eps": 1e-6}
MATRIX = ops.QuantisedMatrix.allocate(5, 8)
SAMPLING = ops.SamplingState.allocate(4, 7)
QKV, ROPE = torch.ones(3, 32), torch.ones(3, 8)

ARGUMENTS: dict[Callable, dict] = {
    ops.linear: {"x": X, "weight": W, "bias": torch.ones(5), "out": torch.ones(3, 5)},
    ops.expert_linear: {"x": X, "weight": W.repeat(2, 1, 1), "expert_idx": TWO[:1].repeat(3),
                        "out": torch.ones(3, 5)},
    ops.rms_norm: {"x": X, "weight": W[0], "eps": 1e-6, "residual": X.clone(), "out": X.clone()},
    ops.silu_and_mul: {"gate_up": X, "out": torch.ones(3, 4)},
    ops.qk_norm_rope: {"qkv": QKV, "q_weight": W[0], "k_weight": W[0], "cos_sin": ROPE, **HEADS},
    ops.store_kv: {"k": K, "v": K, "visual": VISUAL, "text": TEXT, "seq_idx": TWO, "slot_idx": TWO},
    ops.gather_kv: {"visual": VISUAL, "text": TEXT, "seq_idx": 0, "slots": TWO,
                    "out": torch.ones(2, 2, 2, 8)},
    ops.decode_attention: {"q": torch.ones(2, 4, 8), "visual": VISUAL, "text": TEXT, **LISTS,
                           "out": torch.ones(2, 4, 8), "workspace": torch.ones(160),
                           "status": torch.zeros(1, dtype=torch.int32)},
    ops.attention_probs: {"q": torch.ones(2, 4, 8), "visual": VISUAL, "text": TEXT, **LISTS,
                          "workspace": torch.ones(160), "monitor": MONITOR},
    ops.argmax: {"x": X, "workspace": torch.ones(2, 3, 1),
                 "out": torch.zeros(3, dtype=torch.int32)},
    ops.sample_tokens: {"logits": X[:, :7].contiguous(), "state": SAMPLING,
                        "seq_idx": torch.zeros(3, dtype=torch.int32),
                        "workspace": ops.sampling_workspace(3, SAMPLING),
                        "out": torch.zeros(3, dtype=torch.int32),
                        "status": torch.zeros(1, dtype=torch.int32)},
    ops.prefill_attention: {"q": torch.ones(2, 4, 8), "k": K, "v": K, "scale": 1.0,
                            "segments": [2], "visible_len": TWO + 1, "out": torch.ones(2, 4, 8)},
    ops.attention_sums: {"q": torch.ones(2, 4, 8), "k": K, "scale": 1.0, "visible_len": TWO + 1,
                         "out": torch.ones(2, 2)},
    ops.mean_kv: {"visual": VISUAL, "seq_idx": TWO, "indices": torch.zeros(2, 4, dtype=torch.int32),
                  "index_len": TWO, "dst_slot": TWO, "status": torch.zeros(1, dtype=torch.int32)},
    ops.shift_detect: {"state": STATE, "seq_idx": TWO - 1, "phase": ops.Phase.END,
                       "status": torch.zeros(1, dtype=torch.int32)},
    ops.shift_select: {"state": STATE, "seq_idx": TWO - 1,
                       "visible_indices": LISTS["visible_indices"],
                       "visible_len": LISTS["visible_len"], "group_idx": 0},
    ops.quantise_rows: {"x": X, "matrix": MATRIX, "first_row": 2},
    ops.dequantise_rows: {"matrix": MATRIX, "first_row": 0, "out": torch.ones(3, 8)},
    ops.quantised_linear: {"x": X, "weight": MATRIX, "out": torch.ones(3, 5)},
}
# A batch may be shorter than max_batch here: only a longer one is wrong. So may some rows.
ANY_LENGTH = {(op, "seq_idx") for op in (ops.mean_kv, ops.shift_detect, ops.shift_select)}
ANY_LENGTH |= {(ops.quantise_rows, "x"), (ops.dequantise_rows, "out"),
               (ops.expert_linear, "weight")}

TENSORS = [(op, name) for op, arguments in ARGUMENTS.items()
           for name, value in arguments.items() if isinstance(value, torch.Tensor)]
IDS = [f"{op.__name__}-{name}" for op, name in TENSORS]


def call(op: Callable, pool: ops.ThreadPool, **changed: object) -> object:
    return op(**{**ARGUMENTS[op], **changed}, pool=pool)


@pytest.mark.parametrize("op", ARGUMENTS, ids=lambda op: op.__name__)
def test_the_good_arguments_are_good(op, pool):
    call(op, pool)


@pytest.mark.parametrize("op, name", TENSORS, ids=IDS)
@pytest.mark.parametrize("bad", ["dtype", "rank", "array", "device", "shape"])
def test_a_bad_tensor_is_named(op, name, bad, pool):
    good, is_free = ARGUMENTS[op][name], (op, name) in ANY_LENGTH
    value = {
        "dtype": lambda: good.to(torch.float64),
        "rank": lambda: good.unsqueeze(0),
        "array": lambda: np.asarray(good),
        "device": lambda: good.to("meta"),
        "shape": lambda: good[:-1] if len(good) > 1 and not is_free else torch.cat([good] * 2, -1),
    }[bad]()
    with pytest.raises(OptionError, match=r"\w+: expected .*, got ") as caught:
        call(op, pool, **{name: value})
    if bad in ("dtype", "array", "device"):
        assert str(caught.value).startswith(f"{name}: ")


@pytest.mark.parametrize("op", ARGUMENTS, ids=lambda op: op.__name__)
def test_a_pool_that_is_none_is_named(op):
    with pytest.raises(OptionError, match="pool: expected a ThreadPool, got NoneType"):
        call(op, None)


NEED_CONTIGUOUS = [(op, name) for op, name in TENSORS if ARGUMENTS[op][name].numel() > 1]


@pytest.mark.parametrize("op, name", NEED_CONTIGUOUS)
def test_a_tensor_with_holes_is_refused(op, name, pool):
    good = ARGUMENTS[op][name]
    spread = good.repeat_interleave(2, dim=-1)[..., ::2]
    with pytest.raises(OptionError, match=f"{name}: expected contiguous memory, got strides"):
        call(op, pool, **{name: spread})


@pytest.mark.parametrize("op, changed, message", [
    (ops.linear, {"weight": W.bfloat16()}, "weight: expected torch.float32, got torch.bfloat16"),
    (ops.linear, {"x": X.half()}, "x: expected float32 or bfloat16, got torch.float16"),
    (ops.rms_norm, {"x": torch.ones(()), "out": None}, r"x: expected shape \[..., 8\]"),
    (ops.silu_and_mul, {"gate_up": torch.ones(3, 7)}, "gate_up: expected an even last dimension"),
    (ops.qk_norm_rope, {"num_heads": 3}, r"qkv: expected width \(3 \+ 2 \* 1\) \* 8, got 32"),
    (ops.qk_norm_rope, {"num_kv_heads": 0}, "num_kv_heads.*expected positive"),
    (ops.qk_norm_rope, {"cos_sin": torch.ones(3, 7)}, "head_dim even, got 2, 1, 7"),
    (ops.store_kv, {"visual": torch.zeros(2, 4, 3, 2, 8)}, "visual: expected shape .*, 2, num_kv"),
    (ops.gather_kv, {"seq_idx": 2}, r"seq_idx: expected an int in \[0, 2\), got 2"),
    (ops.gather_kv, {"seq_idx": -1}, r"seq_idx: expected an int in \[0, 2\), got -1"),
    (ops.gather_kv, {"seq_idx": 0.0}, r"seq_idx: expected an int in \[0, 2\), got 0.0"),
    (ops.decode_attention, {"q": torch.ones(2, 3, 8)}, "q: expected a multiple of 2 heads, got 3"),
    (ops.decode_attention, {"layer_idx": 3}, r"layer_idx: expected an int in \[0, 3\), got 3"),
    (ops.decode_attention, {"layer_idx": -1}, r"layer_idx: expected an int in \[0, 3\), got -1"),
    (ops.decode_attention, {"layer_idx": 1.0}, r"layer_idx: expected an int in \[0, 3\), got 1.0"),
    (ops.qk_norm_rope, {"eps": "x"}, "qk_norm_rope: expected numbers as documented, got 'x'"),
    (ops.decode_attention, {"scale": None}, "decode_attention: expected numbers .*, got None"),
    (ops.decode_attention, {"workspace": torch.ones(159)}, "at least 160 elements, got 159"),
    (ops.prefill_attention, {"q": torch.ones(2, 3, 8)}, "q: expected a multiple of 2 heads, got 3"),
    (ops.prefill_attention, {"q": torch.ones(2, 4, 7)}, "q: expected an even head_dim, got 7"),
    (ops.prefill_attention, {"v": K[..., :6]}, r"v: expected shape \[2, 2, 8\], got \[2, 2, 6\]"),
    (ops.prefill_attention, {"k": K.bfloat16()}, "k: expected torch.float32, got torch.bfloat16"),
    (ops.prefill_attention, {"segments": [1]}, r"segments: expected lengths .*, got \[1\] for 2"),
    (ops.prefill_attention, {"segments": [3, -1]}, r"segments: expected lengths .*, got \[3, -1\]"),
    (ops.prefill_attention, {"segments": [2.0]}, r"segments: expected lengths .*, got \[2.0\]"),
    (ops.prefill_attention, {"k": K[:1], "v": K[:1]}, "segments: .* for 2 queries and 1 keys"),
    (ops.prefill_attention, {"visible_len": TWO + 3}, "visible_len: expected .*, got 3 at element"),
    (ops.prefill_attention, {"visible_len": TWO - 1, "segments": None}, r"visible_len.* got -1"),
    (ops.attention_sums, {"q": torch.ones(2, 3, 8)}, "q: expected a multiple of 2 heads, got 3"),
    (ops.attention_sums, {"q": torch.ones(2, 4, 7)}, "q: expected an even head_dim, got 7"),
    (ops.attention_sums, {"visible_len": TWO + 3}, "visible_len: expected .*, got 3 at element"),
    (ops.prefill_attention, {"scale": None}, "prefill_attention: expected numbers .*, got None"),
    (ops.attention_probs, {"monitor": None}, "monitor: expected a Monitor, got NoneType"),
    (ops.argmax, {"x": torch.ones(3, 0)}, r"x: expected rows of 1 to 2\^24 - 1 numbers, got 0"),
    (ops.sample_tokens, {"logits": X[:, :0]}, r"logits: expected rows of 1 to 2\^20 .*, got 0"),
    (ops.sample_tokens, {"state": STATE}, "state: expected a SamplingState, got ShiftState"),
    (ops.sample_tokens, {"state": ops.SamplingState.allocate(4, 8)}, r"state.marks: .*, 7\], got"),
    (ops.sample_tokens, {"workspace": ops.sampling_workspace(2, SAMPLING)}, "workspace: .* bytes"),
    (ops.shift_detect, {"state": MONITOR}, "state: expected a ShiftState, got Monitor"),
    (ops.shift_detect, {"phase": 3}, "phase: expected a Phase, got 3"),
    (ops.shift_detect, {"phase": None}, "phase: expected a Phase, got None"),
    (ops.shift_detect, {"seq_idx": TWO.repeat(2)}, "seq_idx: expected at most max_batch = 2 rows"),
    (ops.shift_select, {"group_idx": 1}, r"group_idx: expected an int in \[0, 1\), got 1"),
    (ops.expert_linear, {"weight": W}, r"weight: expected shape \[num_experts, .* got \[5, 8\]"),
    (ops.expert_linear, {"weight": MATRIX}, "weight: expected shape .*, got QuantisedMatrix"),
    (ops.quantised_linear, {"weight": W}, "weight: expected a QuantisedMatrix, got Tensor"),
    (ops.quantised_linear, {"weight": ops.QuantisedMatrix.allocate(2, 5, 8)},
     r"weight.codes: expected shape \[1, 1, 32, 16, 4\], got \[2, 1, 1, 32, 16, 4\]"),
    (ops.quantise_rows, {"first_row": 3}, r"first_row: expected an int in \[0, 2\], for 3 of 5"),
    (ops.dequantise_rows, {"first_row": -1}, r"first_row: expected an int in \[0, 2\], .* got -1"),
])
def test_what_an_error_says(op, changed, message, pool):
    with pytest.raises(OptionError, match=message):
        call(op, pool, **changed)
