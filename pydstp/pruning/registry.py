"""Methods by name, and the options that a request gives for one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, fields
from inspect import get_annotations, isabstract
from itertools import pairwise
from typing import Any, TypeVar

import torch
from torch import Tensor

from pydstp.config import require_choice, require_float, require_int
from pydstp.errors import OptionError, PydstpError, show
from pydstp.pruning.base import LAYER_STATISTICS, QUOTAS, STATISTICS, Pruner

_Method = TypeVar("_Method", bound=type[Pruner])
_PRUNERS: dict[str, type[Pruner]] = {}
_OWN_OPTIONS = ("name", "retention_ratio", "num_kept", "quota", "seed", "positions")


def register_pruner(name: str) -> Callable[[_Method], _Method]:
    """Class decorator: make a method known as `name`. It goes above `@dataclass(frozen=True)`.

    The same class may be registered again, as happens in a notebook; the newer one counts.

    Raises:
        OptionError: the name is not an identifier or is taken, or the class is not a `Pruner` that
            defines `select`, has options but is no dataclass, or calls one of them like one of
            `PruningConfig`.
    """
    def register(kind: _Method) -> _Method:
        _check_class(name, kind)
        known = _PRUNERS.get(name, kind)
        if (known.__module__, known.__qualname__) != (kind.__module__, kind.__qualname__):
            raise OptionError(f"register_pruner: expected a new name, got {name!r}, which is "
                              f"{known.__module__}.{known.__qualname__}")
        _PRUNERS[name] = kind
        return kind
    return register


def _check_class(name: str, kind: Any) -> None:
    if not isinstance(name, str) or not name.isidentifier():
        raise OptionError(f"register_pruner: expected a name such as 'my_method', got {show(name)}")
    if not isinstance(kind, type) or not issubclass(kind, Pruner) or isabstract(kind):
        raise OptionError(f"register_pruner: expected a subclass of Pruner that defines select, "
                          f"got {show(kind)}")
    if get_annotations(kind) and "__dataclass_fields__" not in vars(kind):
        raise OptionError(f"{kind.__name__}: expected @dataclass(frozen=True) below "
                          "@register_pruner on a class with annotated options")
    clashes = [field.name for field in fields(kind) if field.name in _OWN_OPTIONS]
    if clashes:
        raise OptionError(f"{kind.__name__}: expected options that PruningConfig does not have "
                          f"itself, got {', '.join(clashes)}")


def available_pruners() -> tuple[str, ...]:
    """The names of all registered methods, sorted."""
    return tuple(sorted(_PRUNERS))


def pruner_class(name: str) -> type[Pruner]:
    """The class registered as `name`.

    Raises:
        OptionError: there is none.
    """
    if not isinstance(name, str) or name not in _PRUNERS:
        raise OptionError(f"name: expected a pruning method among "
                          f"{', '.join(available_pruners())}, got {show(name)}")
    return _PRUNERS[name]


@dataclass(frozen=True, init=False)
class PruningConfig:
    """A method, how much it keeps, and its options; checked when it is made.

    `PruningConfig("fastv", retention_ratio=1/3, layer=2)`.

    Attributes:
        name: one of `available_pruners()`.
        retention_ratio: share of the visual tokens to keep, in (0, 1]. At least one token of each
            span stays.
        num_kept: how many to keep instead, over all new pictures of a request; one of the two is
            given (neither with "none"). With quota="span" they are shared out by size, at least one
            to each picture even if that makes more.
        quota: "span" keeps a share of each picture, "global" of all together; None takes the
            method's `default_quota`.
        seed: of all randomness of the method.
        positions: "keep"; kept tokens always keep their positions.
        pruner: the method itself, with its options.

    Raises:
        OptionError: an unknown method or option, or a value outside its range.
    """

    name: str
    retention_ratio: float | None
    num_kept: int | None
    quota: str
    seed: int
    positions: str
    pruner: Pruner

    def __init__(self, name: str, retention_ratio: float | None = None,
                 num_kept: int | None = None, *, quota: str | None = None, seed: int = 0,
                 positions: str = "keep", **options: Any) -> None:
        pruner = _build(name, pruner_class(name), options)
        _check_amount(name, pruner, retention_ratio, num_kept)
        quota = pruner.default_quota if quota is None else quota
        require_choice("quota", quota, QUOTAS)
        if pruner.acts_on_picture and quota != "span":
            raise OptionError(f"quota: expected 'span' with {name!r}, which acts on each picture "
                              f"by itself, got {show(quota)}")
        require_int("seed", seed, 0)
        if positions != "keep":
            hint = " (not supported: kept tokens always keep their positions)"
            raise OptionError(f"positions: expected 'keep', got {show(positions)}"
                              f"{hint if positions == 'reindex' else ''}")
        values = dict(name=name, retention_ratio=retention_ratio, num_kept=num_kept, quota=quota,
                      seed=seed, positions=positions, pruner=pruner)
        for key, value in values.items():
            object.__setattr__(self, key, value)

    def to_dict(self) -> dict[str, Any]:
        """Everything that was given or is a default: `PruningConfig(**config.to_dict())`."""
        own = {key: getattr(self, key) for key in _OWN_OPTIONS}
        return own | {f.name: getattr(self.pruner, f.name) for f in fields(self.pruner)}

    def generator(self) -> torch.Generator:
        """A new random generator, in the state that `seed` says."""
        return torch.Generator().manual_seed(self.seed)

    def budget(self, num_tokens: int) -> int:
        """How many of `num_tokens` to keep: clamp(floor(r N + 0.5), 1, N), or `num_kept`."""
        if self.pruner.keeps_all or not num_tokens:
            return num_tokens
        wanted = self.num_kept
        if self.retention_ratio is not None:
            wanted = math.floor(self.retention_ratio * num_tokens + 0.5)
        return min(max(wanted, 1), num_tokens)

    def quotas(
        self, grids: Sequence[tuple[int, int]]
    ) -> tuple[tuple[tuple[int, int], ...], tuple[int, ...]]:
        """((start, length) of each span, tokens to keep in each) for pictures of (rows, cols)."""
        lengths = [rows * cols for rows, cols in grids]
        if self.quota == "global":
            lengths = [sum(lengths)] if grids else []
        spans = tuple((sum(lengths[:i]), length) for i, length in enumerate(lengths))
        if self.num_kept is not None:
            return spans, _shared_out(self.num_kept, lengths)
        return spans, tuple(self.budget(length) for length in lengths)


    def quotas_at(
        self, grids: Sequence[tuple[int, int]], stage: int, num_stages: int, origins: Tensor
    ) -> tuple[tuple[tuple[int, int], ...], tuple[int, ...]]:
        """`quotas` of one stage, for the tokens that are left: `VisualTokens.origins`.

        Never fewer than those of the last stage.
        """
        spans, final = self.quotas(grids)
        starts = origins.new_tensor([start for start, _ in spans] + [sum(r * c for r, c in grids)])
        bounds = torch.searchsorted(origins, starts).tolist()
        quotas = []
        for (_, length), last, start, end in zip(spans, final, bounds, bounds[1:], strict=False):
            share = self.pruner.share_at(stage, num_stages, last / length)
            quota = last if stage == num_stages - 1 else math.floor(share * length + 0.5)
            quotas.append(min(max(quota, last), end - start))
        return tuple((a, b - a) for a, b in pairwise(bounds)), tuple(quotas)


def _build(name: str, kind: type[Pruner], options: dict[str, Any]) -> Pruner:
    """The method with its options; lists become tuples, so that it can be hashed."""
    known = [field.name for field in fields(kind) if field.init]
    for option in options:
        if option not in known:
            raise OptionError(f"PruningConfig: expected options of {name!r} among "
                              f"{', '.join(known) or '(none)'}, got {option!r}")
    for field in fields(kind):
        needed = field.init and field.default is field.default_factory is MISSING
        if needed and field.name not in options:
            raise OptionError(f"{field.name}: expected a value with pruning method {name!r}")
    try:
        pruner = kind(**{key: _frozen(value) for key, value in options.items()})
        hash(pruner)
    except PydstpError:
        raise
    except Exception as error:  # of a method that does not check its options itself
        raise OptionError(f"pruning method {name!r}: expected other options than {show(options)}: "
                          f"{type(error).__name__}: {error}") from error
    _check_declarations(name, pruner)
    return pruner


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value


def _check_declarations(name: str, pruner: Pruner) -> None:
    """What a method says of itself."""
    who, needs = f"pruning method {name!r}", pruner.needs
    if not isinstance(needs, set | frozenset) or not needs <= set(STATISTICS):
        raise OptionError(f"{who}: needs: expected a set of names among {STATISTICS}, "
                          f"got {show(needs)}")
    if pruner.default_quota not in QUOTAS:
        raise OptionError(f"{who}: default_quota: expected one of {QUOTAS}, "
                          f"got {show(pruner.default_quota)}")
    require_int(f"{who}: block", pruner.block, -(1 << 20), 1 << 20)
    first = int(not pruner.needs_at(0).isdisjoint(LAYER_STATISTICS))
    require_int(f"{who}: act_before", pruner.act_before, first, 1 << 20)


def _check_amount(name: str, pruner: Pruner, ratio: float | None, number: int | None) -> None:
    if pruner.keeps_all:
        if number is not None or ratio not in (None, 1):
            raise OptionError(f"retention_ratio, num_kept: expected none of them with {name!r}, "
                              f"which keeps everything, got {show(ratio)}, {show(number)}")
    elif (ratio is None) == (number is None):
        got = "neither" if ratio is None else "both"
        raise OptionError(f"retention_ratio, num_kept: expected one of the two, got {got}")
    elif pruner.acts_on_picture and number is not None:
        raise OptionError(f"num_kept: expected retention_ratio with {name!r}, which acts on each "
                          f"picture by itself, got {show(number)}")
    if ratio is not None:
        require_float("retention_ratio", ratio, 0.0, 1.0, open_low=True)
    if number is not None:
        require_int("num_kept", number, 1)


def _shared_out(total: int, lengths: list[int]) -> tuple[int, ...]:
    """One each, and the rest of `total` by largest remainder; of equal ones the first."""
    spare = [length - 1 for length in lengths]
    rest = min(max(total - len(lengths), 0), sum(spare))
    whole = [rest * one // max(sum(spare), 1) for one in spare]
    remainders = [rest * one % max(sum(spare), 1) for one in spare]
    ranked = sorted(range(len(lengths)), key=lambda i: -remainders[i])
    lucky = ranked[:rest - sum(whole)]
    return tuple(1 + count + (i in lucky) for i, count in enumerate(whole))
