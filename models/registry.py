"""From a configuration to the class that computes it."""

import torch
from torch import nn

from pydstp.models.config import DENSE, INTERNVL, INTERNVL_CHAT, MOE, VLMConfig
from pydstp.models.internvl import InternVL
from pydstp.models.qwen3_vl import Qwen3VL

_FAMILIES = {DENSE: Qwen3VL, MOE: Qwen3VL, INTERNVL: InternVL, INTERNVL_CHAT: InternVL}


def build_model(config: VLMConfig, tied: bool) -> nn.Module:
    """The model on the meta device: parameter names and shapes, no memory, nothing initialised.

    tied: True where the checkpoint has no tensor for the head.
    """
    with torch.device("meta"):
        model = _FAMILIES[config.model_type](config, tied)
    return model.requires_grad_(False).eval()
