"""bypass="auto": pruning is dropped before it starts where the cost model says it cannot pay.

Pruning saves rows of the prompt and keys and values of every step. It costs the selection, the rows
of the reserve, the key copies and second passes of a policy, and time between operations. How long
an answer becomes is not known, so both ends are looked at, one token and `max_new_tokens`: time is
linear in between. A reserve counts as computed by the end.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pydstp import ops
from pydstp.cost import Cost, Rates
from pydstp.cost_model import CostModel
from pydstp.models.gemm import gemm, linear, quantised_gemm
from pydstp.models.qwen3 import Decoder
from pydstp.pruning import PruningConfig
from pydstp.pruning.base import LAYER_STATISTICS, Pruner
from pydstp.selection import SelectionParams
from pydstp.sequence import Sequence

# Allowances: what pruning a prompt takes beside its operations (a guess), what a step of a policy
# does (0.65 ms in benchmarks/results/overhead-random-2b), and how much longer a row of the reserve
# takes than one of the prompt (1.10 in shift-random-2b-ttft-1k).
PRUNING_MS, POLICY_STEP_MS, SIDE_FACTOR = 2.0, 0.7, 1.15
PROBE_ROWS, PROBE_RUNS = 256, 3


@dataclass(frozen=True)
class Work:
    """What a request has to do, its vision tower left out: it is the same with and without.

    Attributes:
        prompt: for the first token. later: once more by the last token. step: per further token.
        prompt_ms, step_ms: time beside operations.
    """

    prompt: Cost
    step: Cost
    later: Cost = Cost()
    prompt_ms: float = 0.0
    step_ms: float = 0.0

    def ms(self, num_new: int, rates: Rates) -> float:
        """Time of an answer of so many tokens."""
        total = rates.ms(self.prompt) + self.prompt_ms
        if num_new > 1:
            total += rates.ms(self.later) + (num_new - 1) * (rates.ms(self.step) + self.step_ms)
        return total


class BreakEven:
    """Decides for requests with bypass="auto".

    Args:
        model: costs of the model.
        measure: returns the machine's rates; called once, when they are first needed.
    """

    def __init__(self, model: CostModel, measure: Callable[[], Rates]) -> None:
        self._model, self._measure = model, measure
        self._rates: Rates | None = None

    def apply(self, sequences: list[Sequence]) -> None:
        """Drop pruning and policy where they lose. Pictures of earlier turns stay as they are."""
        for seq in sequences:
            if self._is_asked(seq) and self._loses(seq):
                seq.progress.bypass()

    def _is_asked(self, seq: Sequence) -> bool:
        params, spans = seq.progress.params, seq.prompt.image_spans
        if params.bypass != "auto" or params.pruning is None or not spans:
            return False
        has_old_picture = any(start < seq.num_cached for start, _ in spans)
        return not has_old_picture and seq.progress.prunes(_grids(seq, self._model))

    def _loses(self, seq: Sequence) -> bool:
        if self._rates is None:
            self._rates = self._measure()
        full, pruned = self.work_of(seq)
        ends = {1, seq.sampling.max_new_tokens}
        return any(pruned.ms(n, self._rates) > full.ms(n, self._rates) for n in ends)

    def work_of(self, seq: Sequence) -> tuple[Work, Work]:
        """The request with all tokens, and as it asks to be."""
        params, model, ids = seq.progress.params, self._model, seq.prompt.input_ids
        pruner, mode = params.pruning.pruner, params.reserve_mode
        mode = "full" if pruner.acts_on_cache else mode
        total = sum(length for _, length in seq.prompt.image_spans)
        kept = min(total, sum(params.pruning.quotas(_grids(seq, model))[1]))
        share = _share_above(params.pruning, _grids(seq, model), model.config.text.num_layers)
        full, narrow, side = self._passes(seq.num_cached, len(ids), total - kept, share)
        prompt = {"full": full, "side": narrow + side}.get(mode, narrow)
        prompt += selection_cost(pruner, model, total, kept) + observing_cost(pruner, model, total)
        is_late = params.brings_back and mode in ("lazy", "deferred")
        text = len(ids) - total + seq.sampling.max_new_tokens / 2
        step = model.decode_step(text + kept + share * (total - kept))
        step = step * (2 if _may_redo(params) else 1) + self._returned(params, total - kept)
        pruned = Work(prompt, step, side if is_late else Cost(), PRUNING_MS,
                      POLICY_STEP_MS if params.shift is not None else 0.0)
        return Work(full, model.decode_step(text + total)), pruned

    def _passes(self, past: int, length: int, dropped: int, share: float) -> tuple[Cost, ...]:
        """The prompt with all tokens, with those that are kept, and the reserve."""
        rows = length - past
        full = self._model.prefill(rows, past + rows / 2)
        upper = self._model.prefill(rows - dropped, past + (rows - dropped) / 2)
        side = self._model.prefill(dropped, past + rows / 2)
        return (full, full * share + upper * (1 - share), side * ((1 - share) * SIDE_FACTOR))

    def _returned(self, params: SelectionParams, dropped: int) -> Cost:
        """What same-step return reads: the key copies of the reserve, and what joins."""
        policy, text, model = params.returns, self._model.config.text, self._model
        if policy is None or not policy.max_returned:
            return Cost()
        channel = policy.bits / 8 if policy.bits < 16 else model.element_bytes
        copy = text.num_kv_heads * (text.head_dim * channel + (4 if policy.bits < 16 else 0))
        num_layers = text.num_layers - max(
            params.pruning.pruner.stages(text.num_layers)[-1], policy.first_layer)
        return Cost(num_layers * (dropped * copy + policy.max_returned * model.kv_bytes))


def _share_above(pruning: PruningConfig, grids: list[tuple[int, int]], num_layers: int) -> float:
    """How much of what leaves in the end a layer of the prompt still sees, mean over layers."""
    stages, total = pruning.pruner.stages(num_layers), sum(rows * cols for rows, cols in grids)
    origins = torch.arange(total, device="cpu")
    lens = [total, *(sum(pruning.quotas_at(grids, stage, len(stages), origins)[1])
                     for stage in range(len(stages)))]
    bounds = [0, *stages, num_layers]
    seen = sum(n * (end - start) for n, start, end in zip(lens, bounds, bounds[1:], strict=False))
    return (seen / num_layers - lens[-1]) / max(1, total - lens[-1])


def selection_cost(pruner: Pruner, model: CostModel, num_visual: int, num_kept: int) -> Cost:
    """A method's own work, and the statistics that a decoder layer makes for it."""
    text = model.config.text
    cost = pruner.cost(num_visual, num_kept, text.hidden_size)
    if pruner.acts_on_cache:
        cost += _cache_cost(model, num_visual, num_kept)
    if "received_attention" in pruner.needs:  # all scores of the layer once more
        cost += Cost(flops=2 * num_visual**2 * text.num_heads * text.head_dim)
    if pruner.needs & set(LAYER_STATISTICS):
        cost += Cost(num_visual * model.kv_bytes)
    return cost


