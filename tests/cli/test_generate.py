"""`pydstp generate`: what it prints where, which flags it takes, how it refuses."""

from __future__ import annotations

import json
from dataclasses import fields

import pytest

import pydstp
from pydstp import cli
from pydstp.config import EngineConfig, SamplingParams

SHORT = ["--max-new-tokens", "12", "--ignore-eos", "--temperature", "0"]


def expected(model: str, images: list[str], prompt: str) -> pydstp.Generation:
    sampling = SamplingParams(temperature=0.0, max_new_tokens=12, ignore_eos=True)
    with pydstp.Engine(model, config=EngineConfig(max_batch=1)) as engine:
        return engine.generate(images, prompt, sampling)


def test_the_answer_goes_to_stdout_and_the_rest_to_stderr(model, picture, capsys) -> None:
    arguments = ["generate", "--model", model, "--image", picture, "--prompt", "What is it?"]
    assert cli.main(arguments + SHORT) == 0
    out, err = capsys.readouterr()
    assert out == expected(model, [picture], "What is it?").text + "\n"
    assert "12 tokens" in err and "(length)" in err


def test_json_is_one_object_with_the_whole_result(model, picture, capsys) -> None:
    arguments = ["generate", "--model", model, "--image", picture, "--image", picture,
                 "--prompt", "Which?", "--json", "--logprobs", "2"]
    assert cli.main(arguments + SHORT) == 0
    result = json.loads(capsys.readouterr().out)
    wanted = expected(model, [picture, picture], "Which?")
    assert result["text"] == wanted.text and result["token_ids"] == wanted.token_ids
    assert result["finish_reason"] == "length"
    assert [image["num_tokens"] for image in result["images"]] == [
        image.num_tokens for image in wanted.images]
    assert len(result["logprobs"]) == 12 and len(result["logprobs"][0]["top"]) == 2
    assert result["timings"]["time_to_first_token_ms"] > 0


def test_a_prompt_needs_no_picture(model, capsys) -> None:
    assert cli.main(["generate", "--model", model, "--prompt", "Hello"] + SHORT) == 0
    assert capsys.readouterr().out == expected(model, [], "Hello").text + "\n"


def test_weights_in_8_bits(model, capsys) -> None:
    arguments = ["generate", "--model", model, "--prompt", "Hello", "--weights", "int8"]
    assert cli.main(arguments + SHORT) == 0
    sampling = SamplingParams(temperature=0.0, max_new_tokens=12, ignore_eos=True)
    with pydstp.Engine(model, weights="int8") as engine:
        assert capsys.readouterr().out == engine.generate(None, "Hello", sampling).text + "\n"


def test_a_shrunk_picture_is_mentioned(model, picture, capsys) -> None:
    arguments = ["generate", "--model", model, "--image", picture, "--prompt", "What?",
                 "--min-pixels", "4096", "--max-pixels", "8192"]
    assert cli.main(arguments + SHORT) == 0
    assert "picture 1 was shrunk from 128 x 96 to" in capsys.readouterr().err


def test_every_sampling_parameter_has_a_flag() -> None:
    flags = (*cli.SAMPLING_FLAGS, cli.LOGPROBS_FLAG)
    names = {name.removeprefix("--").replace("-", "_") for name, _ in flags}
    assert names == {field.name for field in fields(SamplingParams)}


def test_every_engine_flag_is_an_option_of_the_engine() -> None:
    names = {name.removeprefix("--").replace("-", "_") for name, _ in cli.ENGINE_FLAGS}
    assert names <= {field.name for field in fields(EngineConfig)}


def test_flags_reach_the_parameters() -> None:
    options = cli.build_parser().parse_args([
        "generate", "--prompt", "p", "--temperature", "0.5", "--top-k", "3", "--top-p", "0.9",
        "--min-p", "0.1", "--repetition-penalty", "1.1", "--presence-penalty", "0.2",
        "--seed", "7", "--max-new-tokens", "5", "--min-new-tokens", "2", "--ignore-eos",
        "--stop", "a", "--stop", "b", "--logprobs", "1"])
    assert cli.sampling_params(options) == SamplingParams(
        temperature=0.5, top_k=3, top_p=0.9, min_p=0.1, repetition_penalty=1.1,
        presence_penalty=0.2, seed=7, max_new_tokens=5, min_new_tokens=2, ignore_eos=True,
        stop=("a", "b"), logprobs=1)


def test_what_is_not_given_is_left_to_the_checkpoint() -> None:
    options = cli.build_parser().parse_args(["generate", "--prompt", "p"])
    assert cli.sampling_params(options) == SamplingParams()


@pytest.mark.parametrize(("arguments", "words"), [
    (["--prompt", "p", "--model", "no/such/folder"], "no/such/folder"),
    (["--prompt", "p", "--model", ""], "path: expected the path of a folder"),
    (["--prompt", "p", "--image", "missing.png"], "missing.png"),
    (["--prompt", "p", "--temperature", "-1"], "temperature: expected a finite number in [0, inf)"),
    (["--prompt", "p", "--dtype", "int3"], "int3"),
    (["--prompt", "p", "--device", "tpu"], "tpu"),
    (["--prompt", "p", "--max-new-tokens", "1000000"], "max_new_tokens"),
    (["--prompt", ""], "prompt"),
    (["--prompt", "p", "--num-threads", "0"], "num_threads"),
    (["--prompt", "p", "--weights", "int4"], "weights: expected 'float' or 'int8', got 'int4'"),
])
def test_refusals_are_one_line_and_status_2(arguments, words, model, capsys) -> None:
    if "--model" not in arguments:
        arguments = [*arguments, "--model", model]
    assert cli.main(["generate", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ") and err.count("\n") == 1 and words in err


@pytest.mark.parametrize("arguments", [
    [], ["generate"], ["paint"], ["generate", "--prompt", "p", "--top-k", "many"],
    ["generate", "--prompt", "p", "--max-pixels", "all"], ["generate", "--prompt", "p", "--x"]])
def test_unknown_commands_and_values_show_the_usage(arguments, capsys) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert stopped.value.code == 2
    assert "usage: pydstp" in capsys.readouterr().err
