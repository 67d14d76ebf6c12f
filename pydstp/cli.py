"""The command line: parses, calls the API, prints. The answer goes to stdout, the rest to stderr.

torch is imported by the commands and not above them: `main` sets the variables that its OpenMP
run-time reads while it is loaded, and `pydstp --help` stays quick.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pydstp import __version__
from pydstp.cli_bench import add_bench_command
from pydstp.cli_experiments import add_experiment_commands
from pydstp.cli_selection import add_selection_flags, selection_of
from pydstp.console import (
    cancelled_by_ctrl_c,
    loading_bar,
    prepare_streams,
    report,
    say,
    summary,
    write,
)
from pydstp.errors import CancelledError, PydstpError

if TYPE_CHECKING:
    from pydstp.config import EngineConfig, SamplingParams
    from pydstp.engine import Engine

# OpenMP workers that spin while they wait take milliseconds per parallel region as soon as the
# machine has anything else to do; sleeping workers take microseconds. Values set outside win.
THREAD_VARIABLES = {"OMP_WAIT_POLICY": "passive"}

EXIT_OK, EXIT_WRONG, EXIT_ERROR, EXIT_INTERRUPTED = 0, 1, 2, 130

Flags = tuple[tuple[str, dict[str, Any]], ...]


def pixels(text: str) -> int | str:
    """The value of --max-pixels: a number or the word `checkpoint`."""
    return text if text == "checkpoint" else int(text)


SAMPLING_FLAGS: Flags = (
    ("--temperature", {"type": float, "help": "0 is greedy"}),
    ("--top-k", {"type": int, "help": "keep the k most likely tokens; 0 keeps all"}),
    ("--top-p", {"type": float, "help": "keep the smallest set that reaches this probability"}),
    ("--min-p", {"type": float, "help": "drop tokens less likely than this times the best"}),
    ("--repetition-penalty", {"type": float, "help": "1 is off"}),
    ("--presence-penalty", {"type": float, "help": "0 is off"}),
    ("--seed", {"type": int, "help": "makes sampled answers repeatable"}),
    ("--max-new-tokens", {"type": int, "help": "default: 1024, or what still fits"}),
    ("--min-new-tokens", {"type": int, "help": "no end token before this many"}),
    ("--ignore-eos", {"action": "store_const", "const": True, "help": "go on past end tokens"}),
    ("--stop", {"action": "append", "metavar": "TEXT", "help": "ends the answer; repeatable"}),
)
LOGPROBS_FLAG = ("--logprobs", {"type": int, "metavar": "N",
                                "help": "with --json: also the N best tokens"})

WEIGHTS_FLAG = ("--weights", {"metavar": "KIND", "help": "float (default), or int8: the decoder's "
                              "matrices in 8 bits, quantised while they are loaded"})

ENGINE_FLAGS: Flags = (
    ("--max-visual-tokens", {"type": int, "help": "visual tokens over all pictures"}),
    ("--max-text-tokens", {"type": int, "help": "all other tokens, prompt and answers"}),
    ("--min-pixels", {"type": int, "help": "smaller pictures are enlarged to this area"}),
    ("--max-pixels", {"type": pixels, "help": "larger pictures are shrunk to this area; "
                      "`checkpoint` takes the checkpoint's own limit"}),
    ("--max-tiles", {"type": int, "help": "where pictures are cut into tiles, at most so many"}),
    ("--num-threads", {"type": int, "help": "default: the processors of this process"}),
    WEIGHTS_FLAG,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0 done, 1 wrong or refused, 2 an error."""
    for name, value in THREAD_VARIABLES.items():
        os.environ.setdefault(name, value)
    prepare_streams()
    options = build_parser().parse_args(arguments)
    try:
        status = options.run(options)
        sys.stdout.flush()
        return status
    except CancelledError:
        return EXIT_INTERRUPTED
    except PydstpError as error:
        report(error)
        return EXIT_ERROR
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except OSError as error:
        # Nothing may be flushed at exit either, where the reader of a pipe has left or a disk is
        # full. The first is how `head` says that it has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            return EXIT_OK
        report(error)
        return EXIT_ERROR


