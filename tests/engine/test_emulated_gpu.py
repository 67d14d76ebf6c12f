"""The engine with device="cuda" against the engine on the CPU.

Everywhere on an emulated GPU: `tests/emulated_gpu.py` refuses what torch would refuse, so that
every tensor lies where it has to. Kernels are those of the CPU then, and answers the CPU's;
attention over the prompt is the library's, which rounds differently. Where there is a GPU the same
tests run on it too, with TF32 off. There a token may differ where the two best logits of the CPU
are closer than 1e-5; nothing behind it is compared, and the test says so.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from pydstp import (
    DyCoke,
    Engine,
    EngineConfig,
    Generation,
    SamplingParams,
    SketchReturn,
    VisionPulse,
)
from tests.checkpoints import tiny_qwen3_vl
from tests.emulated_gpu import CUDA, emulated_gpu
from tests.engine.oracle import picture
from tests.engine.selection import ALL_METHODS, ALWAYS, IMAGE, PROMPT, dstp, method
from tests.internvl_checkpoints import tiny_internvl

EMULATED, GPUS = "emulated", ["cuda"] if torch.cuda.is_available() else []
SAMPLING = SamplingParams(temperature=0.0, max_new_tokens=8, ignore_eos=True, logprobs=4)
SWAPS = {"cpts": {}, "hard": {"swap": "hard"}, "merge": {"swap": "merge"}, "full": {"swap": "full"},
         "add": {"swap": "add", "max_returned": 3}, "redo": {"applies": "redo"},
         "early": {"applies": "early", "monitor_layers": (1, 2)}, "joint": {"scores": "joint"},
         "global": {"norm": "global_then_mean"}, "short": {"expand_steps": 2}}
POLICIES = {
    "sketch": SketchReturn(max_returned=3), "sketch, exact": SketchReturn(max_returned=3, bits=16),
    "sketch, by mass": SketchReturn(max_returned=8, mass=0.05, per_head=True),
    "gated": SketchReturn(max_returned=3, threshold=0.9, monitor_layers="post_prune"),
    "pulse": VisionPulse(), "tempered": VisionPulse(importance="tempered", temperature=0.1),
    "dycoke": DyCoke(1.1, 0.2, 1)}


@dataclass(frozen=True)
class Pair:
    """Engines of one checkpoint on the CPU, and on a GPU that is emulated."""

    cpu: Engine
    cuda: Engine

    def check(self, **options: object) -> Generation:
        """The same answer from both; returns the GPU's."""
        want = self.cpu.generate(IMAGE, PROMPT, SAMPLING, **options)
        found = self.cuda.generate(IMAGE, PROMPT, SAMPLING, **options)
        assert_same(found, want)
        return found


def assert_same(found: Generation, want: Generation) -> None:
    """Tokens, decisions and what was read; log-probabilities up to rounding."""
    if GPUS and found.token_ids != want.token_ids:
        pairs = zip(found.token_ids, want.token_ids, strict=True)
        place = next(i for i, (ours, theirs) in enumerate(pairs) if ours != theirs)
        (_, best), (_, second) = want.logprobs[place].top[:2]
        assert best - second < 1e-5, f"token {place} differs, and the CPU's best are not close"
        warnings.warn(f"token {place} of {len(want.token_ids)} differs by rounding", stacklevel=2)
        return
    assert found.token_ids == want.token_ids
    for ours, theirs in zip(found.logprobs, want.logprobs, strict=True):
        assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-4)
    for name in ("kept", "triggers", "trigger_steps", "mean_visible", "bytes_per_token",
                 "side_passes", "forwards_per_token", "visual_rows"):
        assert getattr(found.shift, name) == getattr(want.shift, name), name


def open_pair(path: Path, where: str, **options: object) -> Iterator[Pair]:
    config = EngineConfig(max_batch=4, max_visual_tokens=256, max_text_tokens=256, num_threads=1)
    patch = pytest.MonkeyPatch()
    options = {"dtype": "float32", "config": config, **options}
    with Engine(path, **options) as cpu, ExitStack() as stack:
        if where == EMULATED:
            stack.enter_context(emulated_gpu(patch))
        else:
            patch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
        yield Pair(cpu, stack.enter_context(Engine(path, device="cuda", **options)))
    patch.undo()


@pytest.fixture(scope="module", params=[EMULATED, *GPUS])
def where(request: pytest.FixtureRequest) -> str:
    """Which GPU: the emulated one, and "cuda" where torch reaches one."""
    return request.param


@pytest.fixture(scope="module")
def pair(where) -> Iterator[Pair]:
    yield from open_pair(tiny_qwen3_vl(), where)


@pytest.fixture(scope="module", params=[0, 1], ids=["qwen3-vl", "internvl"])
def families(request: pytest.FixtureRequest, where: str) -> Iterator[Pair]:
    yield from open_pair((tiny_qwen3_vl, tiny_internvl)[request.param](), where)


