"""From a configuration to the class that computes it."""

from importlib import import_module

import torch
from torch import nn

from pydstp.models.config import VLMConfig

_FAMILIES = {
    "qwen3_vl": ("pydstp.models.qwen3_vl", "Qwen3VL"),
    "qwen3_vl_moe": ("pydstp.models.qwen3_vl", "Qwen3VL"),
}


def build_model(config: VLMConfig, tied: bool) -> nn.Module:
    """The model on the meta device: parameter names and shapes, no memory, nothing initialised.

    tied: True where the checkpoint has no tensor for the head.
    """
    module, name = _FAMILIES[config.model_type]
    with torch.device("meta"):
        model = getattr(import_module(module), name)(config, tied)
    return model.requires_grad_(False).eval()
