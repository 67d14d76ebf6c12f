"""How much a picture was compressed in all: in training, by the model's merger, and by pruning.

After Wen et al., "Token Pruning in Multimodal Large Language Models: Are We Solving the Right
Problem?" (arXiv 2502.11501), equations 7 and 8: a model whose merger turns P patches into
V = P / TACR visual tokens has a training-aware compression rate TACR, and a method that keeps k of
V tokens a training-free reduction rate TFRR = V / k. What both leave is told by the total reduction
rate

    TRR = TACR x TFRR = P / k.

Rates are original over kept. TACR is 4 for Qwen3-VL (a merger of 2 x 2 patches) and for InternVL
(pixel shuffle by one half).
"""

from __future__ import annotations

from pydstp.config import require_float


def total_reduction_rate(tacr: float, num_visual: float, kept: float) -> float:
    """TRR = TACR x num_visual / kept.

    Args:
        tacr: patches per visual token, at least 1.
        num_visual: visual tokens without pruning, positive; a mean over requests will do.
        kept: those that were kept, likewise, positive.

    Returns:
        Patches per kept token, at least `tacr` where a method adds none.

    Raises:
        OptionError: an argument out of its range.
    """
    require_float("tacr", tacr, 1.0)
    require_float("num_visual", num_visual, 0.0, open_low=True)
    require_float("kept", kept, 0.0, open_low=True)
    return tacr * num_visual / kept


def retention_for(reduction: float, tacr: float) -> float:
    """The share of the visual tokens to keep for a stated total reduction.

    The reading under which "77.8 % reduced" counts what the merger has done already:
    min(1, (1 - reduction) x TACR). With TACR = 1 it is 1 - reduction.

    Args:
        reduction: share of the patches that shall not reach the decoder as tokens, in [0, 1).
        tacr: patches per visual token, at least 1.

    Returns:
        A retention ratio in (0, 1].

    Raises:
        OptionError: an argument out of its range.
    """
    require_float("reduction", reduction, 0.0, 1.0 - 1e-9)
    require_float("tacr", tacr, 1.0)
    return min(1.0, (1.0 - reduction) * tacr)
