"""What a step hands to whoever writes the next tokens: logits on the host, or tokens chosen where
the logits lie."""

from __future__ import annotations

import weakref

import torch
from torch import Tensor

from pydstp import ops
from pydstp.sequence import Sequence


class NextTokens:
    """Chooses tokens on a GPU, by the rules and with the draws of `pydstp.sampling`.

    Args:
        max_batch: sequences that a step may have.

    What a sequence has written is kept beside the logits, so that a step asks the host nothing; a
    token that was chosen elsewhere meanwhile is noted before it counts.
    """

    def __init__(self, max_batch: int, pool: ops.ThreadPool) -> None:
        self._max_batch, self._pool = max_batch, pool
        self._state: ops.SamplingState | None = None
        self._workspace: Tensor | None = None
        self._num_noted: weakref.WeakKeyDictionary[Sequence, int] = weakref.WeakKeyDictionary()

    def for_host(self, logits: Tensor, sequences: list[Sequence]) -> Tensor:
        """What the host has to see of logits [batch, vocab_size] float32.

        Returns:
            [batch] int32 tokens, -1 where logits are not finite; or the logits: on the CPU, where
            they are on the host already, and where log-probabilities are asked for.
        """
        if logits.is_cpu or any(seq.sampling.logprobs is not None for seq in sequences):
            return logits
        if all(seq.takes_best for seq in sequences):
            return ops.argmax(logits, pool=self._pool)
        if self._state is None:
            self._state = ops.SamplingState.allocate(self._max_batch, logits.shape[1],
                                                     logits.device)
            self._workspace = ops.sampling_workspace(self._max_batch, self._state)
        for seq in sequences:
            self._catch_up(seq)
        rows = self._rows([seq.seq_idx for seq in sequences])
        tokens = ops.sample_tokens(logits, self._state, rows, pool=self._pool,
                                   workspace=self._workspace)
        self._state.note(rows, tokens)
        for seq in sequences:
            self._num_noted[seq] += 1
        return tokens

    def _catch_up(self, seq: Sequence) -> None:
        """The state knows what the sequence asks for and has written."""
        if seq not in self._num_noted:
            params = seq.sampling
            self._state.begin(
                seq.seq_idx, seq.prompt.input_ids, sorted(seq.eos_ids), draw_key=seq.draw_key,
                temperature=params.temperature, top_k=params.top_k, top_p=params.top_p,
                min_p=params.min_p, repetition_penalty=params.repetition_penalty,
                presence_penalty=params.presence_penalty, min_new_tokens=params.min_new_tokens)
            self._num_noted[seq] = 0
        for token_id in seq.new_ids[self._num_noted[seq]:]:
            self._state.note(self._rows([seq.seq_idx]), self._rows([token_id]))
            self._num_noted[seq] += 1

    def _rows(self, numbers: list[int]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.int32, device="cpu").to(self._state.marks.device)
