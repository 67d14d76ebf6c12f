"""The forms of a prompt, what is wrong with malformed ones, and the reasoning in answers."""

from typing import Any

import numpy as np
import pytest

from pydstp.chat import split_thinking, to_messages
from pydstp.errors import PromptError
from tests.prompts.conversations import text


class TestMessages:
    def test_a_text_becomes_a_user_message(self) -> None:
        assert to_messages("hi") == ([{"role": "user", "content": "hi"}], [])
        content = [{"type": "image"}, {"type": "image"}, text("hi")]
        assert to_messages("hi", ["a", "b"]) == ([{"role": "user", "content": content}], ["a", "b"])

    def test_pictures_from_items_and_from_the_list_keep_their_order(self) -> None:
        url = "data:image/png;base64,AAAA"
        array = np.zeros((2, 2), np.uint8)
        messages = [{"role": "user", "content": [
            {"type": "image"}, {"type": "image", "image": array}, {"type": "image", "path": "p"},
            {"type": "image_url", "image_url": {"url": url, "detail": "low"}}, text("x")]},
            {"role": "user", "content": [
                {"type": "image", "url": url}, {"image": "i"}, {"type": "image"},
                {"type": "image_url", "image_url": url}, {"text": "y"}]}]
        clean, images = to_messages(messages, ["first", "second"])
        assert images == ["first", array, "p", url, url, "i", "second", url]
        assert [item["type"] for item in clean[1]["content"]] == ["image"] * 4 + ["text"]
        assert all(set(item) == {"type"} for item in clean[0]["content"][:4])
        assert to_messages(clean, images) == (clean, images)

    @pytest.mark.parametrize("prompt, images, message", [
        ("", [], "prompt: expected a text, got an empty string"),
        ("  \n", ["a"], "prompt: expected a text, got an empty string"),
        ([], [], "at least one message, got an empty list"),
        (None, [], "a text or a list of messages, got NoneType"),
        (b"hi", [], "a text or a list of messages, got bytes"),
        ({"role": "user"}, [], "a list of messages, got dict"),
        (["hi"], [], r"messages\[0\]: expected a dictionary .*, got str"),
        ([{"content": "x"}], [], r"messages\[0\].role: expected one of system.*, got None"),
        ([{"role": "tool", "content": "x"}], [], "got 'tool'"),
        ([{"role": ["user"], "content": "x"}], [], r"got \['user'\]"),
        ([{"role": "user"}], [], r"messages\[0\].content: expected a text or a list of items"),
        ([{"role": "user", "content": None}], [], "got NoneType"),
        ([{"role": "user", "content": 5}], [], "got int"),
        ([{"role": "user", "content": {"type": "text"}}], [], "got dict"),
        ([{"role": "user", "content": " "}], [], "got an empty one"),
        ([{"role": "user", "content": []}], [], "got an empty one"),
        ([{"role": "user", "content": [text(" ")]}], [], "got an empty one"),
        ([{"role": "user", "content": "x", "name": "me"}], [], "unknown key 'name'"),
        ([{"role": "user", "content": "x", "tool_calls": []}], [], "unknown key 'tool_calls'"),
        ([{"role": "user", "content": ["x"]}], [], r"content\[0\]: expected a dictionary"),
        ([{"role": "user", "content": [{"type": "text"}]}], [], r"\[0\].text: .* got NoneType"),
        ([{"role": "user", "content": [{"type": "audio"}]}], [], "got 'audio'"),
        ([{"role": "user", "content": [{}]}], [], "expected 'text', 'image'.*, got None"),
        ([{"role": "user", "content": [{"type": []}]}], [], r"got \[\]"),
        ([{"role": "user", "content": [{"type": "video", "video": "v"}]}], [],
         r"messages\[0\].content\[0\]: video is not supported"),
        ([{"role": "user", "content": [{"type": "video_url"}]}], [], "video is not supported"),
        ([{"role": "user", "content": [{"type": "image"}]}], [], "got only 0 in all"),
        ([{"role": "user", "content": [{"type": "image"}]}], ["a", "b"], "that is 1, got 2"),
        ([{"role": "user", "content": "x"}], ["a"], "that is 0, got 1"),
        ([{"role": "user", "content": [{"type": "image", "image": 1, "path": "p"}]}], [],
         "one picture, got image and path"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": "http://a/b"}]}], [],
         "image_url: expected a data URL .* got 'http://a/b'"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "/etc/x"}}]}],
         [], "expected a data URL"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], [],
         "expected a data URL"),
        ([{"role": "assistant", "content": [{"type": "image"}]}, {"role": "user", "content": "x"}],
         ["a"], "pictures in user messages only"),
        ([{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}], [],
         r"messages\[1\].role: expected the last message to be the user's, got 'assistant'"),
        ([{"role": "assistant", "content": "a", "reasoning_content": 3}], [],
         r"reasoning_content: expected a text, got int"),
    ])
    def test_malformed_prompts_say_what_and_where(
        self, prompt: Any, images: list, message: str
    ) -> None:
        with pytest.raises(PromptError, match=message):
            to_messages(prompt, images)


@pytest.mark.parametrize("written, reasoning, answer", [
    ("plain", None, "plain"), ("", None, ""), ("a\n\nb", None, "a\n\nb"),
    ("so\n</think>\n\nYes.", "so", "Yes."), ("<think>\nso\n</think>\n\nYes.", "so", "Yes."),
    ("</think>Yes", "", "Yes"), ("<think>\n\n</think>\n\nYes", "", "Yes"),
    ("\n<think>cut off", "cut off", ""), ("a</think>b</think>c", "a", "b</think>c"),
    ("say <think> aloud", None, "say <think> aloud"),
])
def test_split_thinking(written: str, reasoning: str | None, answer: str) -> None:
    assert split_thinking(written) == (reasoning, answer)
