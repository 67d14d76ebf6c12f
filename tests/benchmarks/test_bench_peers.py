"""Engines behind a pipe, and what is done for OpenVINO; its package is replaced by a stand-in."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from benchmarks import bench_peers, common
from pydstp.bench import export_openvino, peer_server
from pydstp.bench.server import HERE, Server, peer_command
from pydstp.bench.server import export_openvino as export
from pydstp.bench.turns import Case, peer_ratios
from pydstp.errors import CapacityError, PydstpError

ENGINE = """
import sys
sys.path.insert(0, {root!r})
from pydstp.bench.peer_server import serve
from pydstp.errors import CapacityError

class Engine:
    def answer(self, **options):
        print("noise on stdout")
        if "fail" in options:
            raise CapacityError(options["fail"])
        if "die" in options:
            sys.exit("the last words")
        return options

serve(Engine)
"""


def start(program: str) -> Server:
    return Server("stand-in", [sys.executable, "-c", program])


def test_calls_return_what_the_engine_returns_and_raise_what_it_raises() -> None:
    with start(ENGINE.format(root=str(HERE.parents[1]))) as server:
        assert server.call("answer", image="a.png", new_tokens=3) == {
            "image": "a.png", "new_tokens": 3}
        with pytest.raises(CapacityError, match="no room"):
            server.call("answer", fail="no room")
        with pytest.raises(PydstpError, match="stand-in: AttributeError"):
            server.call("paint")
        assert server.call("answer", again=True) == {"again": True}
        with pytest.raises(PydstpError, match="ended with status 1: .*the last words"):
            server.call("answer", die=True)
        with pytest.raises(PydstpError, match="ended with status 1"):
            server.call("answer")


def test_a_peer_that_cannot_open_says_why(tmp_path) -> None:
    with pytest.raises(PydstpError, match="peer: "):
        Server("peer", peer_command(sys.executable, "openvino", tmp_path, 1))


class Statistic:
    def __init__(self, mean: float) -> None:
        self.mean = mean


def stand_in(calls: list[Any]) -> types.ModuleType:
    """openvino_genai as far as it is used."""
    class Pipeline:
        def __init__(self, path: str, device: str, **options: Any) -> None:
            calls.append((path, device, options))

        def generate(self, prompt: str, images: list[Any], generation_config: Any) -> Any:
            calls.append((prompt, images[0].shape, vars(generation_config)))
            metrics = types.SimpleNamespace(
                get_ttft=lambda: Statistic(50.0), get_tpot=lambda: Statistic(4.0),
                get_prepare_embeddings_duration=lambda: Statistic(30.0),
                get_num_input_tokens=lambda: 77, get_num_generated_tokens=lambda: 5)
            return types.SimpleNamespace(perf_metrics=metrics)

    module = types.ModuleType("openvino_genai")
    module.VLMPipeline, module.GenerationConfig = Pipeline, types.SimpleNamespace
    return module


def test_openvino_is_asked_for_what_the_others_are(tmp_path, monkeypatch) -> None:
    calls: list[Any] = []
    monkeypatch.setitem(sys.modules, "openvino_genai", stand_in(calls))
    openvino = types.ModuleType("openvino")
    openvino.Tensor = lambda pixels: pixels
    monkeypatch.setitem(sys.modules, "openvino", openvino)
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    peer = peer_server.OpenVINO("folder", 2)
    answer = peer.answer(str(tmp_path / "a.png"), "What?", 5)
    peer.answer(str(tmp_path / "a.png"), "What?", 5, retention=33)
    assert calls[0] == ("folder", "CPU", {"INFERENCE_NUM_THREADS": 2})
    greedy = {"max_new_tokens": 5, "min_new_tokens": 5, "ignore_eos": True, "do_sample": False}
    assert calls[1] == ("What?", (30, 40, 3), greedy)
    assert calls[2][2] == greedy | {"pruning_ratio": 67}
    assert answer["decode_ms"] == 4.0 and answer["prefill_ms"] == 20.0
    assert answer["first_token_ms"] == answer["preprocess_ms"] + 50.0
    assert answer["prompt_tokens"] == 77


def test_packed_linears_give_the_same_numbers() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(32, 48, bias=False), torch.nn.Linear(48, 16))
    x = torch.randn(5, 32)
    expected = model(x)
    peer_server.pack_linears(model)
    assert torch.allclose(model(x), expected, atol=1e-5)
    assert "forward" in vars(model[0]) and "forward" in vars(model[1])


def test_a_checkpoint_is_respelled_for_the_exporter(tmp_path) -> None:
    rope = {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20]}
    config = {"text_config": {"hidden_size": 8, "rope_parameters": rope},
              "vision_config": {"model_type": "qwen3_vl_vision"}}
    source, copy = tmp_path / "new", tmp_path / "old"
    source.mkdir()
    copy.mkdir()
    (source / "config.json").write_text(json.dumps(config))
    (source / "tokenizer_config.json").write_text(json.dumps(
        {"backend": "tokenizers", "extra_special_tokens": ["<a>"], "eos_token": "<b>"}))
    (source / "model.safetensors").write_bytes(b"weights")
    export_openvino.write_copy(source, copy)
    assert json.loads((copy / "config.json").read_text()) == {
        "text_config": {"hidden_size": 8, "rope_theta": 5e6, "rope_scaling": {
            "rope_type": "default", "mrope_section": [24, 20, 20]}},
        "vision_config": {"model_type": "qwen3_vl"}}
    assert json.loads((copy / "tokenizer_config.json").read_text()) == {"eos_token": "<b>"}
    assert (copy / "model.safetensors").read_bytes() == b"weights"
    assert json.loads((source / "config.json").read_text()) == config


def test_an_export_that_is_there_is_not_made_again_and_one_that_fails_says_so(tmp_path) -> None:
    (tmp_path / "openvino_tokenizer.xml").write_text("")
    export("no/python", Path("checkpoint"), tmp_path, "fp16")
    with pytest.raises(PydstpError, match="openvino: the export of checkpoint ended with status"):
        export("no/python", Path("checkpoint"), tmp_path / "other", "fp16")


def test_ratios_are_taken_turn_by_turn() -> None:
    def answer(ms: float) -> dict[str, Any]:
        return dict.fromkeys(("preprocess_ms", "vision_ms", "prefill_ms", "first_token_ms",
                              "decode_ms"), ms)

    found = {Case("pydstp"): [answer(1.0), answer(2.0)], Case("pydstp", 33): [answer(1.0)] * 2,
             Case("openvino"): [answer(3.0), answer(4.0)],
             Case("openvino", 33): [answer(5.0)] * 2}
    first, second = peer_ratios(found)
    assert first["decode_ms"] == {"median": 2.5, "min": 2.0, "max": 3.0, "count": 2}
    assert first["picture_ms"]["max"] == 3.0
    assert second["retention"] == 33 and second["first_token_ms"]["median"] == 5.0


def test_every_setting_is_recorded(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(common, "RESULTS", tmp_path / "results")
    pages = bench_peers.run(*bench_peers.parse_arguments(
        ["--shape", "tiny", "--threads", "1", "--weights", "int8", "--against", "--folder",
         str(tmp_path / "build"), "--image-size", "64x64", "--new-tokens", "2", "--repeats", "1"]))
    assert [page.name for page in pages] == ["peers-tiny-int8-1t.md"]
    assert pages[0].read_text().startswith("# tiny, int8 weights, 1 threads\n")
    assert json.loads(pages[0].with_suffix(".json").read_text())["ratios"] == []
