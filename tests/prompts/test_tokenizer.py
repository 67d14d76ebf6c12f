"""Token ids against transformers through every loading path; decoding whole and piece by piece."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from pydstp.errors import CheckpointError, OptionError, PromptError, UnsupportedModelError
from pydstp.tokenizer import StreamDecoder, Tokenizer
from tests.prompts.tokenizers_of_tests import FORMS, odd_strings, save, trained
from tests.tokenizer_files import ADDED_TOKENS


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> object:
    return AutoTokenizer.from_pretrained(save(tmp_path_factory.mktemp("oracle"), "tokenizer.json"))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.from_checkpoint(save(tmp_path_factory.mktemp("tokenizer"), "vocab and merges"))


@pytest.mark.parametrize("form", FORMS)
def test_ids_equal_the_reference(form: str, tmp_path: Path, reference: object) -> None:
    tokenizer = Tokenizer.from_checkpoint(save(tmp_path, form))
    assert tokenizer.special_tokens == {
        name: reference.convert_tokens_to_ids(name) for name, special in ADDED_TOKENS if special}
    for text in odd_strings():
        expected = reference(text, add_special_tokens=False).input_ids
        assert tokenizer.encode(text) == expected, repr(text)
        assert tokenizer.decode(expected) == reference.decode(expected, skip_special_tokens=True)
        assert tokenizer.decode(expected, skip_special_tokens=False) == reference.decode(expected)


def test_the_reference_reads_vocab_and_merges_too(tmp_path: Path, tokenizer: Tokenizer) -> None:
    reference = AutoTokenizer.from_pretrained(save(tmp_path, "vocab and merges"))
    for text in odd_strings():
        assert tokenizer.encode(text) == reference(text, add_special_tokens=False).input_ids


def test_merges_load_without_the_version_line(tmp_path: Path, tokenizer: Tokenizer) -> None:
    other = Tokenizer.from_checkpoint(save(tmp_path, "vocab and merges", version_line=False))
    windows = tmp_path / "merges.txt"
    windows.write_bytes(windows.read_bytes().replace(b"\n", b"\r\n"))
    third = Tokenizer.from_checkpoint(tmp_path)
    for text in odd_strings()[:100]:
        assert other.encode(text) == third.encode(text) == tokenizer.encode(text)


def test_truncation_and_padding_of_the_file_are_off(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_checkpoint(save(tmp_path, "tokenizer.json"))
    assert len(tokenizer.encode("a1" * 500)) == 1000 and len(tokenizer.encode("a")) == 1


def test_added_tokens_can_be_read_as_plain_text(tokenizer: Tokenizer) -> None:
    for name, _ in ADDED_TOKENS:
        text = f"say {name} twice: {name}"
        ids = tokenizer.encode(text, parse_added=False)
        assert not set(ids) & set(tokenizer.added_tokens.values())
        assert tokenizer.decode(ids) == text
        assert tokenizer.encode(text).count(tokenizer.token_id(name)) == 2


def test_names_and_sizes(tokenizer: Tokenizer) -> None:
    assert tokenizer.vocab_size == tokenizer.token_id("</think>") + 1
    assert tokenizer.roles == {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    assert tokenizer.token_id("<|im_end|>") in tokenizer.special_ids
    assert tokenizer.token_id("<think>") not in tokenizer.special_ids
    assert tokenizer.decode([tokenizer.token_id("<think>")]) == "<think>"
    with pytest.raises(OptionError, match="got '<no such token>'"):
        tokenizer.token_id("<no such token>")


def test_a_lone_surrogate_is_a_prompt_error(tokenizer: Tokenizer) -> None:
    for parse_added in (True, False):
        with pytest.raises(PromptError, match="lone surrogate"):
            tokenizer.encode("bad \ud83d text", parse_added=parse_added)


class TestStreamDecoder:
    def test_equals_decode_on_random_ids(self, tokenizer: Tokenizer, reference: object) -> None:
        rng = np.random.default_rng(3)
        for round_ in range(300):
            size = tokenizer.vocab_size + 40  # beyond the end: spare rows of an embedding
            high = size if round_ % 3 else 256  # single bytes: mostly broken characters
            ids = rng.integers(0, high, rng.integers(1, 80)).tolist()
            for skip in (True, False):
                stream = StreamDecoder(tokenizer, skip_special_tokens=skip)
                pieces = [stream.push(id_) for id_ in ids] + [stream.finish()]
                whole = tokenizer.decode(ids, skip_special_tokens=skip)
                assert "".join(pieces) == whole
                assert whole == reference.decode(ids, skip_special_tokens=skip)

    def test_characters_come_whole(self, tokenizer: Tokenizer) -> None:
        for text in odd_strings():
            ids = tokenizer.encode(text)
            stream = StreamDecoder(tokenizer, skip_special_tokens=False)
            pieces = [stream.push(id_) for id_ in ids]
            assert stream.finish() == ""
            assert "".join(pieces) == tokenizer.decode(ids, skip_special_tokens=False)
            assert "\ufffd" not in "".join(pieces) or "\ufffd" in text

    def test_holds_back_and_gives_up(self, tokenizer: Tokenizer) -> None:
        face = tokenizer.encode("\U0001f6f8")  # not in the training text: one token per byte
        assert len(face) > 1
        stream = StreamDecoder(tokenizer)
        assert [stream.push(id_) for id_ in face] == [""] * (len(face) - 1) + ["\U0001f6f8"]
        assert stream.push(face[0]) == "" and stream.finish() == "\ufffd"
        assert stream.push(face[0]) == ""
        assert stream.push(tokenizer.encode("a")[0]) == "\ufffda" and stream.finish() == ""

    def test_work_per_token_does_not_grow(self, tokenizer: Tokenizer) -> None:
        ids = tokenizer.encode("Some words, and more: é 日本 🙂. ") * 4000

        def elapsed(count: int) -> float:
            stream, started = StreamDecoder(tokenizer), time.perf_counter()
            for id_ in ids[:count]:
                stream.push(id_)
            return (time.perf_counter() - started) / count

        elapsed(1000)
        short = min(elapsed(1000) for _ in range(5))
        assert min(elapsed(40_000) for _ in range(3)) < 10 * short


class TestFiles:
    def test_missing_files_are_named(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="tokenizer.json, and for vocab.json with merges"):
            Tokenizer.from_checkpoint(tmp_path)
        (tmp_path / "vocab.json").write_text("{}")
        with pytest.raises(CheckpointError, match="no tokenizer in"):
            Tokenizer.from_checkpoint(tmp_path)

    @pytest.mark.parametrize("file, content, message", [
        ("vocab.json", "{", "vocab.json: not valid JSON"),
        ("vocab.json", "[]", "vocab.json: expected a JSON object, got list"),
        ("vocab.json", '{"a": "b"}', "expected an id >= 0"),
        ("vocab.json", '{"a": -1}', "expected an id >= 0"),
        ("vocab.json", '{"a": 0}', "merges.txt does not fit vocab.json"),
        ("merges.txt", "one\n", "line 1: expected two tokens, got 'one'"),
        ("merges.txt", "#version: 0.2\na b\na b c\n", "line 3: expected two tokens"),
        ("merges.txt", "qqqqq zzzzz\n", "merges.txt does not fit"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"x": {}}}', "added tokens with their"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"1": 5}}', "added tokens with their"),
        ("tokenizer_config.json", "nonsense", "tokenizer_config.json: not valid JSON"),
        ("added_tokens.json", '{"<a>": "x"}', "added tokens with their ids"),
        ("added_tokens.json", '{"<a>": 99999}', "'<a>' is listed with id 99999"),
    ])
    def test_damaged_files(self, file: str, content: str, message: str, tmp_path: Path) -> None:
        save(tmp_path, "vocab and added_tokens.json")
        (tmp_path / file).write_text(content)
        with pytest.raises(CheckpointError, match=message):
            Tokenizer.from_checkpoint(tmp_path)

    def test_an_id_that_does_not_come_out_as_listed(self, tmp_path: Path) -> None:
        save(tmp_path, "tokenizer.json")
        path = tmp_path / "tokenizer_config.json"
        config = json.loads(path.read_text())
        entry = {"content": "<|im_end|>", "special": True}
        config["added_tokens_decoder"] = {"5": entry}
        path.write_text(json.dumps(config))
        with pytest.raises(CheckpointError, match="'<|im_end|>' is listed with id 5"):
            Tokenizer.from_checkpoint(tmp_path)

    def test_a_damaged_tokenizer_json(self, tmp_path: Path) -> None:
        (tmp_path / "tokenizer.json").write_text('{"model": 3}')
        with pytest.raises(CheckpointError, match="tokenizer.json: not a tokenizer"):
            Tokenizer.from_checkpoint(tmp_path)

    def test_other_decoders_are_refused_by_name(self, tmp_path: Path) -> None:
        content = json.loads(trained().to_str())
        content["decoder"] = {"type": "ByteFallback"}
        (tmp_path / "tokenizer.json").write_text(json.dumps(content))
        with pytest.raises(UnsupportedModelError, match="decoder ByteFallback is not supported"):
            Tokenizer.from_checkpoint(tmp_path)

    def test_tokens_missing_in_tokenizer_json_are_added(self, tmp_path: Path) -> None:
        save(tmp_path, "tokenizer.json")
        path = tmp_path / "tokenizer.json"
        content = json.loads(path.read_text())
        content["added_tokens"] = content["added_tokens"][:5]
        path.write_text(json.dumps(content))
        tokenizer = Tokenizer.from_checkpoint(tmp_path)
        for text in odd_strings()[:100]:
            assert tokenizer.encode(text) == trained().encode(text, add_special_tokens=False).ids
