"""Decode steps on an emulated GPU: graphs, what is read back, the source of kernels, and errors."""

from __future__ import annotations

import pytest
import torch

from pydstp import (
    CapacityError,
    DeviceError,
    DyCoke,
    Engine,
    EngineConfig,
    PydstpError,
    SamplingParams,
    SketchReturn,
    VisionPulse,
    ops,
)
from pydstp.decode_passes import bucket
from tests.checkpoints import tiny_qwen3_vl
from tests.emulated_gpu import emulated_gpu
from tests.engine.oracle import picture
from tests.engine.selection import ALWAYS, IMAGE, PROMPT, dstp, method

CONFIG = EngineConfig(max_batch=4, max_visual_tokens=128, max_text_tokens=256, num_threads=1)
GREEDY = {"temperature": 0.0, "ignore_eos": True}
DRAWN = {"temperature": 1.0, "seed": 1, "ignore_eos": True}
# What a step reads back, in copies. The first is what the next token is taken from, and with it the
# lengths of lists; a policy with a similarity is asked for its decision before.
READS = {
    "greedy": (GREEDY, {}, 1), "drawn": (DRAWN, {}, 1),
    "dstp": (GREEDY, {"pruning": method("fastv"), "shift": dstp(threshold=0.5)}, 2),
    "dstp, drawn": (DRAWN, {"pruning": method("fastv"), "shift": dstp(threshold=0.5)}, 2),
    "dstp, swapping": (GREEDY, {"pruning": method("fastv"),
                                "shift": dstp(**ALWAYS, retrigger="reselect")}, 2),
    "dstp, stages": (GREEDY, {"pruning": method("pyramiddrop"), "shift": dstp()}, 5),
    "sketch": (GREEDY, {"pruning": method("fastv"), "shift": SketchReturn()}, 1),
    "pulse": (GREEDY, {"shift": VisionPulse()}, 1), "dycoke": (GREEDY, {"shift": DyCoke()}, 1)}


@pytest.fixture
def gpu(monkeypatch):
    with emulated_gpu(monkeypatch) as gpu:
        yield gpu


@pytest.fixture
def engine(gpu):
    with Engine(tiny_qwen3_vl(), device="cuda", dtype="float32", config=CONFIG) as engine:
        yield engine


def answer(engine, count, params, **options):
    return engine.generate(IMAGE, PROMPT, SamplingParams(max_new_tokens=count, **params), **options)


@pytest.mark.parametrize("name", READS)
def test_what_a_step_reads_back(engine, gpu, name):
    params, options, expected = READS[name]
    reads = []
    for count in (4, 12):
        before = len(gpu.reads)
        answer(engine, count, params, reserve="side" if "shift" in options else "auto", **options)
        reads.append(gpu.reads[before:])
    assert len(reads[1]) - len(reads[0]) == 8 * expected, reads[1][-2 * expected:]


def test_a_step_is_one_graph_per_stretch_of_layers(engine, gpu):
    for options, expected in (({}, 1), ({"shift": VisionPulse()}, 2)):
        answer(engine, 4, GREEDY, **options)  # captures
        before, launches = gpu.replays, gpu.launches
        answer(engine, 10, GREEDY, **options)
        assert gpu.replays - before == 9 * expected
        first = gpu.launches - launches
        answer(engine, 11, GREEDY, **options)
        assert gpu.launches - launches - 2 * first <= 6, "kernels outside of the graph"


