"""The examples of docs/add_a_pruner.md run, and its tables are right."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import torch

from pydstp import Pruner, PruningConfig, VisualTokens
from pydstp.pruning import run_pruner
from tests.house import source_tree as tree
from tests.pruning.samples import make_tokens

DOCUMENT = Path("docs/add_a_pruner.md")
BLOCKS = tree.fenced_blocks(DOCUMENT, "python")


def execute(*blocks: str) -> None:
    names = {"__name__": "document"}
    for block in blocks:
        exec(compile(block, str(DOCUMENT), "exec", dont_inherit=True), names)


def test_the_first_example_is_ten_lines_and_works() -> None:
    body = BLOCKS[0].partition("@register_pruner")[2]
    assert len([line for line in body.splitlines() if line.strip()]) <= 10
    execute(BLOCKS[0])
    config = PruningConfig("loudest", 0.4, power=1.0)
    tokens = make_tokens(config, ((3, 5), (2, 2)))
    expected = tokens.features.abs().sum(dim=1)
    kept = run_pruner(config, tokens).kept
    assert kept.tolist() == [*expected[:15].topk(6).indices.sort().values.tolist(),
                             *(15 + expected[15:].topk(2).indices).sort().values.tolist()]


def test_the_second_example_answers_a_question(capsys) -> None:
    execute(*BLOCKS[:2])
    assert re.search(r"\d+ of \d+$", capsys.readouterr().out.strip())


def test_the_third_example_works() -> None:
    execute(BLOCKS[2])
    config = PruningConfig("looked_at_in_the_middle", num_kept=3, layer=1)
    assert config.pruner.act_before == 1 and config.quota == "global"
    row = torch.full((13,), 0.1)
    tokens = make_tokens(config, ((3, 3), (2, 2)), attention_row=row)
    assert run_pruner(config, tokens).kept.tolist() == [1, 3, 4]  # a corner is on two edges
    assert torch.equal(row, torch.full((13,), 0.1))


def test_the_tables_name_what_there_is() -> None:
    text = "\n".join(tree.lines(DOCUMENT))
    first_columns = re.findall(r"^\| (`[^|]+) \|", text, re.MULTILINE)
    named = {name for column in first_columns for name in re.findall(r"`(\w+)`", column)}
    attributes = {name for name in vars(Pruner) if not name.startswith("_")}
    attributes -= {"select", "keeps_all"}  # the last is of "none" alone
    assert named == {field.name for field in fields(VisualTokens)} | attributes
