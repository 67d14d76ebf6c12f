"""Rendering against transformers, the files a template comes from, and its sandbox."""

import json
from pathlib import Path

import pytest

from pydstp.chat import ChatTemplate, to_messages
from pydstp.errors import CheckpointError, PromptError
from tests.prompts.conversations import CONVERSATIONS, RICH_TEMPLATE
from tests.prompts.reference_processor import ReferenceProcessor, reference_processor
from tests.prompts.tokenizers_of_tests import save
from tests.tokenizer_files import CHAT_TEMPLATE, THINKING_TEMPLATE, write_preprocessor_files

TEMPLATES = {"qwen": CHAT_TEMPLATE, "thinking": THINKING_TEMPLATE, "rich": RICH_TEMPLATE}
HELLO = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = save(tmp_path_factory.mktemp("template"), "tokenizer.json")
    write_preprocessor_files(path)
    return path


@pytest.fixture(scope="module", params=TEMPLATES)
def pair(request: pytest.FixtureRequest, folder: Path) -> tuple[ChatTemplate, ReferenceProcessor]:
    source = TEMPLATES[request.param]
    template = ChatTemplate(source, roles={"eos_token": "<|im_end|>"})
    return template, reference_processor(folder, source)


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_rendering_equals_the_reference(name: str, pair: tuple) -> None:
    template, reference = pair
    messages, _ = to_messages(CONVERSATIONS[name])
    for options in ({}, {"add_generation_prompt": False}, {"add_vision_id": True}):
        asked = {"add_generation_prompt": True, **options}
        expected = reference.apply_chat_template(CONVERSATIONS[name], tokenize=False, **asked)
        assert template.render(messages, **options) == expected


def test_helpers_equal_the_reference(folder: Path) -> None:
    source = ("{{ {'é': [1, none, '<'], 'a': true} | tojson }}|{{ [1] | tojson(indent=2) }}|"
              "{{ strftime_now('%Y-%m') }}|{{ 7 % 3 }}{{ 2 * 3 }}{{ 'a' * 3 }}{{ 'x' ~ 1 ~ none }}|"
              "{% for a in [1, 2, 3] recursive %}{{ loop.index }}{{ loop.length }}{{ loop.last }}"
              "{% if a == 2 %}{% break %}{% endif %}{% endfor %}|{{ messages[0].nothing }}|"
              "{% for k, v in {'b': 1, 'a': 2} | dictsort %}{{ k }}{{ v }}{% endfor %}|"
              "{{ messages | map(attribute='role') | join(',') }}|{{ bos_token is defined }}|"
              "{% for c in 'abc' if c != 'b' %}{{ c | upper }}{{ loop.revindex }}{% endfor %}"
              "{% for c in [] %}x{% else %}-{% endfor %}|"
              "{% set x %}block {{ 1 }}{% endset %}{{ x | replace('b', 'B') }}|{{ [[1], 'a'] }}|"
              "{% macro m(a) %}{{ a }}{{ caller() }}{% endmacro %}{% call m(1) %}in{% endcall %}")
    expected = reference_processor(folder, source).apply_chat_template(HELLO, tokenize=False)
    template = ChatTemplate(source, roles={"eos_token": "<|im_end|>"})
    assert template.render(HELLO, add_generation_prompt=False) == expected


