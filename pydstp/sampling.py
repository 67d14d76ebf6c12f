"""From one row of logits to the next token. Pure functions: no state, no global generator."""

from __future__ import annotations

import numpy as np

from pydstp.config import SamplingParams
from pydstp.errors import PydstpError
from pydstp.generation import TokenLogprob


def sample(logits: np.ndarray, params: SamplingParams, *, prompt_ids: list[int],
           new_ids: list[int], blocked_ids: list[int], draw_key: tuple[int, int]) -> int:
    """The next token of one sequence.

    Args:
        logits: [vocab_size] float32, not modified.
        params: resolved sampling parameters (`SamplingParams.resolve`).
        prompt_ids: tokens of the prompt, for the repetition penalty.
        new_ids: tokens written so far, for both penalties and the index of the draw.
        blocked_ids: tokens that must not come (end tokens before `min_new_tokens`).
        draw_key: (seed, request index).

    Returns:
        The token id. Equal logits go to the lowest id.
    """
    logits = penalised(logits, params, prompt_ids, new_ids, blocked_ids)
    if not np.isfinite(logits.max()):
        raise not_finite(str(logits.max()))
    if params.temperature == 0.0:
        return int(logits.argmax())
    token_ids, probabilities = distribution(logits, params)
    uniform = keyed_uniform(*draw_key, len(new_ids))
    cumulative = np.cumsum(probabilities, dtype=np.float64)
    index = np.searchsorted(cumulative, uniform * cumulative[-1], side="right")
    return int(token_ids[min(index, len(token_ids) - 1)])


def not_finite(found: str) -> PydstpError:
    """The error for logits that no token can be chosen from."""
    return PydstpError(f"logits: expected finite values, got {found}: the model's activations "
                       "overflowed")


def penalised(logits: np.ndarray, params: SamplingParams, prompt_ids: list[int],
              new_ids: list[int], blocked_ids: list[int]) -> np.ndarray:
    """Logits [vocab_size] after penalties and blocked tokens; the input itself if none apply."""
    repetition, presence = params.repetition_penalty, params.presence_penalty
    if repetition == 1.0 and (presence == 0.0 or not new_ids) and not blocked_ids:
        return logits
    logits = logits.copy()
    if repetition != 1.0:
        seen = np.unique(np.asarray(prompt_ids + new_ids, dtype=np.int64))
        logits[seen] = np.where(logits[seen] > 0, logits[seen] / repetition,
                                logits[seen] * repetition)
    if presence != 0.0 and new_ids:
        logits[np.unique(np.asarray(new_ids, dtype=np.int64))] -= presence
    logits[blocked_ids] = -np.inf
    return logits


def distribution(logits: np.ndarray, params: SamplingParams) -> tuple[np.ndarray, np.ndarray]:
    """Tokens that survive top-k, top-p and min-p, most likely first, and their probabilities.

    Returns:
        (token_ids [n] int64, probabilities [n] float64); probabilities need not sum to 1.
    """
    token_ids = best_tokens(logits, params.top_k or len(logits))
    distances = logits[token_ids].astype(np.float64) - logits[token_ids[0]]
    with np.errstate(over="ignore"):  # a tiny temperature: minus infinity, a probability of 0
        probabilities = np.exp(distances / params.temperature)
    probabilities /= probabilities.sum()
    if params.top_p < 1.0:
        before = np.cumsum(probabilities) - probabilities
        keep = int((before < params.top_p).sum())
        token_ids, probabilities = token_ids[:keep], probabilities[:keep]
    if params.min_p > 0.0:
        keep = int((probabilities >= params.min_p * probabilities[0]).sum())
        token_ids, probabilities = token_ids[:keep], probabilities[:keep]
    return token_ids, probabilities


def best_tokens(logits: np.ndarray, count: int) -> np.ndarray:
    """The `count` most likely tokens, best first, or all there are; equals by ascending id."""
    token_ids = np.arange(len(logits))
    if count < len(logits):
        # A superset of the best (ties at the border included), so that the stable sort decides.
        border = np.partition(logits, -count)[-count]
        token_ids = np.flatnonzero(logits >= border)
    return token_ids[np.argsort(-logits[token_ids], kind="stable")][:count]


def keyed_uniform(seed: int, request_idx: int, token_idx: int) -> float:
    """A number in [0, 1) that depends on (seed, request, token index) and on nothing else."""
    key = np.array([seed, request_idx], dtype=np.uint64)
    generator = np.random.Philox(key=key, counter=[token_idx, 0, 0, 0])
    return float(np.random.Generator(generator).random())


def token_logprob(logits: np.ndarray, token_id: int, num_top: int) -> TokenLogprob:
    """Log-probabilities of `token_id` and of the `num_top` best tokens; logits [vocab_size]."""
    shifted = logits.astype(np.float64) - float(logits.max())
    logprobs = shifted - np.log(np.exp(shifted).sum())
    best = best_tokens(logits, num_top) if num_top else ()
    top = tuple((int(i), float(logprobs[i])) for i in best)
    return TokenLogprob(int(token_id), float(logprobs[token_id]), top)
