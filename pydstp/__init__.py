"""pydstp: Qwen3-VL from safetensors, with visual tokens that can come back while it answers."""

from pathlib import Path

_ROOT = Path(__file__).resolve().parent
if not (_ROOT / "models").is_dir():
    # In a source tree the models live beside the package; an installed package holds them itself.
    __path__.append(str(_ROOT.parent))
