"""Train the embedded checkpoint: python train.py --out FOLDER. Resumes where it stopped.

First the vision tower alone learns to say what each visual token shows (heads that are thrown away
afterwards), then the whole model answers questions, on small pictures first (curriculum.py).
"""
from __future__ import annotations

import argparse
import json
import math
import os
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from curriculum import Curriculum, draw_vision
from data import FACTS, IGNORED, Batch, collate, follow_up
from families import FAMILIES
from tokenizers import Tokenizer
from torch import nn
from torch.nn import functional


def fact_loss(heads: nn.Linear, tokens: torch.Tensor, facts: torch.Tensor) -> torch.Tensor:
    """How well visual tokens [n, hidden] tell the facts [n, len(FACTS)] about their cells."""
    guesses = heads(tokens).split(list(FACTS.values()), 1)
    return sum(functional.cross_entropy(guess, fact) for guess, fact in zip(guesses, facts.T))


def answer_losses(model, batch: Batch, family=FAMILIES["qwen3_vl"]) -> tuple[torch.Tensor, ...]:
    """Per answer token [n]: loss, is the likeliest token right, row; and visual tokens [m, h]."""
    seen = family.see(model, batch)
    hidden = family.hidden(model, batch, seen)
    target = batch.labels[:, 1:]
    row, column = torch.nonzero(target != IGNORED, as_tuple=True)
    logits = model.lm_head(hidden[row, column])
    wanted = target[row, column]
    losses = functional.cross_entropy(logits, wanted, reduction="none")
    return losses, logits.argmax(-1) == wanted, row, torch.cat(list(seen.pooler_output))


def train_step(model, heads, tokenizer, groups: list, rng: np.random.Generator, family) -> dict:
    """Accumulate gradients over the groups; return loss and exactness of every example."""
    total = sum(len(group) for group in groups)
    log = {}
    for group in groups:
        chat = len(group[0].images) == 1 and len(groups) > 1
        more = [follow_up(rng, example) if chat and rng.random() < 0.1 else []
                for example in group]
        batch = collate(tokenizer, group, more, family)
        losses, right, row, tokens = answer_losses(model, batch, family)
        count = torch.bincount(row, minlength=len(group)).float()
        weight = count.rsqrt()[row]  # long answers count more, but not in proportion
        seen = 0.2 * len(group) * fact_loss(heads, tokens, batch.facts)
        ((losses * weight).sum() / 4 + seen).div(total).backward()
        missed = torch.zeros(len(group)).index_add_(0, row, (~right).float())
        sums = torch.zeros(len(group)).index_add_(0, row, losses.detach())
        for task, value, miss in zip(batch.tasks, (sums / count).tolist(), missed.tolist()):
            log.setdefault(task, []).append((value, float(miss == 0)))
    return log


def vision_step(model, heads, tokenizer, rng: np.random.Generator, step: int, family) -> dict:
    """One step of the vision warm-up."""
    batch = collate(tokenizer, draw_vision(rng, step, family), style=family)
    tokens = torch.cat(list(family.see(model, batch).pooler_output))
    loss = fact_loss(heads, tokens, batch.facts)
    loss.backward()
    return {"vision": [(loss.item(), 0.0)]}


def learning_rate(step: int, args: argparse.Namespace) -> float:
    """Warm up (again after the vision phase), hold, then fall along a cosine."""
    since = step if step < args.vision_steps else step - args.vision_steps
    share = (step - args.hold) / (args.steps - args.hold)
    fall = 0.5 * (1 + math.cos(math.pi * min(1.0, max(0.0, share))))
    return args.lr * min(1.0, (since + 1) / 50) * (0.01 + 0.99 * fall)


