"""The prompt of one sequence: pruned on the way through the layers, its rest kept as a reserve."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pydstp import ops
from pydstp.errors import OptionError
from pydstp.kv_cache import ALL, SELECTED, KVCache
from pydstp.layer_statistics import LayerStatistics, attention_probs
from pydstp.models.plans import Context, PrefillPlan
from pydstp.models.qwen3 import Decoder, DeepStack
from pydstp.pruning import MergePlan, Selection, VisualTokens, run_pruner
from pydstp.reserve import SideRows, visible_lengths
from pydstp.sequence import Sequence


@dataclass
class Rows:
    """Tokens on their way through the layers, in prompt order.

    x: [n, hidden_size]. positions: [n], of M-RoPE [3, n]. slots: [n] int64. visual: [num_visual]
    int64, the rows that are visual tokens. features: one [num_visual, hidden_size] per DeepStack
    layer.
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
        """All rows but those of some visual tokens; dropped [num_visual] bool."""
        stays = torch.ones(len(self.x), dtype=torch.bool)
        stays[self.visual[dropped]] = False
        is_visual = torch.zeros(len(self.x), dtype=torch.bool)
        is_visual[self.visual] = True
        return Rows(self.x[stays], self.positions[..., stays], self.slots[stays],
                    is_visual[stays].nonzero().squeeze(1),
                    [features[~dropped] for features in self.features])

    def side_rows(self, taken: Tensor, first_layer: int) -> SideRows:
        """Some visual tokens as rows of their own; taken [num_visual] bool."""
        rows = self.visual[taken]
        return SideRows(self.x[rows], self.positions[..., rows], self.slots[rows],
                        [features[taken] for features in self.features], first_layer)


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
        self.row_orders = cache.prompt_order[self.seq_idx, rows.slots]
        self.pruning = seq.progress.params.pruning if len(rows.visual) else None
        if self.pruning is not None and not seq.progress.prunes(grids):
            self.pruning = None
        shape = cache.geometry.num_heads, cache.geometry.head_dim
        self.anchor_queries = {layer: rows.x.new_empty(shape) for layer in seq.progress.layers}
        self.statistics = self._statistics() if self.pruning is not None else None

    def run(self) -> Tensor:
        """[1, hidden_size]: the last row behind the last layer."""
        if self.pruning is not None:
            self._run_pruned(self.pruning.pruner.act_before)
        else:
            first_layer = self.cache.first_layer[self.seq_idx]
            self._forward(range(first_layer), ALL)
            self._forward(range(first_layer, self.num_layers), self._pruned_group)
        return self.rows.x[-1:]

    @property
    def _pruned_group(self) -> int:
        """What rows see from the pruning point on."""
        return ALL if self.seq.progress.params.reserve_mode == "full" else SELECTED

    def _run_pruned(self, first_layer: int) -> None:
        self._forward(range(first_layer), ALL)
        started = time.perf_counter()
        selection = self._select(first_layer)
        self.seq.progress.selection_ms = 1e3 * (time.perf_counter() - started)
        dropped = torch.ones(len(self.rows.visual), dtype=torch.bool)
        dropped[selection.kept] = False
        reserve = self.rows.side_rows(dropped, first_layer)
        if self._pruned_group == SELECTED:
            self._leave_behind(dropped, selection.merge)
            if self.seq.progress.params.brings_back:
                self.cache.pending[self.seq_idx] += reserve.chunks()
        elif selection.merge is not None:
            raise OptionError("reserve: expected 'side', 'lazy' or 'deferred' with a method that "
                              "merges tokens, got 'full' (merged tokens exist in no unpruned "
                              "prefill)")
        self.cache.prune(self.seq_idx, reserve.slots, first_layer)
        self._forward(range(first_layer, self.num_layers), self._pruned_group)

    def _statistics(self) -> LayerStatistics:
        """What the method wants to know from the layer before the pruning point."""
        pruner, spans = self.pruning.pruner, self.seq.prompt.image_spans
        lengths = [length for start, length in spans if start >= self.seq.num_cached]
        return LayerStatistics(pruner.needs, pruner.act_before - 1, self.cache, self.seq_idx,
                               self.rows.slots, self.rows.visual, lengths, self.workspace, self.ctx)

    def _leave_behind(self, dropped: Tensor, merge: MergePlan | None) -> None:
        """Go on with the tokens that were kept, and with what the others were merged into."""
        before = self.rows
        self.rows = before.without(dropped)
        if merge is not None and len(merge.targets):
            self._insert_merged(before, merge)

    def _select(self, first_layer: int) -> Selection:
        config = self.pruning
        spans, quotas = config.quotas(self.grids)
        attention, keys = self.observed or (None, None)
        needs_words = "text_embeddings" in config.pruner.needs
        tokens = VisualTokens(
            features=self.rows.x[self.rows.visual], grids=tuple(self.grids), spans=spans,
            quotas=quotas, vision_attention=attention, vision_keys=keys,
            text_embeddings=self._text_embeddings() if needs_words else None,
            generator=config.generator(), **self.statistics.collect(self.rows.x))
        return run_pruner(config, tokens)

    def _text_embeddings(self) -> Tensor:
        """[num_text, hidden_size]: the words of the last user message."""
        return self.decoder.embed(torch.tensor(self.seq.instruction_ids, dtype=torch.int64))

    def watch_anchor(self, monitor: ops.Monitor) -> None:
        """Add the anchor row's attention at every watched layer to monitor.probs.

        It is taken over what the row has seen: an unpruned prompt (reserve "full") shows all.
        """
        context = self.cache.context(self.seq_idx, torch.empty(0), self.anchor_order + 1)
        text_len = self.cache.text_len.clone()
        text_len[self.seq_idx] = len(context)
        groups = self.cache.layer_to_group
        if self._pruned_group == ALL:
            groups = torch.full_like(groups, ALL)
        for layer_idx, query in self.anchor_queries.items():
            attention_probs(self.cache, self.seq_idx, query, layer_idx, monitor, self.workspace,
                            self.ctx, layer_to_group=groups, text_len=text_len,
                            visible_len=self.cache.visible_len)

    def _insert_merged(self, before: Rows, merge: MergePlan) -> None:
        """Add merged tokens to the rows, each in the place of its target."""
        places = before.visual[merge.targets]
        orders = self.row_orders[places]
        slots = self.cache.append_pseudo(self.seq_idx, orders).long()
        old, merged = self.rows, len(places)
        order = self.cache.prompt_order[self.seq_idx, torch.cat([old.slots, slots])]
        turn = order.argsort()
        is_visual = torch.zeros(len(turn), dtype=torch.bool)
        is_visual[old.visual] = True
        is_visual[-merged:] = True
        features = [torch.cat([kept, _merge(all_rows, merge)])[_ranks(order[is_visual])]
                    for kept, all_rows in zip(old.features, before.features, strict=True)]
        new = _merge(before.x[before.visual], merge)
        self.rows = Rows(
            torch.cat([old.x, new])[turn],
            torch.cat([old.positions, before.positions[..., places]], -1)[..., turn],
            torch.cat([old.slots, slots])[turn], is_visual[turn].nonzero().squeeze(1), features)

    def _forward(self, layers: range, group: int) -> None:
        """Run the rows through some layers; earlier turns are seen as the group shows them."""
        if not layers:
            return
        rows, cache = self.rows, self.cache
        slots = rows.slots.int()
        plan = PrefillPlan(
            seq_idx=self.seq_idx, seq_idx_rows=torch.full_like(slots, self.seq_idx),
            slot_idx=slots, queries=self._queries())
        if self.seq.num_cached:
            visible = cache.visible_slots(self.seq_idx, group)
            context = cache.context(self.seq_idx, visible, int(cache.num_tokens[self.seq_idx]))
            order = cache.prompt_order[self.seq_idx]
            plan = replace(plan, context_slots=context.int(),
                           visible_len=visible_lengths(order[rows.slots], order[context]))
        rows.x = self.decoder.forward_layers(
            rows.x, layers=layers, cos_sin=self.decoder.rotary(rows.positions), cache=cache,
            plan=plan, ctx=self.ctx, deepstack=rows.deepstack())

    def _queries(self) -> dict[int, list[tuple[int | slice, Tensor]]]:
        """Where to leave the queries of the anchor row and of those that statistics need."""
        slot = int(self.cache.context(self.seq_idx, torch.empty(0), self.anchor_order + 1)[-1])
        row = int((self.rows.slots == slot).nonzero())  # text, so it is never pruned
        queries = {layer: [(row, out)] for layer, out in self.anchor_queries.items()}
        if self.statistics is not None:
            queries.setdefault(self.statistics.layer_idx, []).extend(self.statistics.queries)
        return queries

    @property
    def anchor_order(self) -> int:
        """Its number among the tokens of the prompt."""
        shift = self.seq.progress.params.watch
        at_end = shift is None or shift.anchor == "last"
        return len(self.seq.prompt.input_ids) - 1 if at_end else self.seq.instruction_end


def _merge(rows: Tensor, merge: MergePlan) -> Tensor:
    """rows [num_visual, hidden_size] -> [num_merged, hidden_size], in fp32 and back."""
    wide = rows.float()
    if merge.reduce == "max":
        members = (merge.weights != 0).index_put(
            (torch.arange(len(merge.targets)), merge.targets), torch.tensor(True))
        return torch.stack([wide[some].amax(dim=0) for some in members]).to(rows.dtype)
    return (wide[merge.targets] + merge.weights @ wide).to(rows.dtype)


def _ranks(order: Tensor) -> Tensor:
    """Row numbers in ascending order of `order`."""
    return order.argsort()
