"""The flags of `pydstp bench`, and what it does. The page goes to stdout, progress to stderr."""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydstp.console import loading_bar, say, write
from pydstp.errors import OptionError

if TYPE_CHECKING:
    from pydstp.bench.settings import BenchSettings

SIZE = "1024x1024"


def add_bench_command(commands: argparse._SubParsersAction) -> None:
    """Add the command; it stores the function that runs it as `run`."""
    command = commands.add_parser(
        "bench", help="how fast a model runs here, against a cost model and against peers")
    command.add_argument("model", nargs="?", metavar="MODEL", help="checkpoint folder; or:")
    command.add_argument("--shape", metavar="NAME", help="random weights of a named shape: small, "
                         "qwen3-vl-2b, qwen3-vl-4b, internvl3.5-1b, internvl3.5-2b")
    command.add_argument("--folder", metavar="FOLDER", help="where random weights and exports are "
                         "kept for the next time; default: a temporary one")
    command.add_argument("--threads", type=int, metavar="N",
                         help="default: the processors of this process")
    command.add_argument("--weights", default="bf16", metavar="KIND",
                         help="bf16, fp32 or int8 (default: %(default)s)")
    command.add_argument("--image-size", metavar="WxH", help=f"in pixels (default: {SIZE})")
    command.add_argument("--visual-tokens", type=int, metavar="N",
                         help="instead: a picture of about so many visual tokens")
    command.add_argument("--new-tokens", type=int, default=32, metavar="N",
                         help="greedy tokens per answer (default: %(default)s)")
    command.add_argument("--repeats", type=int, default=5, metavar="N",
                         help="turns that count (default: %(default)s)")
    command.add_argument("--retention", default="100", metavar="P,P",
                         help="percentages of the visual tokens to keep (default: %(default)s)")
    command.add_argument("--pruning", default="divprune", metavar="METHOD",
                         help="of rows below 100 (default: %(default)s)")
    command.add_argument("--batch", default="1", metavar="B,B", help="a second table: decode "
                         "steps of so many sequences, on random keys and values")
    command.add_argument("--json", metavar="FILE", help="the whole record")
    _add_peer_flags(command)
    command.set_defaults(run=run_bench)


def _add_peer_flags(command: argparse.ArgumentParser) -> None:
    command.add_argument("--against", action="append", default=[], metavar="PEER",
                         help="transformers or openvino, in the same turns; repeatable")
    command.add_argument("--openvino-python", metavar="PATH",
                         help="python of the environment with OpenVINO GenAI")


def run_bench(options: argparse.Namespace) -> int:
    """`pydstp bench`."""
    from pydstp import demo_checkpoint
    from pydstp.bench.report import to_markdown
    from pydstp.bench.run import Reports, Request, run
    from pydstp.experiments.record import require_writable, write_json

    if (options.model is None) == (options.shape is None):
        raise OptionError("model: expected a checkpoint folder or --shape NAME, got "
                          + ("neither" if options.model is None else "both"))
    if options.json is not None:
        require_writable("--json", options.json)
    settings = settings_of(options)
    with _folder(options.folder) as folder, _bar() as steps:
        checkpoint = folder / options.shape if options.model is None else Path(options.model)
        request = Request(checkpoint, options.shape, folder, demo_checkpoint(),
                          _program(options.openvino_python))
        record = run(settings, request, Reports(say, loading_bar("writing"), steps))
    if options.json is not None:
        write_json("--json", Path(options.json), record)
    write(iter([to_markdown(record).rstrip("\n")]))
    return 0


def settings_of(options: argparse.Namespace) -> BenchSettings:
    """The flags, checked.

    Raises:
        OptionError: a value outside its range, or two that exclude each other.
    """
    from pydstp.bench import settings
    from pydstp.experiments.record import num_processors

    if options.image_size is not None and options.visual_tokens is not None:
        raise OptionError("--visual-tokens: expected it or --image-size, got both")
    size = settings.parse_size(options.image_size or SIZE)
    if options.visual_tokens is not None:
        size = settings.size_for(options.visual_tokens, _model_config(options))
    threads = num_processors() if options.threads is None else options.threads
    return settings.BenchSettings(
        threads=threads, weights=options.weights, image_size=size, new_tokens=options.new_tokens,
        repeats=options.repeats, retention=settings.numbers("retention", options.retention),
        batch=settings.numbers("batch", options.batch), method=options.pruning,
        against=tuple(options.against))


def _model_config(options: argparse.Namespace) -> Any:
    from pydstp.bench.shapes import model_config
    from pydstp.models.config import VLMConfig
    from pydstp.weights import open_checkpoint

    if options.shape is not None:
        return VLMConfig.from_dict(model_config(options.shape))
    checkpoint = open_checkpoint(options.model)
    return VLMConfig.from_dict(checkpoint.config, str(checkpoint.config_path))


def _program(name: str | None) -> str | None:
    """An absolute path, links not followed (a virtual environment is known by its link); what is
    not found stays as it is."""
    found = None if name is None else shutil.which(name)
    return name if found is None else str(Path(found).absolute())


@contextmanager
def _folder(path: str | None) -> Iterator[Path]:
    from pydstp.experiments.record import require_folder

    if path is not None:
        yield require_folder("--folder", path)
        return
    with tempfile.TemporaryDirectory(prefix="pydstp-bench-") as folder:
        yield Path(folder)


@contextmanager
def _bar() -> Iterator[Callable[[int], Callable[[], object]]]:
    """Makes a bar of so many answers, whose `update` is called after each."""
    from tqdm import tqdm

    with tqdm(unit=" answers", leave=False, disable=None) as bar:
        def start(total: int) -> Callable[[], object]:
            bar.reset(total)
            return bar.update

        yield start