class TestFiles:
    def write(self, path: Path, name: str, content: object) -> None:
        text = content if isinstance(content, str) else json.dumps(content)
        (path / name).write_text(text, encoding="utf-8")

    def rendered(self, path: Path) -> str:
        return ChatTemplate.from_checkpoint(path).render(HELLO)

    def test_order_of_the_files(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="looked for chat_template.jinja, and .* "
                                                  "chat_template.json and tokenizer_config.json"):
            self.rendered(tmp_path)
        self.write(tmp_path, "tokenizer_config.json", {"chat_template": "config", "eos_token": "E"})
        assert self.rendered(tmp_path) == "config"
        self.write(tmp_path, "chat_template.json", {"chat_template": "json"})
        assert self.rendered(tmp_path) == "json"
        self.write(tmp_path, "chat_template.jinja", "jinja {{ eos_token }}")
        assert self.rendered(tmp_path) == "jinja E"

    @pytest.mark.parametrize("file", ["tokenizer_config.json", "chat_template.json"])
    def test_named_templates(self, file: str, tmp_path: Path) -> None:
        tool = {"name": "tool_use", "template": "tool"}
        self.write(tmp_path, file, {"chat_template": [tool]})
        assert self.rendered(tmp_path) == "tool"
        default = {"name": "default", "template": "default"}
        self.write(tmp_path, file, {"chat_template": [tool, default]})
        assert self.rendered(tmp_path) == "default"
        self.write(tmp_path, file, {"chat_template": [tool, {"name": "rag", "template": "rag"}]})
        with pytest.raises(CheckpointError, match=r"named 'default', got names \['tool_use', 'rag"):
            self.rendered(tmp_path)

    @pytest.mark.parametrize("content", [3, [], [1], [{"name": "a"}], {"a": "b"}])
    def test_templates_of_other_types(self, content: object, tmp_path: Path) -> None:
        self.write(tmp_path, "chat_template.json", {"chat_template": content})
        with pytest.raises(CheckpointError, match="chat_template: expected a text, or a list"):
            self.rendered(tmp_path)

    @pytest.mark.parametrize("source", ["{% for %}", "{{ x", "{% if x %}", "{{ x | nofilter }}",
                                        "{% tag %}", "{{" + "(" * 5000])
    def test_syntax_errors_name_the_file(self, source: str, tmp_path: Path) -> None:
        self.write(tmp_path, "chat_template.jinja", source)
        with pytest.raises(CheckpointError, match="chat_template.jinja.*: not a valid template"):
            self.rendered(tmp_path)


@pytest.mark.parametrize("source, message", [
    ("{{ raise_exception('no system message, please') }}", "them: no system message, please"),
    ("{{ messages[7].role.x }}", "has no element 7"),
    ("{{ 1 / 0 }}", "ZeroDivisionError"),
    ("{{ messages | tojson(indent='x', separators=3) }}", "TypeError"),
    ("{% include 'other' %}", "no loader"),
    ("{% import 'os' as os %}", "no loader"),
])
def test_failing_templates_are_prompt_errors(source: str, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        ChatTemplate(source).render(HELLO)


@pytest.mark.parametrize("source", [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}", "{{ cycler.__init__.__globals__ }}",
    "{{ messages.append(1) }}", "{{ messages[0].update({'role': 'x'}) }}",
    "{{ messages[0].clear() }}", "{{ self.__init__ }}", "{{ namespace.__init__ }}",
    "{{ ('{0.__class__}').format(1) }}", "{{ raise_exception.__globals__ }}",
    "{{ messages | map(attribute='__class__') | list }}", "{{ joiner.mro() }}",
    "{{ strftime_now.__code__ }}", "{{ range.__self__ }}", "{{ tojson.__globals__ }}",
])
def test_templates_cannot_leave_the_sandbox(source: str) -> None:
    messages = [dict(message) for message in HELLO]
    try:
        out = ChatTemplate(source).render(messages)
    except PromptError as error:
        out = str(error)
    assert messages == HELLO
    assert "<class" not in out and " at 0x" not in out and "'__builtins__'" not in out


@pytest.mark.parametrize("source", [
    "{% for a in range(10 ** 9) %}{% endfor %}",
    "{% for a in range(99999) recursive %}{{ loop(range(99999)) }}{% endfor %}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{% for a in range(9999) %}{% for b in range(9999) %}" + "text " * 1000
    + "{% endfor %}{% endfor %}",
])
def test_templates_that_write_without_end_are_refused(source: str) -> None:
    with pytest.raises(PromptError, match="SecurityError|OverflowError|RecursionError"):
        ChatTemplate(source).render(HELLO)


def test_a_long_conversation_is_no_trouble() -> None:
    template = ChatTemplate(CHAT_TEMPLATE)
    turn = {"role": "user", "content": "words " * 200}
    messages = [turn, {"role": "assistant", "content": "words " * 200}] * 500 + [turn]
    first = template.render(messages)
    for _ in range(3):
        assert template.render(messages) == first
