"""Policies that say which visual tokens are read while an answer is being written."""

from pydstp.shift.dstp import DSTP
from pydstp.shift.dycoke import DyCoke
from pydstp.shift.sketch_return import MAX_RETURNED, SketchReturn
from pydstp.shift.vision_pulse import VisionPulse

Shift = DSTP | SketchReturn | VisionPulse | DyCoke

__all__ = ["DSTP", "DyCoke", "MAX_RETURNED", "Shift", "SketchReturn", "VisionPulse"]
