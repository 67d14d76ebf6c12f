"""bypass="auto": what the cost model decides, and that a bypassed request is a plain one."""

from __future__ import annotations

from pathlib import Path

import pytest

from pydstp import (
    DSTP,
    Engine,
    EngineConfig,
    OptionError,
    PruningConfig,
    SamplingParams,
    SketchReturn,
)
from pydstp.break_even import PRUNING_MS, SIDE_FACTOR
from pydstp.cost import Cost, Rates
from pydstp.cost_model import CostModel
from pydstp.experiments.runs import Asker
from pydstp.selection import SelectionParams
from pydstp.tasks import make_example
from tests.checkpoints import tiny_qwen3_vl
from tests.engine.oracle import picture
from tests.engine.selection import (
    ALL_METHODS,
    IMAGE,
    PROMPT,
    answer,
    method,
    open_engine,
    same,
    selecting,
)

SLOW_PRODUCTS = Rates(read_gb_s=1e9, gemm_gflop_s=1e-3)  # rows of a prompt cost seconds each
SLOW_READS = Rates(read_gb_s=1e-6, gemm_gflop_s=1e-2)  # what is read decides
FREE = Rates(read_gb_s=1e12, gemm_gflop_s=1e12)  # nothing is left to save
NUM_VISUAL = 35
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def engine():
    with open_engine() as engine:
        yield engine


def at(engine, rates: Rates, **options: object):
    """An answer with bypass="auto" on a machine of these rates."""
    engine._runner._break_even._rates = rates
    return answer(engine, 8, bypass="auto", **options)


def request_of(engine, num_new: int = 9, image=IMAGE, **selection: object):
    """A prepared request."""
    sampling = SamplingParams(temperature=0.0, max_new_tokens=num_new)
    return engine._preparation.request(PROMPT, image, sampling, None, SelectionParams(**selection))


@pytest.mark.parametrize("shift", [None, DSTP(), SketchReturn()], ids=["none", "dstp", "sketch"])
@pytest.mark.parametrize("name", [*ALL_METHODS])
def test_below_break_even_all_tokens_are_read(engine, name, shift):
    pruning = selecting(name)
    plain = answer(engine, 8)
    found = at(engine, FREE, pruning=pruning, shift=shift)
    report = found.shift
    assert same(found, plain)
    assert report.reason == "below_break_even" and report.method == name
    assert report.policy == {None: "none", DSTP: "dstp", SketchReturn: "sketch"}[
        shift and type(shift)]
    assert report.kept == report.num_visual == NUM_VISUAL and report.mean_visible == 1.0
    assert report.retention_asked == pytest.approx(1 / 3) and report.retention_achieved == 1.0
    assert report.bytes_per_token == plain.shift.bytes_per_token and report.reserve is None


@pytest.mark.parametrize("name", ["random", "fastv", "divprune"])
def test_above_break_even_nothing_changes(engine, name):
    told = answer(engine, 8, pruning=method(name))
    found = at(engine, SLOW_PRODUCTS, pruning=method(name))
    assert same(found, told) and found.shift.reason is None
    assert found.shift.kept == told.shift.kept < NUM_VISUAL


def test_one_batch_may_hold_both(engine):
    """A method that reads more than it saves, beside one that reads nothing."""
    engine._runner._break_even._rates = SLOW_READS
    sampling = SamplingParams(temperature=0.0, max_new_tokens=6, ignore_eos=True)
    pruners = [method("random"), method("cdpruner")]
    together = engine.generate([IMAGE, IMAGE], [PROMPT] * 2, sampling, pruning=pruners,
                               bypass="auto")
    assert [found.shift.reason for found in together] == [None, "below_break_even"]
    alone = [engine.generate(IMAGE, PROMPT, sampling, pruning=pruners[0]),
             engine.generate(IMAGE, PROMPT, sampling)]
    assert [a.token_ids for a in together] == [a.token_ids for a in alone]


def test_second_passes_lose_where_reads_decide(engine):
    for shift, reason in ((DSTP(), None), (DSTP(trigger="never", applies="redo"), None),
                          (DSTP.recommended(), "below_break_even")):
        pruning = PruningConfig("random", num_kept=11)
        assert at(engine, SLOW_READS, pruning=pruning, shift=shift).shift.reason == reason


def test_small_pictures_and_pictures_that_were_made_smaller(engine):
    engine._runner._break_even._rates = FREE
    resized = at(engine, FREE, pruning=PruningConfig("resize", 0.5))
    assert resized.shift.reason is None and resized.shift.kept < NUM_VISUAL
    text = engine.generate(None, PROMPT, pruning=method("random"), bypass="auto")
    assert text.shift.reason == "no_image"
    whole = at(engine, FREE, pruning=method("random", 1.0))
    assert whole.shift.reason == "retention_is_one"


def test_a_chat_decides_at_its_first_picture(engine):
    """What was pruned in an earlier turn stays pruned, whatever a later turn would decide."""
    with engine.chat(pruning=method("random"), bypass="auto") as chat:
        engine._runner._break_even._rates = SLOW_PRODUCTS
        first = chat.send(PROMPT, IMAGE, SamplingParams(max_new_tokens=4))
        engine._runner._break_even._rates = FREE
        second = chat.send(PROMPT, picture(96, 64), SamplingParams(max_new_tokens=4))
    assert first.shift.reason is None and second.shift.reason is None
    assert second.shift.kept < second.shift.num_visual == NUM_VISUAL + 6
    with engine.chat(pruning=method("random"), bypass="auto") as chat:
        third = chat.send(PROMPT, IMAGE, SamplingParams(max_new_tokens=4))
        fourth = chat.send("And now?", None, SamplingParams(max_new_tokens=4))
    assert third.shift.reason == "below_break_even"
    assert fourth.shift.kept == fourth.shift.num_visual == NUM_VISUAL


