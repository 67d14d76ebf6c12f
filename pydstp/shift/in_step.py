"""What policies share that select within a step, after an anchor layer."""

from __future__ import annotations

from pydstp.errors import OptionError


def checked_anchor(asked: int | None, default: int, num_layers: int, first_layer: int) -> int:
    """The anchor layer in a model of `num_layers`, pruned before `first_layer`.

    asked: what the request says; None takes what is nearest to `default` and possible.

    Raises:
        OptionError: no layer would read a selection, or the anchor would read what is pruned.
    """
    anchor = max(first_layer, min(default, num_layers - 2)) if asked is None else asked
    if not first_layer <= anchor < num_layers - 1:
        raise OptionError(f"anchor_layer: expected a layer in [{first_layer}, {num_layers - 2}], "
                          f"from the pruning point on and below the last, got {anchor}")
    return anchor
