"""The prompt of one sequence: pruned on the way through the layers, its rest kept as a reserve."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from pydstp import ops
from pydstp.compaction import run_compacting
from pydstp.errors import OptionError
from pydstp.kv_cache import ALL, NEVER, KVCache
from pydstp.layer_statistics import LayerStatistics, attention_probs
from pydstp.models.plans import Context, PrefillPlan
from pydstp.models.qwen3 import Decoder, DeepStack
from pydstp.pruning import MergePlan, Selection, VisualTokens, run_pruner
from pydstp.pruning.merging import merged_rows
from pydstp.reserve import SideRows, joined, visible_lengths
from pydstp.sequence import Sequence


@dataclass
class Rows:
    """Tokens on their way through the layers, in prompt order.

    x: [n, hidden_size]. features: one [num_visual, hidden_size] per DeepStack layer. On the host,
    whatever the device: positions: [n], of M-RoPE [3, n]. slots: [n] int64. visual: [num_visual]
    int64, the rows that are visual tokens.
    """

    x: Tensor
    positions: Tensor
    slots: Tensor
    visual: Tensor
    features: list[Tensor]

    def deepstack(self) -> DeepStack | None:
        """What to add behind the first layers."""
        return DeepStack(self.features, self.visual) if self.features else None

    def without(self, dropped: Tensor) -> Rows:
        """All rows but those of some visual tokens; dropped [num_visual] bool, on the host."""
        stays = self.slots.new_ones(len(self.x), dtype=torch.bool)
        stays[self.visual[dropped]] = False
        is_visual = torch.zeros_like(stays)
        is_visual[self.visual] = True
        return Rows(self.x[stays], self.positions[..., stays], self.slots[stays],
                    is_visual[stays].nonzero().squeeze(1),
                    [features[~dropped] for features in self.features])

    def side_rows(self, taken: Tensor, first_layer: int) -> SideRows:
        """Some visual tokens as rows of their own; taken [num_visual] bool, on the host."""
        rows = self.visual[taken]
        return SideRows(self.x[rows], self.positions[..., rows], self.slots[rows],
                        [features[taken] for features in self.features],
                        torch.full_like(rows, first_layer))


class Prefill:
    """Runs the prompt of one sequence through the decoder and fills the cache with it.

    Args:
        rows: the new tokens, embedded, with their slots.
        grids: (rows, cols) in tokens of the new pictures.
        observed: what the vision tower's attention looked like, (attention [num_visual], keys
            [num_visual, d]), or None.
        workspace: of `ops.attention_workspace`.
    """

    def __init__(self, decoder: Decoder, cache: KVCache, seq: Sequence, rows: Rows,
                 grids: list[tuple[int, int]], observed: tuple[Tensor, Tensor] | None,
                 workspace: Tensor, ctx: Context) -> None:
        self.decoder, self.cache, self.seq, self.ctx = decoder, cache, seq, ctx
        self.rows, self.grids, self.observed = rows, grids, observed
        self.workspace = workspace
        self.seq_idx = seq.seq_idx
        self.num_layers = cache.geometry.num_layers
        self.visual_orders = cache.prompt_order[self.seq_idx, rows.slots[rows.visual]]
        self.pruning = seq.progress.params.pruning if len(rows.visual) else None
        if self.pruning is not None and not seq.progress.prunes(grids):
            self.pruning = None
        self.is_full = seq.progress.params.reserve_mode == "full"
        shape = cache.geometry.num_heads, cache.geometry.head_dim
        self.anchor_queries = {layer: rows.x.new_empty(shape) for layer in seq.progress.layers}
        self.statistics: LayerStatistics | None = None
        self.projected: dict[int, tuple[Tensor, Tensor, Tensor]] = {}  # of `rows`, see PrefillPlan

    def run(self) -> Tensor:
        """[1, hidden_size]: the last row behind the last layer."""
        if self.pruning is not None and self.pruning.pruner.acts_on_cache:
            run_compacting(self)
        elif self.pruning is not None:
            self._run_pruned(self.seq.progress.stages)
        else:
            stops = [0, *self.cache.stages[self.seq_idx], self.num_layers]
            for start, stop in pairwise(stops):
                self._forward(range(start, stop))
        return self.rows.x[-1:]

    def _run_pruned(self, stages: tuple[int, ...]) -> None:
        """Up to each stage with the tokens that are left by then."""
        progress, start, reserve = self.seq.progress, 0, []
        self.cache.set_stages(self.seq_idx, stages)
        raters, num_text = self._raters()
        for stage, layer in enumerate(stages):
            candidates = self._candidates()
            needs = self.pruning.pruner.needs_at(stage)
            self.statistics = self._statistics(needs, layer, candidates, raters, num_text)
            self._forward(range(start, layer))
            started = time.perf_counter()
            reserve.append(self._leave(layer, candidates, self._select(stage, layer, candidates)))
            progress.selection_ms += 1e3 * (time.perf_counter() - started)
            start, self.statistics = layer, None
        if progress.params.brings_back and not self.is_full:
            order = self.cache.prompt_order[self.seq_idx]
            self.cache.pending[self.seq_idx] += joined(reserve, order).chunks()
        self._forward(range(start, self.num_layers))
        if self.pruning.pruner.shrinks_behind is not None:
            self.cache.shrink(self.seq_idx, stages[self.pruning.pruner.shrinks_behind])

    def run_watched(self, layer: int, needs: frozenset[str]) -> dict[str, Tensor]:
        """Run one layer; returns statistics of it."""
        self.statistics = self._statistics(needs, layer + 1, self.rows.visual,
                                           self.rows.visual[:0], 0)
        self._forward(range(layer, layer + 1))
        return self.statistics.collect(self.rows.x, None)

    def _candidates(self) -> Tensor:
        """[num_candidates] int64: the rows of visual tokens that have not left."""
        left = self.cache.left[self.seq_idx, self.rows.slots[self.rows.visual]]
        return self.rows.visual[left == NEVER]

    def _raters(self) -> tuple[Tensor, int]:
        """Rows of text behind the pictures whose attention the method counts, counted from the
        first, and how many there are."""
        text = self.rows.x[int(self.rows.visual[-1]) + 1:]
        if "text_attention" not in self.pruning.pruner.needs:
            return self.rows.visual[:0], len(text)
        chosen = self.pruning.pruner.raters(self.rows.x[self.rows.visual], text)
        return chosen.nonzero().squeeze(1).cpu(), len(text)

    def _statistics(self, needs: frozenset[str], layer: int, candidates: Tensor, raters: Tensor,
                    num_text: int) -> LayerStatistics:
        """What there is to know from the layer before `layer`."""
        spans, counts = self.seq.prompt.image_spans, self._origins(candidates)
        lengths = [length for start, length in spans if start >= self.seq.num_cached]
        lengths = counts.new_tensor(lengths).cumsum(0)
        ends = torch.searchsorted(counts, lengths)
        return LayerStatistics(
            needs, layer - 1, self.cache, self.seq_idx, self.rows.slots, candidates,
            ends.diff(prepend=ends.new_zeros(1)).tolist(),
            len(self.rows.slots) - num_text + raters, num_text, self.is_full, self.workspace,
            self.ctx)

    def _origins(self, rows: Tensor) -> Tensor:
        """[n] int64: which of the new visual tokens each row is, or has taken the place of."""
        orders = self.cache.prompt_order[self.seq_idx, self.rows.slots[rows]]
        return torch.searchsorted(self.visual_orders, orders)

    def _leave(self, layer: int, candidates: Tensor, selection: Selection) -> SideRows:
        """Take out what was not kept; returns those that could come back."""
        before, cache, s = self.rows, self.cache, self.seq_idx
        dropped = candidates.new_ones(len(candidates), dtype=torch.bool)
        dropped[selection.kept] = False
        cache.prune(s, before.slots[candidates[dropped]], layer)
        gone = torch.isin(before.visual, candidates[dropped])
        originals = gone & (cache.born[s, before.slots[before.visual]] < 0)
        if gone.any() and not self.is_full:
            self.rows = before.without(gone)
            stays = torch.isin(before.slots, self.rows.slots)
            self.projected = {of: tuple(part[stays] for part in parts)
                              for of, parts in self.projected.items()}
            if selection.merge is not None and len(selection.merge.targets):
                self._insert_merged(before, selection.merge, layer)
        elif selection.merge is not None:
            raise OptionError("reserve: expected 'side', 'lazy' or 'deferred' with a method that "
                              "merges tokens, got 'full' (merged tokens exist in no unpruned "
                              "prefill)")
        return before.side_rows(originals, layer)

    def _select(self, stage: int, layer: int, candidates: Tensor) -> Selection:
        config, rows = self.pruning, self.rows
        origins = self._origins(candidates)
        spans, quotas = config.quotas_at(self.grids, stage, len(self.seq.progress.stages), origins)
        attention, keys = [None if one is None else one[origins]
                           for one in self.observed or (None, None)]
        needs = config.pruner.needs_at(stage)
        upcoming = self._upcoming_query(layer) if "upcoming_row" in needs else None
        tokens = VisualTokens(
            features=rows.x[candidates], grids=tuple(self.grids), spans=spans, stage=stage,
            origins=origins.to(rows.x.device), quotas=quotas, vision_attention=attention,
            vision_keys=keys,
            text_embeddings=self._text_embeddings() if "text_embeddings" in needs else None,
            generator=config.generator(), **self.statistics.collect(rows.x, upcoming))
        return run_pruner(config, tokens)

    def _upcoming_query(self, layer: int) -> Tensor:
        """[num_heads, head_dim]: what the last row will ask in a layer that has not run."""
        rows = self.rows
        self.projected = {layer: self.decoder.projected(
            rows.x, layer, cos_sin=self.decoder.rotary(rows.positions), cache=self.cache,
            plan=self._plan(), ctx=self.ctx)}
        return self.projected[layer][0][-1]

    def _text_embeddings(self) -> Tensor:
        """[num_text, hidden_size]: the words of the last user message."""
        return self.decoder.embed(self.rows.slots.new_tensor(self.seq.instruction_ids))

    def watch_anchor(self, monitor: ops.Monitor) -> None:
        """Add the anchor row's attention at every watched layer to monitor.probs.

        It is taken over what the row has seen: an unpruned prompt (reserve "full") shows all.
        """
        context = self._text_up_to_anchor()
        text_len = self.cache.text_len.clone()
        text_len[self.seq_idx] = len(context)
        groups = self.cache.layer_to_group
        if self.is_full:
            groups = torch.full_like(groups, ALL)
        for layer_idx, query in self.anchor_queries.items():
            attention_probs(self.cache, self.seq_idx, query, layer_idx, monitor, self.workspace,
                            self.ctx, layer_to_group=groups, text_len=text_len,
                            visible_len=self.cache.visible_len)

    def _insert_merged(self, before: Rows, merge: MergePlan, layer: int) -> None:
        """Add merged tokens to the rows, each in the place of its target."""
        places = before.visual[merge.targets]
        orders = self.cache.prompt_order[self.seq_idx, before.slots[places]]
        slots = self.cache.append_pseudo(self.seq_idx, orders, layer).long()
        old, merged, self.projected = self.rows, len(places), {}
        order = self.cache.prompt_order[self.seq_idx, torch.cat([old.slots, slots])]
        turn = order.argsort()
        is_visual = turn.new_zeros(len(turn), dtype=torch.bool)
        is_visual[old.visual] = True
        is_visual[-merged:] = True
        features = [torch.cat([kept, merged_rows(all_rows, merge)])[_ranks(order[is_visual])]
                    for kept, all_rows in zip(old.features, before.features, strict=True)]
        new = merged_rows(before.x[before.visual], merge)
        self.rows = Rows(
            torch.cat([old.x, new])[turn],
            torch.cat([old.positions, before.positions[..., places]], -1)[..., turn],
            torch.cat([old.slots, slots])[turn], is_visual[turn].nonzero().squeeze(1), features)

    def _forward(self, layers: range) -> None:
        """Run the rows through some layers, which show the same of earlier turns."""
        if not layers:
            return
        rows, cache = self.rows, self.cache
        plan = replace(self._plan(), queries=self._queries(), projected=self.projected)
        if self.seq.num_cached:
            group = ALL if self.is_full else int(cache.groups[self.seq_idx, layers.start])
            visible = cache.visible_slots(self.seq_idx, group)
            context = cache.context(self.seq_idx, visible, int(cache.num_tokens[self.seq_idx]))
            order = cache.prompt_order[self.seq_idx]
            plan = replace(plan, context_slots=context.int().to(cache.device),
                           visible_len=visible_lengths(order[rows.slots], order[context])
                           .to(cache.device))
        rows.x = self.decoder.forward_layers(
            rows.x, layers=layers, cos_sin=self.decoder.rotary(rows.positions), cache=cache,
            plan=plan, ctx=self.ctx, deepstack=rows.deepstack())
        self.seq.progress.visual_rows += [len(rows.visual)] * len(layers)

    def _plan(self) -> PrefillPlan:
        slots = self.rows.slots.int().to(self.cache.device)
        return PrefillPlan(seq_idx=self.seq_idx, slot_idx=slots,
                           seq_idx_rows=torch.full_like(slots, self.seq_idx))

    def _queries(self) -> dict[int, list[tuple[int | slice | Tensor, Tensor]]]:
        """Where to leave the queries of the anchor row and of those that statistics need."""
        slot = int(self._text_up_to_anchor()[-1])
        row = int((self.rows.slots == slot).nonzero())  # text, so it is never pruned
        queries = {layer: [(row, out)] for layer, out in self.anchor_queries.items()}
        if self.statistics is not None:
            queries.setdefault(self.statistics.layer_idx, []).extend(self.statistics.queries)
        return queries

    def _text_up_to_anchor(self) -> Tensor:
        return self.cache.context(self.seq_idx, self.rows.slots[:0], self.anchor_order + 1)

    @property
    def anchor_order(self) -> int:
        """Its number among the tokens of the prompt."""
        shift = self.seq.progress.params.watch
        at_end = shift is None or shift.anchor == "last"
        return len(self.seq.prompt.input_ids) - 1 if at_end else self.seq.instruction_end


def _ranks(order: Tensor) -> Tensor:
    """Row numbers in ascending order of `order`."""
    return order.argsort()
