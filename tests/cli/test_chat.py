"""`pydstp chat`, its lines read from a pipe."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import nullcontext

import pytest

import pydstp
from pydstp import cli
from pydstp.config import EngineConfig, SamplingParams

SHORT = ["--max-new-tokens", "8", "--ignore-eos", "--temperature", "0"]


@pytest.fixture
def chat(monkeypatch, capsys, model) -> Callable[..., tuple[str, str]]:
    """Run a conversation of these lines; returns what came to stdout and to stderr."""

    def run(*lines: str, flags: tuple[str, ...] = ()) -> tuple[str, str]:
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        assert cli.main(["chat", "--model", model, *SHORT, *flags]) == 0
        return tuple(capsys.readouterr())

    return run


def answers(model: str, *turns: tuple[str, list[str]], system: str | None = None) -> list[str]:
    """The same conversation through the API."""
    sampling = SamplingParams(temperature=0.0, max_new_tokens=8, ignore_eos=True)
    with pydstp.Engine(model, config=EngineConfig(max_batch=1)) as engine:
        with engine.chat(system) as conversation:
            return [conversation.send(prompt, images, sampling).text for prompt, images in turns]


def printed(texts: list[str]) -> str:
    return "".join(f"{text}\n" for text in texts)


def test_turns_share_one_conversation(chat, model, picture) -> None:
    out, _ = chat(f"/image {picture}", "What is this?", "And why?", "/quit", "never read")
    assert out == printed(answers(model, ("What is this?", [picture]), ("And why?", [])))


def test_pictures_and_system_message_from_flags(chat, model, picture) -> None:
    out, _ = chat("What?", flags=("--image", picture, "--system", "Be brief."))
    assert out == printed(answers(model, ("What?", [picture]), system="Be brief."))


def test_clear_forgets_words_and_pictures(chat, model, picture) -> None:
    out, _ = chat("One?", f"/image {picture}", "/clear", "Two?")
    assert out == printed(answers(model, ("One?", [])) + answers(model, ("Two?", [])))


def test_bad_lines_are_reported_and_the_conversation_goes_on(chat, model) -> None:
    out, err = chat("/image no/such.png", "", "/nonsense", "Hello?")
    assert "error: image: expected a file, got 'no/such.png'" in err
    assert "/clear" in err  # the list of commands
    assert out == printed(answers(model, ("Hello?", [])))


def test_a_file_that_is_no_picture_costs_its_turn_only(chat, model, tmp_path) -> None:
    text = tmp_path / "text.png"
    text.write_text("no picture")
    out, err = chat(f"/image {text}", "What is this?", "Hello?")
    assert err.startswith("error: ")
    assert out == printed(answers(model, ("Hello?", [])))


def test_pictures_of_a_message_that_was_stopped_go_with_the_next(
        chat, model, picture, monkeypatch) -> None:
    stopped = pydstp.CancelToken()
    stopped.cancel()
    tokens = iter([stopped, pydstp.CancelToken(), pydstp.CancelToken()])
    monkeypatch.setattr("pydstp.repl.cancelled_by_ctrl_c", lambda: nullcontext(next(tokens)))
    out, err = chat(f"/image {picture}", "Never read", "What is this?", "And why?")
    assert out == printed(answers(model, ("What is this?", [picture]), ("And why?", [])))
    assert "(stopped)" in err


def test_log_probabilities_are_refused_where_nothing_would_show_them(capsys) -> None:
    with pytest.raises(SystemExit):
        cli.main(["chat", "--logprobs", "2"])
    assert "--logprobs" in capsys.readouterr().err
