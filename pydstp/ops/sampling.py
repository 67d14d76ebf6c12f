"""The op that chooses the next tokens, and the state it reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum, IntFlag

import torch
from torch import Tensor

from pydstp import _C
from pydstp.errors import OptionError
from pydstp.ops.checks import address, check_rank, dtype_code, op, optional_address
from pydstp.ops.runtime import ThreadPool, call

_INT32, _INT64, _FLOAT64 = torch.int32, torch.int64, torch.float64
MAX_VOCABULARY = 1 << 20  # 2^kSampleIdBits of csrc/kernels/sample_tokens.h


class SampleNumber(IntEnum):
    """Columns of `SamplingState.numbers`."""

    TEMPERATURE = 0
    TOP_P = 1
    MIN_P = 2
    REPETITION_PENALTY = 3
    PRESENCE_PENALTY = 4


class SampleCount(IntEnum):
    """Columns of `SamplingState.counts`."""

    TOP_K = 0
    MIN_NEW_TOKENS = 1
    SEED = 2
    REQUEST = 3
    NUM_NEW_TOKENS = 4


class SampleMark(IntFlag):
    """Bits of `SamplingState.marks`."""

    IN_PROMPT = 1
    IN_ANSWER = 2
    END_TOKEN = 4


@dataclass(frozen=True, eq=False)
class SamplingState:
    """What each sequence asks of its next tokens, and what it has written so far.

    Attributes:
        numbers: [max_batch, 5] float64, columns by `SampleNumber`.
        counts: [max_batch, 5] int64, columns by `SampleCount`; the seed as its 64 bits.
        marks: [max_batch, vocab_size] uint8, bits by `SampleMark`.
    """

    numbers: Tensor
    counts: Tensor
    marks: Tensor

    @classmethod
    def allocate(cls, max_batch: int, vocab_size: int,
                 device: torch.device | None = None) -> SamplingState:
        """A state in which every sequence takes the most likely token."""
        numbers = torch.zeros(max_batch, len(SampleNumber), dtype=_FLOAT64, device=device)
        numbers[:, [SampleNumber.TOP_P, SampleNumber.REPETITION_PENALTY]] = 1.0
        return cls(numbers,
                   torch.zeros(max_batch, len(SampleCount), dtype=_INT64, device=device),
                   torch.zeros(max_batch, vocab_size, dtype=torch.uint8, device=device))

    def begin(self, seq: int, prompt_ids: Sequence[int], end_ids: Sequence[int], *,
              draw_key: tuple[int, int], temperature: float = 0.0, top_k: int = 0,
              top_p: float = 1.0, min_p: float = 0.0, repetition_penalty: float = 1.0,
              presence_penalty: float = 0.0, min_new_tokens: int = 0) -> None:
        """Give a sequence to a new request, with the parameters of `SamplingParams`.

        Args:
            seq: in [0, max_batch).
            prompt_ids: tokens of the prompt, for the repetition penalty.
            end_ids: tokens that must not come before `min_new_tokens` are written.
            draw_key: (seed, request index), each in [0, 2^64).
        """
        numbers = (temperature, top_p, min_p, repetition_penalty, presence_penalty)
        seed, request = (key - (1 << 64) if key >= 1 << 63 else key for key in draw_key)
        counts = (top_k, min_new_tokens, seed, request, 0)
        self.numbers[seq].copy_(torch.tensor(numbers, dtype=_FLOAT64, device="cpu"))
        self.counts[seq].copy_(torch.tensor(counts, dtype=_INT64, device="cpu"))
        marks = torch.zeros(self.marks.shape[1], dtype=torch.uint8, device="cpu")
        marks[list(prompt_ids)] = SampleMark.IN_PROMPT
        marks[list(end_ids)] |= SampleMark.END_TOKEN
        self.marks[seq].copy_(marks)

    def note(self, seq_idx: Tensor, token_ids: Tensor) -> None:
        """The next token of each sequence is written; without a word to the host.

        Args:
            seq_idx: [batch] int32, none twice; -1 is skipped.
            token_ids: [batch] int32; -1 is skipped.
        """
        is_written = (seq_idx >= 0) & (token_ids >= 0)
        seqs = torch.where(is_written, seq_idx, 0).long()
        places = seqs * self.marks.shape[1] + torch.where(is_written, token_ids, 0)
        marks = self.marks.view(-1)
        is_new = is_written & (marks[places] & SampleMark.IN_ANSWER == 0)
        marks.index_add_(0, places, is_new.to(torch.uint8) * int(SampleMark.IN_ANSWER))
        self.counts[:, SampleCount.NUM_NEW_TOKENS].index_add_(0, seqs, is_written.long())


def sampling_workspace(batch: int, state: SamplingState) -> Tensor:
    """A uint8 workspace for calls of up to `batch` rows."""
    return state.marks.new_empty(batch * _C.sample_row_bytes(state.marks.shape[1]))


@op
def sample_tokens(logits: Tensor, state: SamplingState, seq_idx: Tensor, *, pool: ThreadPool,
                  workspace: Tensor | None = None, out: Tensor | None = None,
                  status: Tensor | None = None) -> Tensor:
    """The next token of each row, by the rules and with the random numbers of `pydstp.sampling`.

    Penalties and tokens that must not come act first. Then a row of temperature 0 takes the largest
    logit, the lowest id of equals; another is drawn from what top-k, top-p and min-p leave, in this
    order. `state` is read and stays as it is.

    A draw looks for the token at which a sum of probabilities passes a number. Sums are fp64 on the
    CPU and exact sums of 2^-43 on a GPU, so that they give the same token unless the number lies
    within rounding of a border between two.

    Args:
        logits: [batch, vocab_size], 1 to 2^20 tokens.
        seq_idx: [batch] int32; -1: the row is skipped.
        workspace: what `sampling_workspace` gives for this batch or a larger one, or None.
        out: [batch] int32.

    Returns:
        [batch] int32; -1 for a skipped row, and where the largest number is an infinity or there
        is a NaN.
    """
    code, dtype = dtype_code(logits, "logits"), logits.dtype
    check_rank(logits, "logits", ("batch", "vocab_size"))
    batch, size = logits.shape
    if not 1 <= size <= MAX_VOCABULARY:
        raise OptionError(f"logits: expected rows of 1 to 2^20 numbers, got {size}")
    if not isinstance(state, SamplingState):
        raise OptionError(f"state: expected a SamplingState, got {type(state).__name__}")
    check_rank(state.numbers, "state.numbers", ("max_batch", "5"))
    max_batch = len(state.numbers)
    inputs = (address(logits, "logits", dtype, (batch, size)),
              address(state.numbers, "state.numbers", _FLOAT64, (max_batch, len(SampleNumber))),
              address(state.counts, "state.counts", _INT64, (max_batch, len(SampleCount))),
              address(state.marks, "state.marks", torch.uint8, (max_batch, size)),
              address(seq_idx, "seq_idx", _INT32, (batch,)))
    if workspace is None:
        workspace = sampling_workspace(batch, state)
    room = _check_workspace(workspace, batch * _C.sample_row_bytes(size))
    if out is None:
        out = logits.new_empty(batch, dtype=_INT32)
    call(_C.sample_tokens, pool, *inputs, room, address(out, "out", _INT32, (batch,)),
         optional_address(status, "status", _INT32, (1,)), batch, max_batch, size, code)
    return out


def _check_workspace(workspace: Tensor, needed: int) -> int:
    size = workspace.numel() if isinstance(workspace, Tensor) else needed
    if size < needed:
        raise OptionError(f"workspace: expected at least {needed} bytes, got {size}")
    return address(workspace, "workspace", torch.uint8, (size,))