def test_weights_cache_and_workspaces_lie_on_the_device(pair):
    assert pair.cuda.device == CUDA and pair.cpu.device == torch.device("cpu")
    cache, runner = pair.cuda._cache, pair.cuda._runner
    for name, weight in runner.model.named_parameters():
        assert weight.device == CUDA, name
    assert runner._shift.queries.device == CUDA
    held = {**vars(cache), **vars(cache.shift), **vars(runner)}
    on_host = {"list_lens", "groups", "visual_len", "text_rows", "num_tokens", "born", "left",
               "prompt_order"}
    places = {name: tensor.device for name, tensor in held.items()
              if isinstance(tensor, torch.Tensor)}
    assert {name for name, device in places.items() if device != CUDA} == on_host
    assert {"visual", "text", "visible_len", "text_len", "state", "_workspace"} <= set(places)


@pytest.mark.parametrize("name", ALL_METHODS)
def test_pruning(pair, name):
    assert pair.check(pruning=method(name)).shift.kept < 35


@pytest.mark.parametrize("pruning", ["look_m", "resize", "none"])
def test_methods_that_act_elsewhere(pair, pruning):
    pair.check(pruning=method(pruning) if pruning != "none" else None)


@pytest.mark.parametrize("name", SWAPS)
@pytest.mark.parametrize("pruning, reserve", [("fastv", "side"), ("visionzip", "lazy")])
def test_swaps(pair, pruning, reserve, name):
    policy = dstp(**{**ALWAYS, **SWAPS[name]})
    reserve = "side" if name == "early" else reserve
    swapped = pair.check(pruning=method(pruning), shift=policy, reserve=reserve)
    assert swapped.shift.triggers > 0


@pytest.mark.parametrize("reserve", ["full", "side", "lazy", "deferred"])
def test_reserves_and_stages(pair, reserve):
    policy = dstp(**{**ALWAYS, "monitor_layers": "all"})
    pair.check(pruning=method("pyramiddrop"), shift=policy, reserve=reserve, log_steps="attention")


@pytest.mark.parametrize("name", POLICIES)
def test_other_policies(families, name):
    families.check(pruning=method("divprune"), shift=POLICIES[name], log_steps=True)


def test_families_and_their_pruned_answers(families):
    families.check()
    families.check(pruning=method("fastervlm"), shift=dstp(**ALWAYS))


@pytest.mark.parametrize("options", [{"moe": True}, {"tied": False}], ids=["moe", "untied"])
def test_other_decoders(options, where):
    for pair in open_pair(tiny_qwen3_vl(**options), where):
        pair.check(pruning=method("fastv"), shift=dstp(**ALWAYS))


def test_bfloat16_runs(where):
    for pair in open_pair(tiny_qwen3_vl(), where, dtype="bfloat16"):
        answer = pair.cuda.generate(IMAGE, PROMPT, SAMPLING, pruning=method("fastv"),
                                    shift=dstp(**ALWAYS))
        assert len(answer.token_ids) == 8


def test_batches_and_sampling(pair):
    drawn = SamplingParams(temperature=1.0, top_p=0.9, max_new_tokens=6, ignore_eos=True, seed=3,
                           repetition_penalty=1.2, logprobs=0)
    prunings = [method("fastv"), None, method("visionzip"), method("pooling"), method("dart")]
    options = {"pruning": prunings, "shift": [dstp(**ALWAYS), None, None, dstp(**ALWAYS), None]}
    wanted, found = (engine.generate([IMAGE, picture(96, 64), None, IMAGE, IMAGE], [PROMPT] * 5,
                                     drawn, **options) for engine in (pair.cpu, pair.cuda))
    for ours, theirs in zip(found, wanted, strict=True):
        assert_same(ours, theirs)


def test_tokens_are_chosen_where_logits_lie(pair):
    """A neighbour that wants log-probabilities sends all logits to the host while it runs."""
    common = {"max_new_tokens": 10, "ignore_eos": True}
    params = [SamplingParams(temperature=1.0, top_p=0.9, repetition_penalty=1.3, seed=3, **common),
              SamplingParams(temperature=0.7, top_k=20, presence_penalty=0.5, seed=4, **common),
              SamplingParams(temperature=0.0, repetition_penalty=1.2, min_new_tokens=7, **common),
              SamplingParams(temperature=0.0, logprobs=2, max_new_tokens=4, ignore_eos=True)]
    for chosen in (params, params[:3]):
        wanted, found = (engine.generate([IMAGE] * len(chosen), [PROMPT] * len(chosen), chosen)
                         for engine in (pair.cpu, pair.cuda))
        assert [answer.token_ids for answer in found] == [answer.token_ids for answer in wanted]


def test_chats(families):
    answers = []
    for engine in (families.cpu, families.cuda):
        with engine.chat(pruning=method("fastv"), shift=dstp(**ALWAYS)) as chat:
            answers.append([chat.send("What is this?", IMAGE, SAMPLING),
                            chat.send("And this?", picture(96, 64), SAMPLING),
                            chat.send("Really?", None, SAMPLING)])
    for ours, theirs in zip(*answers, strict=True):
        assert_same(theirs, ours)
        assert ours.cached_tokens == theirs.cached_tokens


def test_torch_refuses_tensors_of_two_devices(pair):
    here, there = torch.ones(3, device="cpu"), torch.ones(3, device="cuda")
    for call in (lambda: here + there, lambda: torch.cat([here, there]), lambda: there.numpy(),
                 lambda: here[there.long()], lambda: there.__setitem__(here.long(), here)):
        with pytest.raises((RuntimeError, TypeError), match=r"device|convert"):
            call()
    assert (there + here[0])[here.long()].device == CUDA
