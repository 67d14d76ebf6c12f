"""Published numbers, in percent unless told otherwise, as far as they are known to us.

None stands for a number that is not given in our notes on the paper. All are of other models and
other questions than what is measured beside them.
"""

from __future__ import annotations

# arXiv 2604.12358: Qwen3-VL-4B, one third of the visual tokens kept.
DSTP_BENCHMARKS = ("MathVerse", "WeMath", "DynaMath", "LogicVista", "MMMU-Pro", "Acc")
DSTP_MAIN = {
    ("none", "none"): (61.29, 48.29, 66.48, 49.22, 37.63, 100),
    ("fastv", "none"): (32.23, 25.90, 38.76, 30.64, 19.41, 55.7),
    ("fastv", "dstp"): (52.54, 42.19, 51.00, 41.16, 30.52, 82.9),
    ("divprune", "none"): (33.90, 29.32, 41.94, 30.64, 13.08, 55.2),
    ("divprune", "dstp"): (50.25, 42.95, 57.70, 42.70, 28.03, 83.8),
    ("visionzip", "none"): (36.80, 35.57, 43.16, 29.53, 16.36, 60.4),
    ("visionzip", "dstp"): (50.76, 43.62, 52.95, 39.22, 27.39, 81.0),
}
DSTP_ABLATION = {  # FastV; MathVerse, MMMU-Pro, visible share of the tokens
    "none": (32.23, 19.41, None),
    "random + cpts": (37.69, 22.36, 38.1),
    "avg + cpts": (51.51, 27.68, 38.1),
    "risd + full": (53.04, 29.55, 100),
    "risd + hard": (45.05, 27.26, 33.3),
    "risd + merge": (47.58, 28.38, 33.3),
    "risd + cpts": (52.54, 30.52, 38.1),
}

# arXiv 2502.11501: LLaVA-1.5-7B, mean over benchmarks in percent of all 576 tokens, at 144 and 64.
RIGHT_PROBLEM = {
    "random": (95.0, 89.1), "pooling": (96.4, 87.6), "window_fastv": (93.2, 87.2),
    "fastv": (89.8, 78.2), "reverse_fastv": (70.8, 61.8), "sparsevlm": (93.5, 87.3),
}
# LLaVA-NeXT-7B on POPE: run time in minutes, keys and values in MB, F1. Hardware not stated.
RIGHT_PROBLEM_COST = {
    "none": (36 + 16 / 60, 1512, 86.5), "fastv": (18 + 17 / 60, 168, 78.3),
    "sparsevlm": (23 + 11 / 60, None, 82.3), "mustdrop": (23 + 40 / 60, None, 82.1),
}
# Qwen2-VL-7B, FastV, by reduction: as it is, and with the model's own compression counted.
RIGHT_PROBLEM_TRR = {0.667: (94.0, 99.8), 0.778: (91.0, 100.0), 0.889: (84.0, 99.6)}

# arXiv 2605.31457: Qwen3-VL-4B-Thinking, seven benchmarks: accuracy, generated tokens.
PULSE_MAIN = {
    ("none", 1.0): (72.68, 1687),
    ("visionzip", 0.10): (43.82, 2603), ("fastv", 0.10): (38.09, 2753),
    ("look_m", 0.10): (54.84, 2675), ("visionpulse", 0.10): (72.69, 1480),
    ("visionzip", 0.05): (39.31, 1996), ("fastv", 0.05): (35.69, 2187),
    ("look_m", 0.05): (44.62, 3509), ("visionpulse", 0.05): (71.35, 1499),
}
PULSE_BENCHMARKS = ("RealWorldQA", "MMVet", "MIA")
PULSE_ABLATION = {
    "all tokens": (72.81, 60.96, 93.44), "fixed 1 %": (71.90, 49.17, 92.03),
    "fixed 5 %": (72.81, 59.45, 93.22), "random 1-5 %": (69.28, 58.02, 91.49),
    "dynamic 1-5 %": (72.54, 59.00, 95.09),
}
