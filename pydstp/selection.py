"""Which visual tokens a request reads: what was asked, and what has happened so far."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from pydstp.config import names_unknown_options, require_choice
from pydstp.errors import OptionError, show
from pydstp.generation import ShiftReport, StepLog
from pydstp.kv_cache import MAX_STAGES, PULSED, SELECTED, KVCache
from pydstp.pruning import PruningConfig, checked_stages
from pydstp.shift import DSTP, DyCoke, Shift, SketchReturn, VisionPulse

# Stands for: what the engine or chat was made with.
ENGINE_DEFAULT: Any = type("EngineDefault", (), {"__repr__": lambda self: "ENGINE_DEFAULT"})()
BYPASS = ("never", "auto")
RESERVE_MODES = ("auto", "full", "side", "lazy", "deferred")


@names_unknown_options
@dataclass(frozen=True)
class SelectionParams:
    """What a request asks of its visual tokens.

    Attributes:
        pruning: the method that prunes at prefill, or None.
        shift: the policy that says which tokens decoding reads, or None.
        reserve: when pruned tokens get their keys and values: at an unpruned prefill ("full"),
            beside the pruned one ("side"), at the first trigger ("lazy"), or in pieces between the
            first steps ("deferred"); "auto" is "lazy", "side" where DSTP applies early, and
            "deferred" for SketchReturn.
        bypass: "auto" drops pruning and policy before prefill where the cost model predicts that
            they make the answer slower than all tokens would; "never" does as it is told.
        log_steps: keep a record of every decode step; "attention" adds the watched attention, and
            watches it even where nothing is pruned.

    Raises:
        OptionError: a value of the wrong type or a combination that cannot run.
    """

    pruning: PruningConfig | None = None
    shift: Shift | None = None
    reserve: str = "auto"
    log_steps: bool | str = False
    bypass: str = "never"

    @property
    def watch(self) -> DSTP | None:
        """What watches attention: DSTP, or the gate of SketchReturn."""
        if self.returns is not None:
            return self.returns.gate
        return self.shift if isinstance(self.shift, DSTP) else None

    @property
    def returns(self) -> SketchReturn | None:
        """The policy, if it returns tokens inside a layer's attention."""
        return self.shift if isinstance(self.shift, SketchReturn) else None

    @property
    def pulse(self) -> VisionPulse | DyCoke | None:
        """The policy, if it selects among what is kept, within a step."""
        return self.shift if isinstance(self.shift, VisionPulse | DyCoke) else None

    @property
    def brings_back(self) -> bool:
        """Whether tokens that were pruned may ever be read."""
        return self.watch is not None or self.returns is not None

    @property
    def reserve_mode(self) -> str:
        """The mode that is used, where `reserve` may say "auto"."""
        if self.reserve != "auto":
            return self.reserve
        if self.returns is not None:
            return "deferred"
        return "side" if self.watch is not None and self.watch.applies == "early" else "lazy"

    def __post_init__(self) -> None:
        for name, kinds in (("pruning", (PruningConfig,)), ("shift", Shift.__args__)):
            value = getattr(self, name)
            if value is not None and not isinstance(value, kinds):
                names = ", ".join(kind.__name__ for kind in kinds)
                raise OptionError(f"{name}: expected {names} or None, got {show(value)}")
        require_choice("reserve", self.reserve, RESERVE_MODES)
        require_choice("bypass", self.bypass, BYPASS)
        is_named = isinstance(self.log_steps, str) and self.log_steps == "attention"
        if not isinstance(self.log_steps, bool) and not is_named:
            raise OptionError(f"log_steps: expected True, False or 'attention', "
                              f"got {show(self.log_steps)}")
        if self.reserve == "full" and self.pruning is not None and self.pruning.pruner.merges:
            raise OptionError(f"reserve: expected 'side', 'lazy' or 'deferred' with "
                              f"{self.pruning.name}, got 'full' (merged tokens exist in no "
                              "unpruned prefill; choose options with which it merges none)")
        if self.pruning is not None and not self.pruning.pruner.leaves_reserve:
            self._refuse_return()
        is_early = self.watch is not None and self.watch.applies == "early"
        if self.reserve == "lazy" and (is_early or self.returns is not None):
            raise OptionError("reserve: expected 'side', 'deferred' or 'full' with a shift that "
                              "acts within the step (applies='early', SketchReturn), got 'lazy'")

    def _refuse_return(self) -> None:
        """Of a smaller picture nothing was left out; a smaller cache holds no pruned token."""
        if self.shift is not None:
            raise OptionError(f"shift: expected None with {self.pruning.name}, got "
                              f"{type(self.shift).__name__} (it leaves no token behind that "
                              "could return)")
        if self.reserve == "full" or self.pruning.pruner.acts_on_cache and self.reserve != "auto":
            raise OptionError(f"reserve: expected 'auto' with {self.pruning.name}, got "
                              f"{show(self.reserve)} (it has no reserve)")

    def with_changes(self, **changes: Any) -> SelectionParams:
        """The same with other values; those that are ENGINE_DEFAULT stay."""
        changes = {name: value for name, value in changes.items() if value is not ENGINE_DEFAULT}
        return replace(self, **changes) if changes else self


