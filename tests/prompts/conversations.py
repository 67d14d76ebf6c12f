"""Conversations that templates and encoders are compared on."""

from PIL import Image

from tests.prompts.pictures import picture

RICH_TEMPLATE = """\
{%- set state = namespace(pictures=0, last_question=-1) %}
{%- if tools is not none %}
    {{- 'tools: ' ~ (tools | tojson) ~ '\\n' }}
{%- endif %}
{%- if messages[0].role != 'system' %}
    {{- '<|im_start|>system\\nBe brief.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'user' %}{% set state.last_question = loop.index0 %}{% endif %}
{%- endfor %}
{% macro show(content, role='user') %}
    {%- if content is string %}
        {{- content | trim }}
    {%- else %}
        {%- for item in content %}
            {%- if item.type == 'image' %}
                {%- set state.pictures = state.pictures + 1 %}
                {{- 'Picture ' + (state.pictures | string) + ': ' }}
                {{- '<|vision_start|><|image_pad|><|vision_end|>' }}
            {%- else %}
                {{- item['text'] }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
{% endmacro %}
{%- for message in messages %}
    {%- if message.role == 'assistant' and loop.index0 < state.last_question %}
        {%- set words = show(message.content).split('</think>')[-1].lstrip('\\n') %}
    {%- else %}
        {%- set words = show(message['content'], role=message.role) %}
    {%- endif %}
    {%- if not words %}{% continue %}{% endif %}
    {%- generation %}{{ '<|im_start|>%}' }}{% endgeneration -%}
    {{- message.role ~ '\\n' ~ words ~ eos_token }}
    {%- if message.reasoning_content is defined %}{{ ' (thought)' }}{% endif %}
    {%- if not loop.last or loop.index0 % 2 == 0 %}{{ '\\n' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n<think>\\n' }}
{%- endif %}
"""


def text(value: str) -> dict[str, str]:
    return {"type": "text", "text": value}


def shown(seed: int, width: int = 70, height: int = 50) -> dict[str, object]:
    return {"type": "image", "image": picture(width, height, seed)}


CONVERSATIONS: dict[str, list[dict]] = {
    "text": [{"role": "user", "content": "What is 2 + 2?"}],
    "unicode": [{"role": "user", "content": "  Où est l'été?\n\n日本 🙂 \t <b>&amp;</b> 1234  "}],
    "leading newlines": [{"role": "user", "content": "\n\n\n hi \n\n"}],
    "system": [{"role": "system", "content": "You are terse.\n"},
               {"role": "user", "content": "Go on."}],
    "items": [{"role": "user", "content": [text("one "), text("\n two"), text("")]}],
    "image": [{"role": "user", "content": [shown(0), text("What is this?")]}],
    "image last": [{"role": "user", "content": [text("What is this: "), shown(0, 33, 90)]}],
    "image alone": [{"role": "user", "content": [shown(0)]}],
    "three images": [{"role": "user", "content": [
        shown(0), text("first\n"), shown(1, 200, 40), shown(2, 64, 64), text("which?")]}],
    "turns": [{"role": "system", "content": "Look closely."},
              {"role": "user", "content": [shown(0), text("What?")]},
              {"role": "assistant", "content": "A red arrow."},
              {"role": "user", "content": "And its colour?"},
              {"role": "assistant", "content": [text("Red.")]},
              {"role": "user", "content": [text("And here? "), shown(1, 90, 30)]}],
    "reasoning in history": [
        {"role": "user", "content": "Think."},
        {"role": "assistant", "content": "<think>\nhm, <b> < c\n</think>\n\nDone."},
        {"role": "user", "content": "Again."},
        {"role": "assistant", "content": "short thought</think>Done twice."},
        {"role": "user", "content": "Why <"}],
    "empty answer": [{"role": "user", "content": "Say nothing."},
                     {"role": "assistant", "content": ""},
                     {"role": "user", "content": "Say it again."}],
    "almost tokens": [{"role": "user", "content": "a < b, <|, <|im_, |im_end|>, <im_end>, <| |>"}],
}


def pictures_of(messages: list[dict]) -> list[Image.Image]:
    return [item["image"] for message in messages if not isinstance(message["content"], str)
            for item in message["content"] if item["type"] == "image"]
