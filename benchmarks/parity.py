"""pydstp against transformers on trained weights: python -m benchmarks.parity [--n 50].

Per task: the largest difference of the first token's logits, and how many greedy answers are
identical. The trained model is the embedded checkpoint; the pictures are held out.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.accuracy import checkpoint_sha256
from benchmarks.common import environment, markdown_table, write_result
from pydstp import Engine, SamplingParams, SelectionParams, demo_checkpoint
from pydstp.tasks import TASKS, Example, is_correct, make_example
from tests.checkpoints import reference_model
from tests.engine.oracle import prompt_inputs, user

GREEDY = SamplingParams(temperature=0.0, max_new_tokens=128)


def reference_answer(inputs: dict[str, torch.Tensor]) -> tuple[np.ndarray, list[int]]:
    """(first logits [vocab_size], greedy token ids with the end token) of transformers."""
    output = reference_model(demo_checkpoint()).generate(
        **inputs, do_sample=False, max_new_tokens=128, output_logits=True,
        return_dict_in_generate=True)
    ids = output.sequences[0, inputs["input_ids"].shape[1]:].tolist()
    return output.logits[0][0].numpy(), ids


def our_logits(engine: Engine, example: Example) -> np.ndarray:
    """First logits [vocab_size] of the same prompt."""
    seq = engine._preparation.request(example.prompt, example.images, GREEDY, None,
                                      SelectionParams())
    seq.seq_idx = engine._scheduler.acquire(seq.cancel)
    logits = engine._runner.prefill(seq).copy()
    engine._scheduler.release(seq.seq_idx)
    return logits


@torch.inference_mode()
def compare(engine: Engine, task: str, count: int) -> dict[str, Any]:
    """One row of the table."""
    gaps, same, right, right_reference = [], 0, 0, 0
    for seed in tqdm(range(count), desc=task):
        example = make_example(task, seed)
        messages = [user(example.prompt, len(example.images))]
        logits, ids = reference_answer(prompt_inputs(demo_checkpoint(), messages, example.images))
        ours = our_logits(engine, example)
        gaps.append(float(np.abs(ours - logits).max() / max(1.0, np.abs(logits).max())))
        answer = engine.generate(example.images, example.prompt, GREEDY)
        same += answer.token_ids == ids
        right += is_correct(example, answer.text)
        right_reference += is_correct(example, engine.tokenizer.decode(ids))
    return {"task": task, "count": count, "identical": same, "largest_gap": max(gaps),
            "right": right, "right_transformers": right_reference}


def to_markdown(record: dict[str, Any]) -> str:
    """The table, with where it was measured."""
    rows = [[row["task"], str(row["count"]), f"{row['identical']} / {row['count']}",
             f"{row['largest_gap']:.1e}", f"{row['right']} and {row['right_transformers']}"]
            for row in record["rows"]]
    table = markdown_table(["task", "pictures", "identical greedy answers",
                            "largest gap of the first logits", "right: pydstp, transformers"], rows)
    where = record["environment"]
    return (f"# pydstp and transformers on the trained checkpoint\n\nfloat32. Gaps are in units of "
            f"max(1, largest |logit|).\n\n{table}\nWeights SHA-256 "
            f"`{record['checkpoint_sha256']}`, commit {where['commit']}, {where['date']}, "
            f"transformers {where['packages']['transformers']}, torch "
            f"{where['packages']['torch']}, {where['cpu']}.\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=50, help="pictures per task")
    options = parser.parse_args()
    with Engine(demo_checkpoint()) as engine:
        rows = [compare(engine, task, options.n) for task in TASKS]
    record = {"environment": environment(), "rows": rows,
              "checkpoint_sha256": checkpoint_sha256(demo_checkpoint())}
    print(write_result("parity", record, to_markdown(record)).read_text())


if __name__ == "__main__":
    main()
