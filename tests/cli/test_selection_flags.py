"""The flags that prune visual tokens and bring them back, in every command that answers."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

import pydstp
from pydstp import DSTP, DyCoke, PruningConfig, SketchReturn, VisionPulse, cli
from pydstp.cli_selection import selection_of
from pydstp.config import EngineConfig, SamplingParams

SHORT = ["--max-new-tokens", "8", "--ignore-eos", "--temperature", "0"]
PRUNED = ["--pruning", "fastv", "--retention-ratio", "0.333", "--pruning-option", "layer=1"]
DEMO_PICTURE = str(Path(__file__).resolve().parents[2] / "docs" / "demo.png")


def parsed(*flags: str) -> dict[str, object]:
    """What the flags mean."""
    return selection_of(cli.build_parser().parse_args(["generate", "--prompt", "p", *flags]))


def test_a_budget_per_step_needs_no_pruning(capsys) -> None:
    arguments = ["generate", "--image", DEMO_PICTURE, "--prompt", "What is in cell B3?", "--json"]
    assert cli.main([*arguments, "--shift", "visionpulse"]) == 0
    shift = json.loads(capsys.readouterr().out)["shift"]
    assert (shift["method"], shift["policy"], shift["reason"]) == (
        "none", "visionpulse", "no_method")
    assert shift["num_visual"] == shift["kept"] == 56
    assert 3 / 56 <= shift["mean_visible"] <= 5 / 56 < shift["mean_visible_all_layers"] < 1


def test_the_embedded_model_with_the_recommended_policy(capsys) -> None:
    arguments = ["generate", "--image", DEMO_PICTURE, "--prompt", "What is in cell B3?", "--json"]
    assert cli.main([*arguments, *PRUNED, "--shift", "recommended"]) == 0
    result = json.loads(capsys.readouterr().out)
    shift = result["shift"]
    assert (shift["method"], shift["policy"], shift["reason"]) == ("fastv", "dstp", None)
    assert (shift["num_visual"], shift["kept"], result["visible_tokens"]) == (56, 19, 19)
    assert shift["retention_asked"] == 0.333 and shift["steps"] is None
    assert shift["triggers"] == len(shift["trigger_steps"])


def test_generate_is_the_api(model, picture, capsys) -> None:
    flags = ["--model", model, "--image", picture, "--prompt", "What?", "--json", *SHORT]
    assert cli.main(["generate", *flags, *PRUNED, "--shift", "dstp", "--shift-option",
                     "threshold=2", "--shift-option", "expand_steps=2", "--reserve", "side"]) == 0
    result = json.loads(capsys.readouterr().out)
    with pydstp.Engine(model, config=EngineConfig(max_batch=1)) as engine:
        truth = engine.generate(
            [picture], "What?", SamplingParams(temperature=0.0, max_new_tokens=8, ignore_eos=True),
            pruning=PruningConfig("fastv", 0.333, layer=1), reserve="side",
            shift=DSTP(threshold=2, expand_steps=2))
    assert result["token_ids"] == truth.token_ids
    assert result["shift"]["trigger_steps"] == list(truth.shift.trigger_steps) != []
    assert result["shift"]["reserve"] == "side"


def test_chat_prunes_every_turn(model, picture, monkeypatch, capsys) -> None:
    lines = f"/image {picture}\nWhat is this?\nAnd why?\n/clear\n/image {picture}\nWhat is this?\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    arguments = ["chat", "--model", model, *SHORT, *PRUNED, "--shift", "dstp"]
    assert cli.main([*arguments, "--shift-option", "threshold=2"]) == 0
    sampling = SamplingParams(temperature=0.0, max_new_tokens=8, ignore_eos=True)
    with pydstp.Engine(model, config=EngineConfig(max_batch=1)) as engine, engine.chat(
            pruning=PruningConfig("fastv", 0.333, layer=1), shift=DSTP(threshold=2)) as chat:
        first, second = (chat.send("What is this?", [picture], sampling).text,
                         chat.send("And why?", None, sampling).text)
    assert capsys.readouterr().out == f"{first}\n{second}\n{first}\n"


def test_demo_takes_them_too(tmp_path, capsys) -> None:
    arguments = ["demo", "--seed", "1", "--output", str(tmp_path / "seen.png")]
    assert cli.main([*arguments, "--pruning", "divprune", "--num-kept", "50",
                     "--shift", "dstp"]) in (0, 1)
    out = capsys.readouterr().out
    assert "question" in out and "verdict" in out


def test_flags_become_options(tmp_path) -> None:
    assert parsed() == {"pruning": None, "shift": None, "reserve": "auto",
                        "bypass": "never"}
    assert parsed("--shift", "none")["shift"] is None
    assert parsed("--shift", "dstp")["shift"] == DSTP()
    assert parsed("--shift", "recommended")["shift"] == DSTP.recommended()
    assert parsed("--shift", "sketch")["shift"] == SketchReturn()
    assert parsed("--shift", "visionpulse")["shift"] == VisionPulse()
    assert parsed("--shift", "dycoke", "--shift-option", "share=0.5")["shift"] == DyCoke(share=0.5)
    assert parsed("--shift", "visionpulse", "--shift-option", "anchor_layer=1", "--shift-option",
                  "budget=fixed", "--shift-option", "fixed_share=0.01")["shift"] == VisionPulse(
                      1, budget="fixed", fixed_share=0.01)
    assert parsed(*PRUNED)["pruning"] == PruningConfig("fastv", 0.333, layer=1)
    options = ["--pruning-option", "prune_only=true", "--pruning-option", "quota=global"]
    assert parsed("--pruning", "visionzip", "--num-kept", "9", *options)["pruning"] == (
        PruningConfig("visionzip", num_kept=9, prune_only=True, quota="global"))
    options = [flag for option in ("monitor_layers=[1, 2]", "swap=add", "max_returned=4")
               for flag in ("--shift-option", option)]
    assert parsed("--shift", "dstp", *options)["shift"] == DSTP(
        monitor_layers=[1, 2], swap="add", max_returned=4)
    changed = parsed("--shift", "recommended", "--shift-option", "swap=cpts",
                     "--shift-option", "max_returned=null")["shift"]
    assert (changed.swap, changed.max_returned) == ("cpts", None)
    assert changed.threshold == DSTP.recommended().threshold
    path = tmp_path / "calibrated.json"
    DSTP(threshold=0.5, monitor_layers=[3]).save(path, accuracy=0.9)
    from_file = parsed("--shift", str(path), "--shift-option", "expand_steps=4")["shift"]
    assert from_file == DSTP(threshold=0.5, monitor_layers=[3], expand_steps=4)


@pytest.mark.parametrize(("flags", "words"), [
    (["--pruning", "fastv"], "retention_ratio, num_kept: expected one"),
    (["--pruning", "fastv", "--retention-ratio", "1.5"], "retention_ratio"),
    (["--pruning", "fastv", "--retention-ratio", "nan"], "retention_ratio"),
    (["--pruning", "fastv", "--num-kept", "0"], "num_kept"),
    (["--pruning", "fastv", "--num-kept", "3", "--retention-ratio", "0.5"], "got both"),
    (["--pruning", "slowv", "--num-kept", "3"], "slowv"),
    (["--pruning", "none", "--num-kept", "3"], "keeps everything"),
    (["--retention-ratio", "0.5"], "--retention-ratio: expected --pruning"),
    (["--num-kept", "5"], "--num-kept: expected --pruning"),
    (["--pruning-option", "layer=1"], "--pruning-option: expected --pruning"),
    ([*PRUNED, "--pruning-option", "layer"], "expected NAME=VALUE, got 'layer'"),
    ([*PRUNED, "--pruning-option", "=1"], "expected NAME=VALUE"),
    ([*PRUNED, "--pruning-option", "layer=two"], "layer"),
    ([*PRUNED, "--pruning-option", "layer=5"], "num_layers = 4"),
    ([*PRUNED, "--pruning-option", "unheard=1"], "unheard"),
    ([*PRUNED, "--pruning-option", "name=random"], "expected --pruning for 'name'"),
    ([*PRUNED, "--pruning-option", "num_kept=4"], "expected --num-kept"),
    ([*PRUNED, "--pruning-option", "retention_ratio=0.5"], "expected --retention-ratio"),
    ([*PRUNED, "--pruning-option", "positions=reindex"], "positions"),
    (["--shift-option", "threshold=0.5"], "--shift-option: expected --shift"),
    (["--shift", "none", "--shift-option", "threshold=0.5"], "--shift-option: expected --shift"),
    (["--shift", "no/such/file.json"], "no/such/file.json"),
    (["--shift", "."], "expected a JSON file of DSTP options"),
    (["--shift", DEMO_PICTURE], "expected a JSON file of DSTP options"),
    (["--shift", "dstp", "--shift-option", "threshold=hot"], "threshold"),
    (["--shift", "dstp", "--shift-option", "threshold=NaN"], "threshold"),
    (["--shift", "dstp", "--shift-option", "unheard=1"], "unheard"),
    (["--shift", "dstp", "--shift-option", "monitor_layers=[9]"], "num_layers = 4"),
    (["--shift", "recommended", "--shift-option", "swap=cpts"], "max_returned"),
    (["--shift", "dstp", "--shift-option", "applies=early", "--reserve", "lazy"], "reserve"),
    (["--pruning", "visionzip", "--num-kept", "5", "--reserve", "full"], "reserve"),
    (["--shift", "visionpulse", "--shift-option", "anchor_layer=3"], "anchor_layer"),
    (["--shift", "visionpulse", "--shift-option", "threshold=0.5"], "threshold"),
    (["--shift", "visionpulse", "--shift-option", "budget=fixed"], "fixed_share"),
])
def test_refusals_are_one_line_and_status_2(flags, words, model, picture, capsys) -> None:
    arguments = ["generate", "--model", model, "--image", picture, "--prompt", "p", *SHORT]
    assert cli.main([*arguments, *flags]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ") and err.count("\n") == 1 and words in err


@pytest.mark.parametrize("flags", [
    ["--num-kept", "many"], ["--retention-ratio", "half"], ["--reserve", "sometimes"],
    ["--pruning"], ["--shift"]])
def test_values_of_the_wrong_kind_show_the_usage(flags, capsys) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["generate", "--prompt", "p", *flags])
    assert stopped.value.code == 2
    assert "usage: pydstp" in capsys.readouterr().err


@pytest.mark.parametrize(("flags", "note"), [
    (["--shift", "recommended"], "note: dstp changed nothing: nothing was pruned (--pruning)"),
    (["--pruning", "divprune", "--retention-ratio", "1", "--shift", "sketch"],
     "note: divprune with sketch changed nothing: all visual tokens were kept"),
    (["--shift", "visionpulse"], None), ([], None), (PRUNED, None)])
def test_what_changed_nothing_is_said(flags, note, model, picture, capsys) -> None:
    arguments = ["generate", "--model", model, "--image", picture, "--prompt", "What?", *SHORT]
    assert cli.main([*arguments, *flags]) == 0
    err = capsys.readouterr().err
    assert note in err if note else "changed nothing" not in err


def test_without_a_picture_nothing_is_pruned_and_that_is_said(model, capsys) -> None:
    assert cli.main(["generate", "--model", model, "--prompt", "What?", *SHORT, *PRUNED]) == 0
    assert "note: fastv changed nothing: there is no picture" in capsys.readouterr().err