def test_batches_share_graphs_and_give_the_tokens_of_the_cpu(engine, gpu):
    assert [bucket(n, 6) for n in range(1, 7)] == [1, 2, 4, 4, 6, 6]
    sampling = SamplingParams(max_new_tokens=6, **GREEDY)
    shift = [dstp(**ALWAYS), None, SketchReturn(max_returned=2)]
    options = {"pruning": method("fastv"), "shift": shift}
    prompts = [PROMPT, "And now?", "Which one is red?"]
    found = engine.generate([IMAGE, picture(96, 64), IMAGE], prompts, sampling, **options)
    with Engine(tiny_qwen3_vl(), dtype="float32", config=CONFIG) as cpu:
        wanted = cpu.generate([IMAGE, picture(96, 64), IMAGE], prompts, sampling, **options)
    assert [row.token_ids for row in found] == [row.token_ids for row in wanted]
    rows = {kind[0] for kind in engine._runner._passes._passes}
    assert rows == {4}


@pytest.mark.skipif("simt" not in ops.available_isas(), reason="a build without the emulation")
def test_whole_answers_run_on_the_source_of_the_gpu_kernels(engine):
    policies = {"none": {}, "dstp": {"pruning": method("fastv"), "shift": dstp(**ALWAYS)},
                "sketch": {"pruning": method("divprune"), "shift": SketchReturn(max_returned=2)}}
    sampling = SamplingParams(max_new_tokens=4, **GREEDY)
    with Engine(tiny_qwen3_vl(), dtype="float32", config=CONFIG) as cpu:
        wanted = {name: cpu.generate(picture(96, 96), PROMPT, sampling, **options)
                  for name, options in policies.items()}
    ops.set_isa("simt")
    try:
        for name, options in policies.items():
            found = engine.generate(picture(96, 96), PROMPT, sampling, **options)
            assert found.token_ids == wanted[name].token_ids, name
            assert found.shift.trigger_steps == wanted[name].shift.trigger_steps, name
    finally:
        ops.set_isa(None)


def test_logits_that_are_not_finite_are_an_error(engine, monkeypatch):
    decoder = engine._runner.model.language_model
    logits = decoder.logits
    monkeypatch.setattr(decoder, "logits", lambda x, ctx: logits(x, ctx) * torch.nan)
    with pytest.raises(PydstpError, match="logits: expected finite values, got NaN or infinity"):
        answer(engine, 2, GREEDY)


@pytest.mark.parametrize("place", ["encode_images", "language_model.forward_layers"])
def test_a_request_that_finds_no_memory_fails_and_the_engine_lives(engine, monkeypatch, place):
    wanted = answer(engine, 6, GREEDY).token_ids
    owner, _, name = place.rpartition(".")
    module = engine._runner.model.get_submodule(owner)

    def fail(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    with monkeypatch.context() as patch:
        patch.setattr(module, name, fail)
        with pytest.raises(CapacityError, match="memory: the GPU has no room .*2.00 GiB.*lower"):
            answer(engine, 6, GREEDY)
    assert answer(engine, 6, GREEDY).token_ids == wanted


def test_a_decode_step_that_finds_no_memory_fails_and_the_engine_lives(engine, monkeypatch):
    def fail(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB.")

    with monkeypatch.context() as patch:
        patch.setattr(engine._runner._passes, "run", fail)
        with pytest.raises(CapacityError, match="memory: the GPU has no room"):
            answer(engine, 6, GREEDY)
    assert len(answer(engine, 6, GREEDY).token_ids) == 6
    assert engine._cache.num_free == CONFIG.max_batch


def test_a_cache_that_finds_no_memory_is_refused(gpu, monkeypatch):
    def fail(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr("pydstp.engine.KVCache", fail)
    with pytest.raises(CapacityError, match="memory: the GPU has no room .*lower"):
        Engine(tiny_qwen3_vl(), device="cuda", config=CONFIG)


def test_weights_in_8_bits_need_their_kernels(gpu, monkeypatch):
    for name in ("quantised_linear", "dequantise_rows"):
        monkeypatch.delattr(f"pydstp._C.{name}_cuda", raising=False)
    with pytest.raises(DeviceError, match="weights: 'int8' on cuda:0: "
                                          "quantised_linear has no GPU version"):
        Engine(tiny_qwen3_vl(), device="cuda", weights="int8", config=CONFIG)