def test_streams_take_it_and_it_can_be_the_engines_own():
    path, config = tiny_qwen3_vl(), EngineConfig(max_batch=1, num_threads=1)
    with Engine(path, dtype="float32", config=config, bypass="auto",
                pruning=method("random")) as engine:
        engine._runner._break_even._rates = FREE
        assert answer(engine, 4).shift.reason == "below_break_even"
        assert answer(engine, 4, bypass="never").shift.reason is None
        with engine.stream(IMAGE, PROMPT, SamplingParams(max_new_tokens=3)) as pieces:
            list(pieces)
        assert pieces.generation.shift.reason == "below_break_even"


def test_rates_are_measured_once_and_only_when_asked_for():
    with open_engine() as engine:
        decision = engine._runner._break_even
        answer(engine, 2, pruning=method("random"))
        assert decision._rates is None
        answer(engine, 2, pruning=method("random"), bypass="auto")
        first = decision._rates
        assert first.read_gb_s > 0 and first.gemm_gflop_s > 0
        answer(engine, 2, pruning=method("random"), bypass="auto")
        assert decision._rates is first


@pytest.mark.parametrize(("name", "first"), [("random", 0), ("fastv", 1)])
def test_work_is_the_sum_of_its_parts(engine, name, first):
    seq = request_of(engine, pruning=method(name), shift=DSTP())
    full, pruned = engine._runner._break_even.work_of(seq)
    model = CostModel(engine.model_config, 4, engine._runner._weight_bytes)
    rows, kept, num_layers = len(seq.prompt.input_ids), 12, engine.model_config.text.num_layers
    dropped, text = NUM_VISUAL - kept, rows - NUM_VISUAL + 4.5
    assert full.prompt == model.prefill(rows, rows / 2)
    assert full.step == model.decode_step(text + NUM_VISUAL)
    narrow = rows - dropped
    upper = num_layers - first
    assert pruned.prompt.flops == pytest.approx(
        model.prefill(rows, rows / 2, num_layers=first).flops
        + model.prefill(narrow, narrow / 2, num_layers=upper).flops)
    assert pruned.later.flops == pytest.approx(
        SIDE_FACTOR * model.prefill(dropped, rows / 2, num_layers=upper).flops)
    visible = kept + dropped * first / num_layers
    assert pruned.step.num_bytes == pytest.approx(model.decode_step(text + visible).num_bytes)
    ms = PRUNING_MS + 1e3 * pruned.prompt.num_bytes / 1e9 + 1e3 * pruned.prompt.flops / 1e9
    assert pruned.ms(1, Rates(1.0, 1.0)) == pytest.approx(ms)


def test_reserve_modes_say_when_the_rest_is_computed(engine):
    works = {mode: engine._runner._break_even.work_of(
        request_of(engine, pruning=method("random"), shift=DSTP(), reserve=mode))[1]
        for mode in ("lazy", "side", "full")}
    full, _ = engine._runner._break_even.work_of(request_of(engine, pruning=method("random")))
    assert works["full"].prompt.flops == full.prompt.flops and works["full"].later == Cost()
    assert works["side"].later == Cost()
    assert works["side"].prompt.flops == pytest.approx(
        works["lazy"].prompt.flops + works["lazy"].later.flops)


def test_same_step_return_reads_its_key_copies(engine):
    text = engine.model_config.text
    for bits, row in ((4, text.head_dim // 2 + 4), (8, text.head_dim + 4),
                      (16, 4 * text.head_dim)):
        steps = [engine._runner._break_even.work_of(
            request_of(engine, pruning=method("random"), shift=shift))[1].step.num_bytes
            for shift in (None, SketchReturn(max_returned=2, bits=bits, first_layer=1))]
        joined = 2 * 2 * text.num_kv_heads * text.head_dim * 4
        expected = (text.num_layers - 1) * (23 * text.num_kv_heads * row + joined)
        assert steps[1] - steps[0] == pytest.approx(expected)


def test_int8_weights_have_rates_too():
    with open_engine(weights="int8") as engine:
        assert answer(engine, 2, pruning=method("random"), bypass="auto").shift.reason in (
            None, "below_break_even")
        assert engine._runner._break_even._rates.read_gb_s > 0


@pytest.mark.parametrize("value", ["always", None, True, 1])
def test_other_values_are_refused(engine, value):
    with pytest.raises(OptionError, match="bypass: expected one of"):
        engine.generate(IMAGE, PROMPT, bypass=value)


def test_an_evaluation_refuses_it():
    with Engine(tiny_qwen3_vl(), dtype="float32", bypass="auto",
                config=EngineConfig(max_batch=2, num_threads=1)) as engine:
        engine._runner._break_even._rates = FREE
        examples = [make_example("read", seed=seed, rows=3, cols=3) for seed in range(2)]
        with pytest.raises(OptionError, match="bypass: expected 'never'"):
            list(Asker(engine, max_new_tokens=2).ask(examples, pruning=method("random")))
        with pytest.raises(OptionError, match="bypass: expected 'never'"):
            Asker(engine, max_new_tokens=2).ask_alone(examples[0], pruning=method("random"))


def test_the_example_of_the_page_works(capsys, monkeypatch) -> None:
    page = (ROOT / "docs" / "where_pruning_pays.md").read_text()
    code = page.split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(ROOT)
    scope: dict[str, object] = {}
    exec(compile(code, "docs/where_pruning_pays.md", "exec"), scope)
    scope["engine"].close()
    assert capsys.readouterr().out.strip() in ("None", "below_break_even")
