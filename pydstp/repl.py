"""`pydstp chat`: read a line, answer it, and keep what was said."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from pydstp.console import cancelled_by_ctrl_c, report, say, summary, write
from pydstp.errors import CancelledError, ImageError, PydstpError

if TYPE_CHECKING:
    from pydstp.config import SamplingParams
    from pydstp.engine import Engine

HELP = """\
/image FILE   show a picture with the next message (several: once per picture)
/clear        forget everything that was said and shown
/help         this list
/quit         leave (so does Ctrl-D); Ctrl-C stops an answer"""


class Repl:
    """One conversation at a terminal, or read from a pipe."""

    def __init__(self, engine: Engine, sampling: SamplingParams, system: str | None,
                 images: list[str]) -> None:
        self._engine = engine
        self._sampling = sampling
        self._system = system
        self._images: list[str] = []
        self._chat = engine.chat(system)
        for path in images:
            self.add_image(path)

    def run(self) -> None:
        """Read and answer until /quit or the end of the input."""
        is_terminal = sys.stdin.isatty()
        if is_terminal:
            import readline  # noqa: F401 (gives input() its line editing)
            say(HELP)
        while True:
            try:
                line = input("> " if is_terminal else "").strip()
            except EOFError:
                return
            except KeyboardInterrupt:
                say("\n/quit or Ctrl-D leaves")
                continue
            if line == "/quit":
                return
            try:
                self.handle(line)
            except PydstpError as error:
                report(error)

    def handle(self, line: str) -> None:
        """Do what one line says."""
        command, _, argument = line.partition(" ")
        if command == "/image":
            self.add_image(argument.strip().strip("'\""))
        elif command == "/clear":
            self.clear()
        elif command.startswith("/"):
            say(HELP)
        elif line:
            self.answer(line)

    def add_image(self, path: str) -> None:
        """Keep a picture for the next message."""
        path = os.path.expanduser(path)
        if not os.path.isfile(path):
            raise ImageError(f"image: expected a file, got {path!r}")
        self._images.append(path)

    def clear(self) -> None:
        """Start a new conversation."""
        self._chat.close()
        self._chat = self._engine.chat(self._system)
        self._images = []

    def answer(self, prompt: str) -> None:
        """Answer one message; a failed or cancelled one leaves the conversation as it was.

        Pictures of a message that was stopped go with the next one; those of one that failed do
        not, as they may be why.
        """
        images, self._images = self._images, []
        with cancelled_by_ctrl_c() as cancel:
            try:
                stream = self._chat.stream(prompt, images, self._sampling, cancel=cancel)
                write(stream)
                say(summary(stream.generation))
            except CancelledError:
                self._images = images
                say("(stopped)")