def _cache_cost(model: CostModel, num_visual: int, num_kept: int) -> Cost:
    """Of every layer: all scores once more, keys that leave compared with those that stay, in fp32
    at half the rate of bf16, and a few passes over keys and values as fp32."""
    text, leaving = model.config.text, num_visual - num_kept
    width = text.num_kv_heads * text.head_dim
    scores = 2 * num_visual**2 * text.num_heads * text.head_dim
    compared = 2 * 2 * leaving * num_kept * width
    passes = 4 * 4.0 * num_visual * 2 * width
    return Cost(passes, scores + compared) * text.num_layers


def observing_cost(pruner: Pruner, model: CostModel, num_visual: int) -> Cost:
    """What the vision tower does for a method: the scores of one block once more."""
    if not pruner.needs & {"vision_attention", "vision_keys"}:
        return Cost()
    patches = num_visual * model.config.vision.merge_unit
    return Cost(flops=2 * patches**2 * model.config.vision.hidden_size)


def measure_rates(decoder: Decoder, pool: ops.ThreadPool) -> Rates:
    """The best of a few runs over weights of the model itself: reads by the product of one row with
    the head, operations by that of many rows with the first matrix of a layer."""
    head = decoder.embed_tokens if decoder.lm_head is None else decoder.lm_head
    x = torch.randn(PROBE_ROWS, decoder.config.hidden_size, device="cpu").to(decoder.norm.weight)
    read_s = _best_s(lambda: linear(x[:1], head.weight, pool), x.is_cuda)
    weight = decoder.layers[0].self_attn.qkv_proj.weight
    product_s = _best_s(lambda: _multiply(x, weight, pool), x.is_cuda)
    flops = 2 * x.numel() * _multiply(x[:1], weight, pool).shape[1]
    return Rates(head.weight.nbytes / read_s / 1e9, flops / product_s / 1e9)


def _multiply(x: Tensor, weight: Tensor | ops.QuantisedMatrix, pool: ops.ThreadPool) -> Tensor:
    return quantised_gemm(x, weight, pool) if isinstance(weight, ops.QuantisedMatrix) else gemm(
        x, weight)


def _best_s(run: Callable[[], object], on_gpu: bool) -> float:
    wait = torch.cuda.synchronize if on_gpu else lambda: None
    times = []
    for _ in range(PROBE_RUNS):
        wait()
        started = time.perf_counter()
        run()
        wait()
        times.append(time.perf_counter() - started)
    return max(min(times), 1e-9)


def _may_redo(params: SelectionParams) -> bool:
    """Whether the policy runs steps a second time; at worst, every one."""
    watch = params.watch
    return watch is not None and watch.trigger != "never" and watch.applies == "redo"


def _grids(seq: Sequence, model: CostModel) -> list[tuple[int, int]]:
    """(rows, cols) in tokens of every picture or tile."""
    merge = model.config.vision.spatial_merge_size
    return [(height // merge, width // merge) for image in seq.images
            for height, width in image.grids]
