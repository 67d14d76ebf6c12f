"""The near end of a pipe to an engine in another process."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any

from pydstp import errors
from pydstp.errors import OptionError, PydstpError

HERE = Path(__file__).resolve().parent
# Peers look nothing up on the network, and none of their threads spins while another one runs.
ENVIRONMENT = ("env", "HF_HUB_OFFLINE=1", "TOKENIZERS_PARALLELISM=false", "OMP_WAIT_POLICY=passive")
LAST_LINES = 5  # of what a process wrote before it died
TRANSFORMERS = "pip install transformers==5.23.0"
OPENVINO = ('pip install "optimum-intel[openvino]==2.2.0" openvino-genai==2026.4.1 '
            'openvino-tokenizers "transformers==4.57.6" "torch>=2.11,<2.14"')
FIND_OPENVINO = ("import importlib.metadata, openvino_genai\n"
                 "importlib.metadata.version('optimum-intel')")


class Server:
    """An engine that answers one request after the other.

    Args:
        name: for messages.
        command: what is started; see `peer_server.serve` for how it speaks.

    Raises:
        PydstpError: the engine could not be opened; of the class that it was there.
    """

    def __init__(self, name: str, command: Sequence[str]) -> None:
        self.name = name
        self._log = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            [*ENVIRONMENT, *command], cwd=HERE.parents[1], text=True, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=self._log)
        try:
            self._receive()
        except BaseException:
            self.close()
            raise

    def call(self, method: str, **arguments: Any) -> Any:
        """What the engine's method returns.

        Raises:
            PydstpError: it raised, or the process has ended.
        """
        try:
            self._process.stdin.write(json.dumps({"call": method, **arguments}) + "\n")
            self._process.stdin.flush()
        except OSError:
            pass  # it has ended: the missing reply says so
        return self._receive()

    def _receive(self) -> Any:
        line = self._process.stdout.readline()
        if not line:
            status = self._process.wait()
            self._log.seek(0)
            last = " | ".join(self._log.read().splitlines()[-LAST_LINES:])
            raise PydstpError(f"{self.name}: expected a reply, but its process ended with status "
                              f"{status}: {last or 'nothing was said'}")
        reply = json.loads(line)
        if "error" not in reply:
            return reply["result"]
        kind = getattr(errors, reply["type"], None)
        if isinstance(kind, type) and issubclass(kind, PydstpError):
            raise kind(reply["error"])
        raise PydstpError(f"{self.name}: {reply['type']}: {reply['error']}")

    def close(self) -> None:
        """End the process; idempotent."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._log):
            try:
                stream.close()
            except OSError:
                pass  # what was not sent has nobody to read it

    def __enter__(self) -> Server:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()


def own_command(checkpoint: Path, options: dict[str, Any]) -> list[str]:
    """Starts pydstp on a checkpoint; options: see `own_server.py`."""
    return [sys.executable, "-m", "pydstp.bench.own_server", str(checkpoint), json.dumps(options)]


def peer_command(python: str, kind: str, folder: Path, num_threads: int) -> list[str]:
    """Starts a peer on a checkpoint or an exported folder."""
    return [python, "-I", str(HERE / "peer_server.py"), kind, str(folder), str(num_threads)]


def require_transformers() -> None:
    """Raise `OptionError` unless this environment has transformers."""
    if find_spec("transformers") is None:
        raise OptionError(f"against: expected the package transformers in this environment, got "
                          f"none; install it with: {TRANSFORMERS}")


def require_openvino(python: str | None) -> None:
    """Raise `OptionError` unless `python` belongs to an environment with OpenVINO GenAI."""
    needed = (f"the python of an environment of its own, made with: {OPENVINO}")
    if python is None:
        raise OptionError(f"openvino_python: expected {needed}; got none")
    try:
        done = subprocess.run([python, "-I", "-c", FIND_OPENVINO], capture_output=True, text=True,
                              timeout=120, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise OptionError(f"openvino_python: expected {needed}; got {python!r}: {error}") from None
    if done.returncode:
        last = (done.stderr.splitlines() or ["nothing was said"])[-1]
        raise OptionError(f"openvino_python: expected {needed}; got {python!r}, which says: {last}")


def export_openvino(python: str, checkpoint: Path, folder: Path, kind: str) -> None:
    """Export a checkpoint, unless `folder` holds it already.

    Raises:
        PydstpError: the exporter failed; the message ends with its last lines.
    """
    if (folder / "openvino_tokenizer.xml").exists():
        return
    done = subprocess.run(
        [*ENVIRONMENT, python, "-I", str(HERE / "export_openvino.py"), str(checkpoint),
         str(folder), "--weights", kind], capture_output=True, text=True, check=False)
    if done.returncode:
        last = " | ".join(done.stderr.splitlines()[-LAST_LINES:])
        raise PydstpError(f"openvino: the export of {checkpoint} ended with status "
                          f"{done.returncode}: {last}")
