"""Policies that bring pruned visual tokens back while an answer is being written."""

from pydstp.shift.dstp import DSTP
from pydstp.shift.sketch_return import SketchReturn

__all__ = ["DSTP", "SketchReturn"]
