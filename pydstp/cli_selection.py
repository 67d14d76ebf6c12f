"""The flags that say which visual tokens are read: pruning, shift policy, reserve."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pydstp.errors import OptionError

if TYPE_CHECKING:
    from pydstp.pruning import PruningConfig
    from pydstp.shift import Shift

# What PruningConfig takes beside the options of a method.
FLAGS_OF = {"name": "--pruning", "retention_ratio": "--retention-ratio", "num_kept": "--num-kept"}


def add_selection_flags(command: argparse.ArgumentParser) -> None:
    """Add the flags of a command that loads a model."""
    group = command.add_argument_group("visual tokens")
    group.add_argument("--pruning", metavar="METHOD", help="prune visual tokens at prefill; "
                       "a name of docs/experiments.md such as random, fastv or divprune, or of a "
                       "registered method")
    group.add_argument("--retention-ratio", type=float, metavar="R", help="share to keep, (0, 1]")
    group.add_argument("--num-kept", type=int, metavar="K", help="number to keep instead")
    group.add_argument("--pruning-option", action="append", default=[], metavar="NAME=VALUE",
                       help="an option of the method; repeatable")
    group.add_argument("--shift", metavar="POLICY", help="which tokens decoding reads: none, dstp, "
                       "recommended, sketch, visionpulse, dycoke, or a file that `pydstp "
                       "calibrate` wrote")
    group.add_argument("--shift-option", action="append", default=[], metavar="NAME=VALUE",
                       help="an option of the policy, such as threshold=0.8; repeatable")
    group.add_argument("--reserve", default="auto",
                       choices=("auto", "full", "side", "lazy", "deferred"),
                       help="when pruned tokens get keys and values (default: %(default)s)")
    group.add_argument("--bypass", default="never", choices=("never", "auto"),
                       help="auto drops pruning where it would make the answer slower "
                       "(default: %(default)s)")


def selection_of(options: argparse.Namespace) -> dict[str, Any]:
    """What `Engine(...)` and `Engine.generate(...)` take, from the flags.

    Raises:
        OptionError: a flag without the one it belongs to, or a value its option does not take.
    """
    return {"pruning": pruning_of(options), "shift": shift_of(options), "reserve": options.reserve,
            "bypass": options.bypass}


def pruning_of(options: argparse.Namespace) -> PruningConfig | None:
    """The pruning method of the flags."""
    from pydstp.pruning import PruningConfig

    if options.pruning is None:
        for name in ("retention_ratio", "num_kept", "pruning_option"):
            if getattr(options, name) not in (None, []):
                raise OptionError(f"--{name.replace('_', '-')}: expected --pruning METHOD with it")
        return None
    own = parse_options("--pruning-option", options.pruning_option)
    for name, flag in FLAGS_OF.items():
        if name in own:
            raise OptionError(f"--pruning-option: expected {flag} for {name!r}")
    return PruningConfig(options.pruning, options.retention_ratio, options.num_kept, **own)


def shift_of(options: argparse.Namespace) -> Shift | None:
    """The shift policy of the flags."""
    from pydstp.shift import DSTP, DyCoke, SketchReturn, VisionPulse

    changes = parse_options("--shift-option", options.shift_option)
    if options.shift in (None, "none"):
        if changes:
            raise OptionError("--shift-option: expected --shift POLICY with it")
        return None
    plain = {"sketch": SketchReturn, "visionpulse": VisionPulse, "dycoke": DyCoke}
    if options.shift in plain:
        return plain[options.shift](**changes)
    named = {"dstp": DSTP, "recommended": DSTP.recommended}
    policy = named[options.shift]() if options.shift in named else DSTP.from_file(options.shift)
    return DSTP(**{**policy.to_dict(), **changes})


def parse_options(flag: str, texts: Sequence[str]) -> dict[str, Any]:
    """`name=value` texts; a value is JSON where it can be read as such (0.8, true, [1, 2])."""
    values = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise OptionError(f"{flag}: expected NAME=VALUE, got {text!r}")
        try:
            values[name] = json.loads(value)
        except (ValueError, RecursionError):
            values[name] = value
    return values