def build_parser() -> argparse.ArgumentParser:
    """The parser; every command stores the function that runs it as `run`."""
    parser = argparse.ArgumentParser(
        prog="pydstp", description="Qwen3-VL and InternVL3.5 from safetensors.")
    parser.add_argument("--version", action="version", version=f"pydstp {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    generate = commands.add_parser("generate", help="answer one prompt about pictures")
    generate.add_argument("--prompt", required=True, metavar="TEXT")
    generate.add_argument("--json", action="store_true", help="print the whole result as JSON")
    add_flags(generate, (LOGPROBS_FLAG,))
    generate.set_defaults(run=run_generate)
    chat = commands.add_parser("chat", help="talk about pictures, turn by turn")
    chat.add_argument("--system", metavar="TEXT", help="a system message before the first turn")
    chat.set_defaults(run=run_chat)
    for command in (generate, chat):
        command.add_argument("--image", action="append", default=[], metavar="FILE",
                             help="a picture; repeatable")
        add_flags(command.add_argument_group("sampling"), SAMPLING_FLAGS)
    inspect = commands.add_parser("inspect", help="say what a checkpoint is and whether it loads")
    inspect.add_argument("path", metavar="PATH")
    inspect.add_argument("--json", action="store_true", help="print the report as JSON")
    add_flags(inspect, (WEIGHTS_FLAG,))
    inspect.set_defaults(run=run_inspect)
    demo = add_demo(commands)
    add_experiment_commands(commands)
    add_bench_command(commands)
    for command in (generate, chat, demo):
        add_engine_flags(command)
    return parser


def add_demo(commands: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """The parser of `pydstp demo`."""
    demo = commands.add_parser("demo", help="draw a picture, ask about it, check the answer")
    demo.add_argument("--task", default="trail", choices=("trail", "read", "locate", "haystack"))
    demo.add_argument("--seed", type=int, help="draws this picture again; default: a fresh one")
    demo.add_argument("--output", metavar="FILE", default="pydstp-demo.png",
                      help="where the picture is saved (default: %(default)s)")
    demo.set_defaults(run=run_demo)
    return demo


def add_engine_flags(command: argparse.ArgumentParser) -> None:
    """What every command that loads a model takes."""
    command.add_argument("--model", metavar="PATH",
                         help="checkpoint folder; default: the small one that is embedded")
    add_selection_flags(command)
    command.add_argument("--device", default="auto")
    command.add_argument("--dtype", default="auto", help="auto, bfloat16 or float32")
    add_flags(command.add_argument_group("engine"), ENGINE_FLAGS)


def add_flags(group: argparse._ActionsContainer, flags: Flags) -> None:
    """Add flags whose default is None: what is not given is left to the dataclass."""
    for name, options in flags:
        metavar = {"metavar": "N"} if options.get("type") in (int, float, pixels) else {}
        group.add_argument(name, default=None, **{**metavar, **options})


def given(options: argparse.Namespace, flags: Flags) -> dict[str, Any]:
    """The flags of `flags` that were given, by the name of the field they fill."""
    names = [name.removeprefix("--").replace("-", "_") for name, _ in flags]
    values = {name: getattr(options, name, None) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def sampling_params(options: argparse.Namespace) -> SamplingParams:
    """The sampling flags as the API takes them."""
    from pydstp.config import SamplingParams

    return SamplingParams(**given(options, (*SAMPLING_FLAGS, LOGPROBS_FLAG)))


def open_engine(options: argparse.Namespace) -> Engine:
    """The engine of the flags, on the embedded checkpoint unless --model names another."""
    import torch

    import pydstp
    from pydstp.config import EngineConfig

    path = pydstp.demo_checkpoint() if options.model is None else options.model
    config: EngineConfig = EngineConfig(max_batch=1, **given(options, ENGINE_FLAGS))
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)  # the process is ours, unlike the library's
    return pydstp.Engine(path, device=options.device, dtype=options.dtype, config=config,
                         progress=loading_bar(), **selection_of(options))


def run_generate(options: argparse.Namespace) -> int:
    """`pydstp generate`."""
    sampling = sampling_params(options)
    with open_engine(options) as engine, cancelled_by_ctrl_c() as cancel:
        if options.json:
            generation = engine.generate(options.image, options.prompt, sampling, cancel=cancel)
            print(json.dumps(generation.to_dict(), ensure_ascii=False))
        else:
            stream = engine.stream(options.image, options.prompt, sampling, cancel=cancel)
            write(stream)
            say(summary(stream.generation))
    return EXIT_OK


def run_chat(options: argparse.Namespace) -> int:
    """`pydstp chat`."""
    from pydstp.repl import Repl

    sampling = sampling_params(options)
    with open_engine(options) as engine:
        Repl(engine, sampling, options.system, options.image).run()
    return EXIT_OK


def run_inspect(options: argparse.Namespace) -> int:
    """`pydstp inspect`: status 1 if the checkpoint would be refused."""
    from pydstp.preparation import READERS
    from pydstp.weights import inspect

    found = inspect(options.path, READERS, **given(options, (WEIGHTS_FLAG,)))
    print(json.dumps(found.to_dict(), indent=2) if options.json else found.to_text())
    return EXIT_WRONG if found.problems else EXIT_OK


def run_demo(options: argparse.Namespace) -> int:
    """`pydstp demo`: status 1 if the answer is wrong."""
    from pydstp.demo import run

    with open_engine(options) as engine, cancelled_by_ctrl_c() as cancel:
        is_right = run(engine, options.task, options.seed, options.output, cancel)
    return EXIT_OK if is_right else EXIT_WRONG
