"""pydstp: Qwen3-VL and InternVL3.5 on a cache built for visual tokens that come and go.

Public names are imported when they are first used, so that `import pydstp` costs nothing and the
command line can prepare the process before torch is loaded.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydstp.config import EngineConfig, SamplingParams
    from pydstp.conversation import Chat, Turn
    from pydstp.engine import Engine, Stream
    from pydstp.errors import (
        CancelledError,
        CapacityError,
        CheckpointError,
        DeviceError,
        ImageError,
        OptionError,
        PromptError,
        PydstpError,
        UnsupportedModelError,
    )
    from pydstp.generation import CancelToken, Generation, ShiftReport, StepLog
    from pydstp.pruning import (
        MergePlan,
        Pruner,
        PruningConfig,
        Selection,
        VisualTokens,
        available_pruners,
        register_pruner,
    )
    from pydstp.selection import SelectionParams
    from pydstp.shift import DSTP, DyCoke, SketchReturn, VisionPulse

__version__ = "0.1.0"

_HOME = {
    "config": ("EngineConfig", "SamplingParams"),
    "conversation": ("Chat", "Turn"),
    "engine": ("Engine", "Stream"),
    "errors": ("CancelledError", "CapacityError", "CheckpointError", "DeviceError", "ImageError",
               "OptionError", "PromptError", "PydstpError", "UnsupportedModelError"),
    "generation": ("CancelToken", "Generation", "ShiftReport", "StepLog"),
    "pruning": ("MergePlan", "Pruner", "PruningConfig", "Selection", "VisualTokens",
                "available_pruners", "register_pruner"),
    "selection": ("SelectionParams",),
    "shift": ("DSTP", "DyCoke", "SketchReturn", "VisionPulse"),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = [*_MODULE_OF, "demo_checkpoint"]

_ROOT = Path(__file__).resolve().parent
if not (_ROOT / "models").is_dir():
    # In a source tree the models live beside the package; an installed package holds them itself.
    __path__.append(str(_ROOT.parent))


def demo_checkpoint() -> Path:
    """The folder of the small trained checkpoint that ships with the package.

    It has the architecture of Qwen3-VL and reads pictures of digits and arrows; see
    `pydstp.tasks` for what it was trained on.
    """
    return _ROOT / "assets" / "demo"


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'pydstp' has no attribute {name!r}")
    value = getattr(import_module(f"pydstp.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULE_OF])