@dataclass
class Progress:
    """Counters of one request; sums are over decode steps.

    `num_visual` tokens (`num_spared` of them never were: the picture was made smaller), `kept` of
    them in the base set (merged ones counted), `resident` with keys and values in every layer;
    tokens leave before `stages`, so layers from `first_layer` on are pruned, and read `base_lens`
    tokens each while nothing is brought back. `request_idx` keys the draws of the policy.
    """

    params: SelectionParams = field(default_factory=SelectionParams)
    asked: SelectionParams | None = None  # where pruning and policy were bypassed
    request_idx: int = 0
    reason: str | None = None
    num_visual: int = 0
    num_spared: int = 0
    kept: int = 0
    resident: int = 0
    stages: tuple[int, ...] = (0,)
    first_layer: int = 0
    base_lens: list[int] = field(default_factory=list)
    num_layers: int = 0
    anchor_layer: int | None = None  # of a policy that selects within a step
    layers: tuple[int, ...] = ()
    is_watched: bool = False
    selection_ms: float = 0.0
    num_steps: int = 0
    num_forwards: int = 0
    visible_sum: float = 0.0
    bytes_read: int = 0
    num_scored: int = 0  # rows whose keys a swap of the current step has read, over layers
    triggers: int = 0
    trigger_steps: list[int] = field(default_factory=list)
    side_passes: int = 0
    reserve_ms: float = 0.0
    steps: list[StepLog] = field(default_factory=list)
    shown_before: tuple[int, ...] = ()
    shown_now: tuple[int, ...] = ()
    anchor: tuple[float, ...] | None = None
    visual_rows: list[int] = field(default_factory=list)

    def expect(self, num_layers: int, num_heads: int) -> None:
        """Settle which layers are watched; called before anything of the request runs.

        Raises:
            OptionError: the model has no such layer or head.
        """
        pruning, shift = self.params.pruning, self.params.watch
        self.num_layers = num_layers
        if pruning:
            self.stages = checked_stages(pruning, num_layers, MAX_STAGES)
        last_stage = self.stages[-1]
        if shift is not None:
            self.layers = shift.watched_layers(num_layers, last_stage)
            shift.head_weights(num_heads)
            if pruning and pruning.pruner.merges and min(self.layers) < last_stage:
                raise OptionError(
                    f"monitor_layers: expected layers >= {last_stage} with {pruning.name}, whose "
                    f"merged tokens exist from there on, got {min(self.layers)}")
            if len(self.stages) > 1 and shift.swap == "merge":
                raise OptionError(f"swap: expected another than 'merge' with {pruning.name}, whose "
                                  "stages show different tokens, so that none can stand for them")
        if self.params.returns is not None and self.params.returns.first_layer > num_layers:
            raise OptionError(f"first_layer: expected at most num_layers = {num_layers}, "
                              f"got {self.params.returns.first_layer}")
        if self.params.pulse is not None:
            self.anchor_layer = self.params.pulse.settled_anchor(num_layers, last_stage)

    def bypass(self) -> None:
        """Go on with all tokens: pruning and policy would make this request slower."""
        self.asked = self.params
        self.params = replace(self.params, pruning=None, shift=None)
        self.layers, self.anchor_layer = (), None

    def prunes(self, grids: list[tuple[int, int]]) -> bool:
        """Whether the method takes any token of some new pictures away."""
        if self.params.pruning.pruner.acts_on_picture:
            return False
        num_visual = sum(rows * cols for rows, cols in grids)
        return sum(self.params.pruning.quotas(grids)[1]) < num_visual

    def start(self, cache: KVCache, seq_idx: int) -> None:
        """The prompt is in the cache: note what is kept, and whether anything can come back."""
        is_original = cache.born[seq_idx, :int(cache.visual_len[seq_idx])] < 0
        self.num_visual = int(is_original.sum()) + self.num_spared
        self.kept = int(cache.shift.base_len[seq_idx])
        self.first_layer = cache.first_layer[seq_idx]
        groups = cache.groups[seq_idx, self.first_layer:].long()
        self.base_lens = cache.list_lens[seq_idx, groups].tolist()
        num_reserve = int(cache.shift.reserve_len[seq_idx])
        missing = num_reserve
        if self.params.brings_back:
            missing = sum(map(len, cache.pending[seq_idx]))
        self.resident = int(cache.visual_len[seq_idx])
        if self.params.reserve_mode != "full":
            self.resident -= missing
        if not self.num_visual:
            self.reason = "no_image"
        elif self.asked is not None:
            self.reason = "below_break_even"
        elif self.params.pruning is None or self.params.pruning.name == "none":
            self.reason = "no_method"
        elif not num_reserve and not self.num_spared:
            is_asked = self.params.pruning.pruner.adaptive and self.selection_ms > 0
            self.reason = "method_kept_all" if is_asked else "retention_is_one"
        if not self.kept:
            self.anchor_layer = None
        self.shown_before = tuple(cache.visible_slots(seq_idx, SELECTED).tolist())
        is_of_use = num_reserve > 0 or (self.num_visual and self.params.log_steps == "attention")
        self.is_watched = self.params.watch is not None and bool(is_of_use)

    @property
    def first_selected(self) -> int:
        """The first layer that reads what the policy shows, or else what pruning kept."""
        return self.first_layer if self.anchor_layer is None else self.anchor_layer + 1

    @property
    def sees_change(self) -> bool:
        """Whether steps have a similarity, and may trigger."""
        return self.is_watched or (self.anchor_layer is not None and self.params.pulse.sees_change)

    @property
    def group(self) -> int:
        """The lists that layers from `first_selected` on read."""
        return SELECTED if self.anchor_layer is None else PULSED

    @property
    def early_layer(self) -> int | None:
        """The last layer that still reads the old list when a swap applies within its step."""
        is_early = self.is_watched and self.params.watch.applies == "early"
        return self.layers[-1] if is_early else None

    def report(self, longest_gap_ms: float) -> ShiftReport:
        """What happened, as the caller sees it."""
        params, total, steps = self.params, max(1, self.num_visual), max(1, self.num_steps)
        asked = self.asked or params
        mean_visible = (self.visible_sum / steps if self.num_steps else self._base_mean()) / total
        return ShiftReport(
            method=asked.pruning.name if asked.pruning else "none",
            policy=_policy(asked.shift), reason=self.reason,
            retention_asked=self._asked(), retention_achieved=self.kept / total,
            num_visual=self.num_visual, kept=self.kept,
            mean_visible=mean_visible, mean_visible_all_layers=self._over_layers(mean_visible),
            triggers=self.triggers, trigger_steps=tuple(self.trigger_steps),
            forwards_per_token=self.num_forwards / steps if self.num_steps else 1.0,
            bytes_per_token=self.bytes_read / steps, selection_ms=self.selection_ms,
            reserve=params.reserve_mode if self._has_reserve() else None,
            side_passes=self.side_passes, reserve_ms=self.reserve_ms,
            longest_gap_ms=longest_gap_ms, steps=self.steps if params.log_steps else None,
            anchor=self.anchor, visual_rows=tuple(self.visual_rows))

    def _base_mean(self) -> float:
        """Tokens that pruned layers read while nothing is brought back; of none, the base set."""
        return sum(self.base_lens) / len(self.base_lens) if self.base_lens else self.kept

    def _over_layers(self, mean_visible: float) -> float:
        """The share that all layers read: all tokens, then what is left, then what is shown."""
        num_layers, total = max(1, self.num_layers), max(1, self.num_visual)
        in_base = sum(self.base_lens[:self.first_selected - self.first_layer]) / total
        selected = (num_layers - self.first_selected) * mean_visible
        return (self.first_layer + in_base + selected) / num_layers

    def _has_reserve(self) -> bool:
        """Without a policy pruned tokens get keys and values only where nothing waits to."""
        is_computed = self.params.brings_back or self.params.reserve_mode == "full"
        return is_computed and self.kept < self.num_visual

    def _asked(self) -> float:
        """The share of the visual tokens that the request wanted to keep."""
        pruning = (self.asked or self.params).pruning
        if pruning is None or pruning.name == "none":
            return 1.0
        if pruning.retention_ratio is not None:
            return pruning.retention_ratio
        return min(1.0, pruning.num_kept / max(1, self.num_visual))


def _policy(shift: Shift | None) -> str:
    names = {"dstp": DSTP, "sketch": SketchReturn, "visionpulse": VisionPulse, "dycoke": DyCoke}
    return next((name for name, kind in names.items() if isinstance(shift, kind)), "none")
