"""A task for lmms-eval on a few of the project's own pictures, in local files."""

from __future__ import annotations

import io
from pathlib import Path
from types import ModuleType
from typing import Any

from pydstp.tasks import Example

NAME = "pydstp_toy"
TASK = """\
task: {name}
dataset_path: parquet
dataset_kwargs:
  data_files:
    test: {data}
  cache_dir: {folder}/cache
test_split: test
output_type: generate_until
doc_to_visual: !function utils.doc_to_visual
doc_to_text: !function utils.doc_to_text
doc_to_target: "answer"
generation_kwargs:
  max_new_tokens: 64
  do_sample: false
process_results: !function utils.process_results
metric_list:
  - metric: exact
    aggregation: mean
    higher_is_better: true
metadata:
  - version: 0.0
"""
UTILS = """\
import io

from PIL import Image


def doc_to_visual(doc):
    return [Image.open(io.BytesIO(doc["png"])).convert("RGB")]


def doc_to_text(doc, lmms_eval_specific_kwargs=None):
    return doc["question"]


def process_results(doc, results):
    return {"exact": float(results[0].strip() == doc["answer"])}
"""


def png(example: Example) -> bytes:
    """The picture of a question as a file."""
    out = io.BytesIO()
    example.images[0].save(out, "PNG")
    return out.getvalue()


def run(adapter: ModuleType, folder: Path, examples: list[Example], options: str) -> dict[str, Any]:
    """Write the task, let lmms-eval find the model by name and run it; returns its results."""
    import datasets
    from lmms_eval import models
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    data = folder / "test.parquet"
    datasets.Dataset.from_dict({
        "png": [png(example) for example in examples],
        "question": [example.prompt for example in examples],
        "answer": [example.answer for example in examples]}).to_parquet(data)
    (folder / "toy.yaml").write_text(TASK.format(name=NAME, data=data, folder=folder))
    (folder / "utils.py").write_text(UTILS)
    # As the entry point of an installed package does.
    models.MODEL_REGISTRY_V2.register_manifest(adapter.manifest(), overwrite=True)
    return simple_evaluate(
        model="pydstp", model_args=options, batch_size=2, tasks=[NAME], bootstrap_iters=0,
        task_manager=TaskManager("ERROR", include_path=str(folder), include_defaults=False,
                                 model_name="pydstp"))
