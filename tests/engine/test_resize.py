"""`resize` in the engine: the answer is that of a smaller picture, and the report says so."""

from __future__ import annotations

import pytest

from pydstp import Engine, EngineConfig, OptionError, PruningConfig, SamplingParams, SketchReturn
from tests.engine.oracle import picture
from tests.engine.selection import IMAGE, PROMPT, answer, dstp, method, open_engine, same
from tests.internvl_checkpoints import tiny_internvl

GREEDY = SamplingParams(temperature=0.0, max_new_tokens=8, ignore_eos=True, logprobs=3)


def resize(ratio: float = 1 / 3) -> PruningConfig:
    return PruningConfig("resize", retention_ratio=ratio)


@pytest.fixture(scope="module")
def engine():
    with open_engine(min_pixels=1024) as engine:
        yield engine


@pytest.fixture(scope="module")
def tiles():
    config = EngineConfig(max_batch=4, max_visual_tokens=256, max_text_tokens=256, num_threads=1)
    with Engine(tiny_internvl(), dtype="float32", config=config) as engine:
        yield engine


def test_the_answer_is_that_of_the_smaller_picture(engine):
    """7 x 5 cells become 4 x 3: as if the caller had resized the picture."""
    small = engine.generate(IMAGE.resize((128, 96), 3), PROMPT, GREEDY)
    found = engine.generate(IMAGE, PROMPT, GREEDY, pruning=resize())
    assert same(small, found) and found.visual_tokens == small.visual_tokens == 12
    assert found.images[0].shrunk and found.images[0].resized == (128, 96)
    assert found.images[0].original_size == IMAGE.size


def test_what_is_reported(engine):
    shift = answer(engine, 4, pruning=resize(), log_steps=True).shift
    assert (shift.method, shift.policy, shift.reason) == ("resize", "none", None)
    assert (shift.num_visual, shift.kept, shift.reserve) == (35, 12, None)
    assert shift.retention_asked == 1 / 3
    assert shift.retention_achieved == shift.mean_visible == pytest.approx(12 / 35)
    assert [step.visible for step in shift.steps] == [12] * 3
    coarse = answer(engine, 2, pruning=resize(0.2)).shift
    assert (coarse.kept, coarse.retention_achieved) == (6, 6 / 35)  # of 7 allowed
    no_image = engine.generate(None, PROMPT, GREEDY, pruning=resize()).shift
    assert no_image.reason == "no_image" and no_image.num_visual == 0


def test_retention_one_is_no_pruning_bit_for_bit(engine, tiles):
    for one in (engine, tiles):
        found = answer(one, pruning=resize(1.0))
        assert same(answer(one), found) and found.shift.reason == "retention_is_one"


def test_several_pictures_and_batches(engine):
    pictures = [IMAGE, picture(96, 64, 1), picture(32, 32, 2)]
    alone = engine.generate(pictures, PROMPT, GREEDY, pruning=resize(0.5))
    assert [image.num_tokens for image in alone.images] == [18, 3, 1]
    assert alone.shift.num_visual == 35 + 6 + 1 and alone.shift.kept == 22
    rows = [resize(0.5), method("divprune"), resize(), None]
    each = [engine.generate(pictures, PROMPT, GREEDY, pruning=one) for one in rows]
    batch = engine.generate([pictures] * 4, [PROMPT] * 4, GREEDY, pruning=rows)
    assert all(map(same, each, batch))
    assert [row.shift.num_visual for row in batch] == [42] * 4


def test_a_chat_resizes_the_pictures_of_every_turn(engine):
    with engine.chat(pruning=resize()) as chat:
        first = chat.send("What?", IMAGE, GREEDY)
        words = chat.send("Why?", None, GREEDY)
        third = chat.send("And this?", picture(96, 96), GREEDY)
    small = [IMAGE.resize((128, 96), 3), picture(96, 96).resize((32, 96), 3)]
    with engine.chat() as chat:
        plain = [chat.send("What?", small[0], GREEDY), chat.send("Why?", None, GREEDY)]
    assert same(first, plain[0]) and same(words, plain[1])
    assert words.cached_tokens and third.cached_tokens
    assert [turn.shift.num_visual for turn in (first, words, third)] == [35, 35, 44]
    assert [turn.shift.kept for turn in (first, words, third)] == [12, 12, 14]


def test_pictures_in_tiles_are_cut_into_fewer(tiles):
    """12 tiles and a thumbnail of 9 tokens; half of 117 leaves room for 5 tiles and theirs."""
    found = tiles.generate(picture(400, 300), PROMPT, GREEDY, pruning=resize(0.5))
    assert found.shift.num_visual == 117 and found.shift.kept == found.visual_tokens <= 59
    assert found.images[0].num_tiles == found.visual_tokens // 9 and found.images[0].shrunk
    assert found.shift.retention_achieved == found.visual_tokens / 117
    with pytest.raises(OptionError, match="retention_ratio: expected room for one tile of 9"):
        tiles.generate(picture(40, 40), PROMPT, GREEDY, pruning=resize(0.5))
    with pytest.raises(OptionError, match=r"prompt\[1\]: retention_ratio: expected room"):
        tiles.generate([None, picture(40, 40)], [PROMPT] * 2, GREEDY, pruning=resize(0.5))


@pytest.mark.parametrize("shift", [dstp(), SketchReturn()])
@pytest.mark.parametrize("ratio", [0.5, 1.0])
def test_nothing_can_return(engine, shift, ratio):
    with pytest.raises(OptionError, match=f"shift: expected None with resize, got "
                                          f"{type(shift).__name__} .it leaves no token behind"):
        answer(engine, pruning=resize(ratio), shift=shift)
    with pytest.raises(OptionError, match="shift: expected None with resize"):
        engine.chat(pruning=resize(ratio), shift=shift)


def test_the_tokens_of_the_larger_picture_are_in_no_prompt(engine):
    with pytest.raises(OptionError, match="reserve: expected 'auto' with resize, got 'full'"):
        answer(engine, pruning=resize(), reserve="full")
