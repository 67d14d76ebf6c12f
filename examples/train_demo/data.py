"""From task examples to the tensors of one training or evaluation batch."""
from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import jinja2
import numpy as np
import torch
from checkpoint import CHAT_TEMPLATE
from tokenizers import Tokenizer

from pydstp.tasks import Example
from pydstp.tasks.draw import BORDERS, STAR, Grid
from pydstp.tasks.read import ask

IGNORED = -100
# What a visual token should know about its cell and picture, with the number of classes.
FACTS = {"digit": 10, "arrow": 4, "row": 9, "col": 10, "border": 6, "star": 2, "mark": 7}


@dataclass
class Batch:
    """Tensors of one batch; `lengths` is [batch], everything else as the model takes it."""

    input_ids: torch.Tensor  # [batch, length], right-padded
    labels: torch.Tensor  # [batch, length], IGNORED outside the answers
    types: torch.Tensor  # [batch, length], 1 at image tokens
    patches: torch.Tensor  # [num_patches, 3 * 16 * 16], both temporal slices are this; or tiles
    grid_thw: torch.Tensor  # [num_images, 3]
    tasks: list[str]  # "both" for `locate` by digit and arrow
    facts: torch.Tensor  # [num_visual_tokens, len(FACTS)], what each cell shows


def render_prompt(num_images: int, prompt: str, template: str = CHAT_TEMPLATE) -> str:
    """The user turn with the images first, and the opening of the answer."""
    content = [{"type": "image"}] * num_images + [{"type": "text", "text": prompt}]
    messages = [{"role": "user", "content": content}]
    return _compiled(template).render(messages=messages, add_generation_prompt=True)


@cache
def _compiled(template: str) -> jinja2.Template:
    return jinja2.Environment().from_string(template)


class Cells:
    """Pictures as Qwen3-VL reads them: one visual token per cell."""

    image_token = "<|image_pad|>"

    def prompt(self, example: Example) -> str:
        """What the template writes, with all visual tokens."""
        cells = self.image_token * (example.meta["rows"] * example.meta["cols"])
        return render_prompt(len(example.images), example.prompt).replace(self.image_token, cells)

    def pixels(self, images: list) -> torch.Tensor:
        """The pictures of a batch as the model takes them."""
        return to_patches(images)

    def facts(self, examples: list[Example]) -> torch.Tensor:
        """The classes of FACTS for every visual token."""
        return cell_facts(examples)

    def size(self, rows: int, cols: int) -> dict[str, int]:
        """The size to draw where this one was thrown."""
        return {"rows": rows, "cols": cols}


def encode(tokenizer: Tokenizer, example: Example, more: list[tuple[str, str]] = (),
           style: Cells = Cells()) -> tuple[list[int], list[int]]:
    """Token ids and labels of a chat; `more` holds further questions and answers."""
    prompt = style.prompt(example)
    pieces = [(prompt, example.answer + "<|im_end|>")]
    pieces += [("\n" + render_prompt(0, question), answer + "<|im_end|>")
               for question, answer in more]
    ids, labels = [], []
    for asked, answered in pieces:
        asked, answered = tokenizer.encode(asked).ids, tokenizer.encode(answered).ids
        ids += asked + answered
        labels += [IGNORED] * len(asked) + answered
    return ids, labels


def follow_up(rng: np.random.Generator, example: Example) -> list[tuple[str, str]]:
    """A second question about the same single picture."""
    shown = example.meta["grids"][0]
    grid = Grid(*(np.array(shown[key]) for key in ("digits", "arrows", "marks")))
    prompt, answer, _ = ask(rng, grid, "cell")
    return [(prompt, answer)]


def to_patches(images: list) -> torch.Tensor:
    """Images of one size -> normalised patches [num_patches, 768] in merge-block order."""
    pixels = torch.from_numpy(np.stack([np.asarray(image) for image in images]))
    count, height, width, _ = pixels.shape
    blocks = pixels.view(count, height // 32, 2, 16, width // 32, 2, 16, 3)
    blocks = blocks.permute(0, 1, 4, 2, 5, 7, 3, 6).reshape(-1, 768)
    return blocks.float() / 127.5 - 1


def cell_facts(examples: list[Example], side: int | None = None) -> torch.Tensor:
    """The classes of FACTS for every cell of every picture, [num_visual_tokens, len(FACTS)].

    side: visual tokens of a row and of a column, where they are not the cells; a token then tells
    of the cell that its middle is in.
    """
    tables = []
    for shown in (grid for example in examples for grid in example.meta["grids"]):
        digits, marks = np.array(shown["digits"]), np.array(shown["marks"])
        row, col = np.indices(digits.shape)
        border = 0 if shown["border"] is None else 1 + tuple(BORDERS).index(shown["border"])
        whole = [np.full(digits.shape, value) for value in (border, int((marks == STAR).any()))]
        columns = [digits, np.array(shown["arrows"]), row, col, *whole, marks]
        table = np.stack(columns, -1)
        if side is not None:
            middle = (np.arange(side) + 0.5) / side
            rows, cols = ((middle * count).astype(int) for count in digits.shape)
            table = table[rows][:, cols]
        tables.append(table.reshape(-1, len(FACTS)))
    return torch.from_numpy(np.concatenate(tables))


def collate(tokenizer: Tokenizer, examples: list[Example],
            more: list[list[tuple[str, str]]] | None = None, style: Cells = Cells()) -> Batch:
    """Pad examples whose pictures have one size into a batch."""
    pad, image = (tokenizer.token_to_id(name) for name in ("<|endoftext|>", style.image_token))
    encoded = [encode(tokenizer, example, extra, style)
               for example, extra in zip(examples, more or [()] * len(examples))]
    length = max(len(ids) for ids, _ in encoded)
    input_ids = torch.full((len(examples), length), pad)
    labels = torch.full((len(examples), length), IGNORED)
    for row, (ids, marks) in enumerate(encoded):
        input_ids[row, :len(ids)] = torch.tensor(ids)
        labels[row, :len(ids)] = torch.tensor(marks)
    images = [picture for example in examples for picture in example.images]
    width, height = images[0].size
    grid_thw = torch.tensor([[1, height // 16, width // 16]]).repeat(len(images), 1)
    tasks = ["both" if example.meta["kind"] == "both" else example.task for example in examples]
    return Batch(input_ids, labels, (input_ids == image).int(), style.pixels(images), grid_thw,
                 tasks, style.facts(examples))
