"""Which weights are held in 8 bits, and how a model gets room for them."""

from fnmatch import fnmatchcase

from torch import nn

from pydstp import ops

# Every matrix that a decode step reads: projections and experts of the decoder, and the head. The
# vision tower, its position table, norms, routers and an embedding table that is not the head stay.
PATTERNS = (
    "language_model.layers.*_proj.weight",
    "language_model.layers.*.experts.*_proj",
    "language_model.lm_head.weight",
)
TIED_HEAD = "language_model.embed_tokens.weight"


def is_quantised(name: str, is_tied: bool) -> bool:
    """Whether a parameter, or the tensor of a file with this normalised name, is held in 8 bits."""
    return (is_tied and name == TIED_HEAD) or any(fnmatchcase(name, p) for p in PATTERNS)


def quantise(model: nn.Module, is_tied: bool) -> dict[str, ops.QuantisedMatrix]:
    """Put matrices without content in the place of the parameters that are held in 8 bits.

    Returns: the matrices, by the names of the parameters that they replace.
    """
    matrices = {}
    for name, parameter in list(model.named_parameters()):
        if is_quantised(name, is_tied):
            owner, _, leaf = name.rpartition(".")
            module = model.get_submodule(owner)
            matrices[name] = ops.QuantisedMatrix.allocate(*parameter.shape)
            delattr(module, leaf)
            setattr(module, leaf, matrices[name])
    return matrices


def num_bytes(module: nn.Module) -> int:
    """Bytes of all weights of a module, in 8 bits or not."""
    owned = [value for part in module.modules() for value in vars(part).values()]
    matrices = [value for value in owned if isinstance(value, ops.QuantisedMatrix)]
    return sum(weights.nbytes for weights in (*module.parameters(), *matrices))
