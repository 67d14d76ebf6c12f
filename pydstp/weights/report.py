"""The result of an inspection, for programs and for people."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

MIB, GIB = 1 << 20, 1 << 30


@dataclass
class CheckpointReport:
    """What `inspect` found. Entries that could not be read are None, zero or empty.

    text, vision: sizes. parameters: numbers in the tensors. dtypes: dtype in the files -> numbers
    held in it. dtype: what "auto" chooses. weights: "float" or "int8", as asked for. memory: bytes
    of weights, cache and workspace of an engine with default limits, their total, and what is
    available. problems: why an engine would refuse the checkpoint; empty if it would not.
    """

    path: str
    weights: str = "float"
    model_type: str | None = None
    text: dict[str, Any] = field(default_factory=dict)
    vision: dict[str, Any] = field(default_factory=dict)
    num_files: int = 0
    num_tensors: int = 0
    parameters: int = 0
    bytes_on_disk: int = 0
    dtypes: dict[str, int] = field(default_factory=dict)
    dtype: str | None = None
    is_tied: bool | None = None
    memory: dict[str, int | None] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """All fields, as JSON can hold them."""
        return asdict(self)

    def to_text(self) -> str:
        """The report for people, without a final newline."""
        return "\n".join([self.path, *self._model(), *self._weights(), *self._verdict()])

    def _model(self) -> list[str]:
        lines = [f"model    {self.model_type or 'unknown'}"]
        if self.text:
            sizes = ("{num_layers} layers, hidden {hidden_size}, {num_heads} query and "
                     "{num_kv_heads} kv heads of {head_dim}, vocabulary {vocab_size}")
            experts = "" if self.text["moe"] is None else (
                ", {num_experts_per_tok} of {num_experts} experts".format(**self.text["moe"]))
            lines.append("text     " + sizes.format(**self.text) + experts)
        if self.vision:
            sizes = "{depth} blocks, hidden {hidden_size}, {num_heads} heads, patch {patch_size}"
            lines.append("vision   " + sizes.format(**self.vision))
        return lines

    def _weights(self) -> list[str]:
        head = {None: "", True: ", tied head", False: ", head of its own"}[self.is_tied]
        dtypes = ", ".join(sorted(self.dtypes)) or "no"
        files = "1 file" if self.num_files == 1 else f"{self.num_files} files"
        lines = [f"weights  {self.num_tensors} tensors in {files}, {self.parameters:,} parameters, "
                 f"{size(self.bytes_on_disk)} of {dtypes} numbers{head}"]
        if self.memory:
            sizes = {name: size(num_bytes or 0) for name, num_bytes in self.memory.items()}
            held = "" if self.weights == "float" else f" in {self.weights}"
            lines.append("memory   {total_bytes} as {dtype} with default limits: weights "
                         "{weights_bytes}{held}, cache {cache_bytes}, workspace "
                         "{workspace_bytes}".format(dtype=self.dtype, held=held, **sizes))
            if self.memory["available_bytes"] is not None:
                lines.append(f"         {sizes['available_bytes']} are available")
        return lines

    def _verdict(self) -> list[str]:
        if not self.problems:
            return ["would be loaded"]
        return ["would be refused:", *(f"- {problem}" for problem in self.problems)]


def size(num_bytes: int) -> str:
    """A number of bytes for people."""
    return f"{num_bytes / GIB:.2f} GiB" if num_bytes >= GIB else f"{num_bytes / MIB:.1f} MiB"
