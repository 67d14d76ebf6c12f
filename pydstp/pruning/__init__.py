"""Methods that choose, at prefill, which visual tokens stay. They decide and own no K/V.

Importing a method's module registers it.
"""

from pydstp.pruning import (  # noqa: F401
    alpha,
    cdpruner,
    dart,
    divprune,
    fastervlm,
    fastv,
    fastv_vis,
    look_m,
    mustdrop,
    none,
    pooling,
    prumerge,
    pyramiddrop,
    random,
    resize,
    reverse_fastv,
    sparsevlm,
    visionzip,
    vispruner,
    window_fastv,
)
from pydstp.pruning.base import MergePlan, Pruner, Selection, VisualTokens
from pydstp.pruning.registry import PruningConfig, available_pruners, register_pruner
from pydstp.pruning.run import run_pruner
from pydstp.pruning.stages import checked_stages

__all__ = ["MergePlan", "Pruner", "PruningConfig", "Selection", "VisualTokens",
           "available_pruners", "checked_stages", "register_pruner", "run_pruner"]
