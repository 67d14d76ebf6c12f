"""What layers read behind a method's stages, and every method where there is no picture."""

from __future__ import annotations

import pytest

from pydstp.kv_cache import ALL, SELECTED, STAGED
from tests.engine.oracle import picture
from tests.engine.plain_chat import sampling
from tests.engine.selection import ALL_METHODS, IMAGE, PROMPT, method, open_engine, same


@pytest.fixture(scope="module")
def engine():
    with open_engine() as engine:
        yield engine


@pytest.mark.parametrize("name", ["pyramiddrop", "mustdrop", "sparsevlm"])
@pytest.mark.parametrize("image", [IMAGE, picture(130, 100, 1)], ids=["7x5", "4x3"])
def test_lists_of_stages_lie_within_each_other(engine, name, image):
    """Properties 36 and 38. Merged tokens are in no list of the stages before they were made."""
    options = {"recycle": 0.0} if name == "sparsevlm" else {}
    engine.generate(image, PROMPT, sampling(2), pruning=method(name, 0.3, **options))
    cache, num_stages = engine._cache, len(engine._cache.stages[0])
    groups = [ALL, *(STAGED + stage for stage in range(num_stages - 1)), SELECTED]
    born = cache.born[0]
    before = set(cache.visible_slots(0, ALL).tolist())
    for stage, group in enumerate(groups[1:]):
        shown = set(cache.visible_slots(0, group).tolist())
        made = {slot for slot in shown if int(born[slot]) == cache.stages[0][stage]}
        assert shown - made <= before and shown
        before = shown
    assert len(before) < len(cache.visible_slots(0, ALL))


@pytest.mark.parametrize("name", [*ALL_METHODS, "look_m", "resize"])
def test_without_a_picture_every_method_changes_nothing(engine, name):
    plain = engine.generate(None, "Hello.", sampling(4))
    run = engine.generate(None, "Hello.", sampling(4), pruning=method(name))
    assert same(plain, run) and run.shift.reason == "no_image"


@pytest.mark.parametrize("name", [*ALL_METHODS, "look_m"])
@pytest.mark.parametrize("size", [(32, 32), (64, 32), (96, 64)], ids=str)
def test_one_token_of_the_smallest_pictures(name, size):
    """Fewer tokens than a method has pivots, neighbours, windows or clusters."""
    config = method(name, None, num_kept=1) if name != "mustdrop" else method(name)
    with open_engine(min_pixels=1024) as engine:
        run = engine.generate(picture(*size), PROMPT, sampling(3), pruning=config)
        num_visual = size[0] * size[1] // 1024
        assert run.visual_tokens == num_visual and len(run.token_ids) == 3
        adaptive = config.pruner.adaptive
        assert 1 <= run.visible_tokens <= (num_visual if adaptive else 1)
