"""The native ops: every tensor check, output allocation, and the call.

One function per op. Tensors are float32 or bfloat16; all tensors of a call share one dtype unless
said otherwise, and lie on one device: the CPU, or a GPU where the op has a version for it, which
then runs in torch's current stream. `out` gives the result's memory: it has the result's shape and
is contiguous. Ops know no autograd. A bad argument raises `OptionError`, which names it; `pool` is
the `ThreadPool` that the op runs on, for tensors on the CPU. Within one instruction set a row's
result is the same, bit for bit, whatever other rows and however many threads are in the call.

Ops on the cache skip indices they cannot obey and set bits in `status` (int32 [1]) if it is given:
1 a sequence out of range, 2 a slot out of range, 4 a layer without a group, 8 a length out of
range. With `check_indices=True` the same is an `OptionError` before anything runs.

Only this package touches the native module.
"""

from pydstp.ops.attention import (
    Monitor,
    attention_probs,
    attention_workspace,
    decode_attention,
    monitor_workspace,
)
from pydstp.ops.attention_sums import attention_sums
from pydstp.ops.cache import gather_kv, mean_kv, store_kv
from pydstp.ops.cuda import find_gpu
from pydstp.ops.cuda import require as require_on_gpu
from pydstp.ops.dense import argmax, linear, qk_norm_rope, rms_norm, silu_and_mul
from pydstp.ops.experts import expert_linear
from pydstp.ops.graph import GraphMemory, GraphRecording, warm_up
from pydstp.ops.memory import empty_in_huge_pages
from pydstp.ops.prefill import prefill_attention
from pydstp.ops.quantised import (
    QuantisedMatrix,
    dequantise_rows,
    quantise_rows,
    quantised_linear,
)
from pydstp.ops.recording import Recording, Scratch, compute, perform, scratch
from pydstp.ops.returning import attention_with_return, return_workspace
from pydstp.ops.runtime import (
    ThreadPool,
    available_isas,
    cpu_features,
    current_isa,
    num_processors,
    set_isa,
    set_simt_seed,
)
from pydstp.ops.sampling import (
    SampleCount,
    SampleMark,
    SampleNumber,
    SamplingState,
    sample_tokens,
    sampling_workspace,
)
from pydstp.ops.shift import (
    Action,
    Applies,
    Mode,
    Outcome,
    Phase,
    PolicyFloat,
    PolicyWord,
    Retrigger,
    ShiftState,
    StateWord,
    Swap,
    Trigger,
    shift_detect,
    shift_select,
)
from pydstp.ops.sketch import KeySketch, sketch_keys, sketch_scale

__all__ = [
    "Action",
    "Applies",
    "GraphMemory",
    "GraphRecording",
    "KeySketch",
    "Mode",
    "Monitor",
    "Outcome",
    "Phase",
    "PolicyFloat",
    "PolicyWord",
    "QuantisedMatrix",
    "Recording",
    "Retrigger",
    "SampleCount",
    "SampleMark",
    "SampleNumber",
    "SamplingState",
    "Scratch",
    "ShiftState",
    "StateWord",
    "Swap",
    "ThreadPool",
    "Trigger",
    "argmax",
    "attention_probs",
    "attention_sums",
    "attention_with_return",
    "attention_workspace",
    "available_isas",
    "compute",
    "cpu_features",
    "current_isa",
    "decode_attention",
    "dequantise_rows",
    "empty_in_huge_pages",
    "expert_linear",
    "find_gpu",
    "gather_kv",
    "linear",
    "mean_kv",
    "monitor_workspace",
    "num_processors",
    "perform",
    "prefill_attention",
    "qk_norm_rope",
    "quantise_rows",
    "quantised_linear",
    "require_on_gpu",
    "return_workspace",
    "rms_norm",
    "sample_tokens",
    "sampling_workspace",
    "scratch",
    "set_isa",
    "set_simt_seed",
    "shift_detect",
    "shift_select",
    "silu_and_mul",
    "sketch_keys",
    "sketch_scale",
    "store_kv",
    "warm_up",
]