class Trainer:
    """Model, optimizer and curriculum, and how they are saved and resumed."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.step, self.seconds = args, 0, 0.0
        self.curriculum = Curriculum(tuple(args.tasks))
        self.family = FAMILIES[args.family]
        file = args.out / "checkpoint" / "tokenizer.json"
        known = file.exists()
        self.tokenizer = Tokenizer.from_file(str(file)) if known else self.family.tokenizer()
        self.model = self.family.model(self.tokenizer, args.seed)
        self.heads = nn.Linear(self.model.config.text_config.hidden_size, sum(FACTS.values()))
        self.weights = [*self.model.parameters(), *self.heads.parameters()]
        self.optimizer = torch.optim.AdamW(self.weights, args.lr, betas=(0.9, 0.98),
                                           weight_decay=0.01)
        if (args.out / "state.pt").exists():
            self.resume(torch.load(args.out / "state.pt"))

    def resume(self, state: dict) -> None:
        """Go on from a saved state."""
        for name in ("model", "heads", "optimizer"):
            getattr(self, name).load_state_dict(state[name])
        self.step, self.seconds = state["step"], state["seconds"]
        self.curriculum = Curriculum(**state["curriculum"])

    def save(self) -> None:
        """Write the checkpoint directory and, beside it, what is needed to resume."""
        folder = self.args.out / "checkpoint"
        self.model.save_pretrained(folder)
        self.family.write_files(folder, self.tokenizer)
        state = {name: getattr(self, name).state_dict() for name in ("model", "heads", "optimizer")}
        state |= {"step": self.step, "seconds": self.seconds,
                  "curriculum": asdict(self.curriculum)}
        torch.save(state, self.args.out / "state.tmp")
        os.replace(self.args.out / "state.tmp", self.args.out / "state.pt")

    def advance(self) -> dict:
        """One optimizer step; return loss and exactness of its examples, by task."""
        rng = np.random.default_rng([self.args.seed, self.step])
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, self.args)
        if self.step < self.args.vision_steps:
            log = vision_step(self.model, self.heads, self.tokenizer, rng, self.step,
                              self.family)
        else:
            groups = self.curriculum.draw(rng, self.step, self.args.batch, self.family)
            log = train_step(self.model, self.heads, self.tokenizer, groups, rng, self.family)
            for task, values in log.items():
                self.curriculum.record(task, float(np.mean(values, 0)[1]))
            if self.curriculum.maybe_rise():
                print("step", self.step, asdict(self.curriculum), flush=True)
        nn.utils.clip_grad_norm_(self.weights, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return log

    def run(self, every: int = 50) -> None:
        """Train to the end; log every `every` steps, save every five times that."""
        start, recent = time.time() - self.seconds, {}
        while self.step < self.args.steps:
            for task, values in self.advance().items():
                recent.setdefault(task, []).extend(values)
            self.seconds = time.time() - start
            if self.step % every == 0:
                self.report(recent)
                recent = {}
            if self.step % (5 * every) == 0 or self.step == self.args.steps:
                self.save()

    def report(self, recent: dict) -> None:
        """Print one line of JSON and append it to loss.jsonl."""
        line = {"step": self.step, "seconds": round(self.seconds, 1),
                "cpu_seconds": round(time.process_time(), 1), "level": self.curriculum.level,
                "lessons": list(self.curriculum.lessons.values())}
        for task, values in sorted(recent.items()):
            loss, exact = np.mean(values, axis=0)
            line[task] = {"loss": round(float(loss), 4), "exact": round(float(exact), 4)}
        print(json.dumps(line), flush=True)
        with open(self.args.out / "loss.jsonl", "a") as file:
            file.write(json.dumps(line) + "\n")


def main() -> None:
    """Parse the options and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--family", choices=tuple(FAMILIES), default="qwen3_vl")
    parser.add_argument("--tasks", nargs="+", choices=("read", "trail", "locate", "haystack"),
                        default=["read", "trail", "locate", "haystack"],
                        help="what to learn; `read` is where it begins")
    parser.add_argument("--steps", type=int, default=4700)
    parser.add_argument("--vision-steps", type=int, default=300)
    parser.add_argument("--hold", type=int, default=2820, help="step from which the rate falls")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    Trainer(args).run()


if __name__ == "__main__":
    main()
