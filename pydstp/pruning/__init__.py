"""Methods that choose, at prefill, which visual tokens stay. They decide and own no K/V.

Importing a method's module registers it.
"""

from pydstp.pruning import divprune, fastv, none, random, visionzip  # noqa: F401
from pydstp.pruning.base import MergePlan, Pruner, Selection, VisualTokens
from pydstp.pruning.registry import PruningConfig, available_pruners, register_pruner
from pydstp.pruning.run import run_pruner

__all__ = ["MergePlan", "Pruner", "PruningConfig", "Selection", "VisualTokens",
           "available_pruners", "register_pruner", "run_pruner"]
