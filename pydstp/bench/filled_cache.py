"""Decode steps without a prompt: a cache whose keys and values are random numbers.

It reaches into the engine on purpose. Decode speed does not depend on what the keys and values say,
so random ones serve, and neither a batch of pictures nor 16k visual tokens need a prefill.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from pydstp import ops
from pydstp.chat import EncodedPrompt
from pydstp.config import SamplingParams
from pydstp.engine import Engine
from pydstp.selection import Progress, SelectionParams
from pydstp.sequence import Sequence

PROMPT_TEXT_TOKENS = 64
FIRST_ID = 100  # of the tokens that are fed; which ones does not matter


class RandomAnchor:
    """Stands in for a prefill: the anchor of a prompt that never ran."""

    def __init__(self, seq_idx: int, base: torch.Tensor) -> None:
        self._seq_idx, self._base = seq_idx, base.long()

    def watch_anchor(self, monitor: ops.Monitor) -> None:
        """Some distribution over the base set."""
        values = torch.randn(len(self._base), device=self._base.device).softmax(0)
        monitor.probs[self._seq_idx, self._base] = values


class FilledCache:
    """Sequences of an engine whose prompts are random keys and values.

    Every sequence reads the same rows of the arenas, whatever it shows of them: they are written
    once, for all lengths and all settings that are compared.
    """

    def __init__(self, engine: Engine) -> None:
        self._cache, self._runner = engine._cache, engine._runner
        for arena in (self._cache.visual, self._cache.text):
            arena[0].normal_()
            for layer in arena[1:]:
                layer.copy_(arena[0])

    def start(self, num_visual: int, selection: SelectionParams) -> Sequence:
        """A sequence behind its prompt: pruned at random, its policy set up, its reserve there."""
        cache, geometry = self._cache, self._cache.geometry
        seq = Sequence(EncodedPrompt([], "", []), [], SamplingParams(), (), (0, 0), None,
                       progress=Progress(selection))
        seq.progress.expect(geometry.num_layers, geometry.num_heads)
        seq.seq_idx = s = cache.acquire()
        is_visual = torch.zeros(num_visual + PROMPT_TEXT_TOKENS, dtype=torch.bool, device="cpu")
        is_visual[PROMPT_TEXT_TOKENS // 2:][:num_visual] = True
        cache.append(s, is_visual)
        if selection.pruning is not None:
            kept = selection.pruning.budget(num_visual)
            order = torch.randperm(num_visual, generator=selection.pruning.generator())
            cache.prune(s, order[kept:], 0)
        anchor = RandomAnchor(s, cache.shift.base_indices[s, :int(cache.shift.base_len[s])])
        self._runner.expect([seq])
        self._runner._shift.begin(seq, anchor)
        self._runner._returns.begin(seq)
        seq.next_position = PROMPT_TEXT_TOKENS + math.isqrt(num_visual)
        seq.new_ids.append(FIRST_ID)
        return seq

    @property
    def weight_bytes(self) -> int:
        """Weights that a step reads, whatever its batch."""
        return self._runner._weight_bytes

    def decode(self, sequences: list[Sequence]) -> np.ndarray:
        """One decode step of a batch, and the next tokens; returns what `Runner.decode` does."""
        logits = self._runner.decode(sequences)
        for seq in sequences:
            seq.new_ids.append(FIRST_ID + len(seq.new_ids))
        return logits

    def release(self, seq: Sequence) -> None:
        """Give its place in the cache back."""
        self._cache.release(seq.seq_idx)
