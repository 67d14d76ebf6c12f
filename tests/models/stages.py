"""What goes in and out of the modules on the way: both models use the checkpoint's names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from pydstp.models.qwen3 import DecoderLayer


def stage_names(model: nn.Module) -> list[str]:
    """Names of the modules whose rows are compared, in our tree."""
    names = ["visual.patch_embed", "visual.merger", "language_model.norm"]
    for stem in ("visual.blocks", "visual.deepstack_merger_list", "language_model.layers"):
        names += [f"{stem}.{i}" for i in range(len(model.get_submodule(stem)))]
    return names


@contextmanager
def record(model: nn.Module, names: list[str]) -> Iterator[dict[str, Tensor]]:
    """First inputs ("NAME in") and outputs ("NAME out") of one forward, as copies."""
    seen: dict[str, Tensor] = {}

    def before(name: str):  # our layers change their input in place
        def keep(module: nn.Module, args: tuple, kwargs: dict) -> None:
            first = args[0] if args else next(iter(kwargs.values()))
            if isinstance(module, DecoderLayer) and args[1] is not None:
                first = first + args[1]  # what the layer before left behind
            seen[f"{name} in"] = first.clone()

        return keep

    def after(name: str):
        def keep(module: nn.Module, args: tuple, output: Tensor | tuple) -> None:
            first = output[0] if isinstance(output, tuple) else output
            first = args[0] + first if isinstance(module, DecoderLayer) else first
            seen[f"{name} out"] = first.clone()

        return keep

    handles = []
    for name in names:
        module = model.get_submodule(name)
        handles.append(module.register_forward_pre_hook(before(name), with_kwargs=True))
        handles.append(module.register_forward_hook(after(name)))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
