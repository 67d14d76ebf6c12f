"""The GPU side of a call: where it goes, and what becomes of the status that comes back."""

from __future__ import annotations

import re
from collections.abc import Callable

import torch

from pydstp import _C
from pydstp.errors import CapacityError, DeviceError

OUT_OF_MEMORY, NO_DRIVER, NO_GPU, NO_IMAGE = 2, 35, 100, 209  # of cudaError_t
OLDEST = (8, 0)  # compute capability: the first with bfloat16 arithmetic

HOW_TO_BUILD = ("the CUDA toolkit's nvcc on PATH, then CMAKE_ARGS=-DPYDSTP_CUDA=ON pip install "
                "--no-build-isolation --force-reinstall --no-deps .")
_HINTS = {
    NO_DRIVER: "; install a driver for this GPU that is new enough",
    NO_GPU: "; no GPU is visible to this process",
    NO_IMAGE: "; this build has machine code for {architectures} only",
}


def is_built() -> bool:
    """Whether this build of the native module has kernels for GPUs."""
    return hasattr(_C, "cuda_status")


def launch(native: Callable[..., None], device: torch.device, *arguments: object) -> None:
    """Run the GPU version of a native function on torch's current stream of a device.

    Raises:
        DeviceError: it has none, or the launch was refused; the message says why.
        CapacityError: the GPU has no memory left.
    """
    name = native.__name__
    launcher = getattr(_C, f"{name}_cuda", None)
    if launcher is None:
        raise no_gpu_version(name, device)
    with torch.cuda.device(device):
        status = launcher(torch.cuda.current_stream().cuda_stream, *arguments)
    check_status(name, status)


def no_gpu_version(name: str, device: torch.device) -> DeviceError:
    """The error for an op that gets tensors on a GPU and has no version for it."""
    reason = f"{name} has no GPU version" if is_built() else _not_built()
    return DeviceError(f"{name}: expected tensors on cpu, got some on {device}: {reason}")


def require(option: str, device: torch.device, *names: str) -> None:
    """Native functions that a GPU has to have for what an option of the engine asks.

    Raises:
        DeviceError: one is missing; the message names it.
    """
    for name in names:
        if not hasattr(_C, f"{name}_cuda"):
            reason = f"{name} has no GPU version" if is_built() else _not_built()
            raise DeviceError(f"{option} on {device}: {reason}")


def check_status(name: str, status: int) -> None:
    """Turn a CUDA status other than 0 into an error.

    name: of the op whose launch gave it.
    """
    if status == 0:
        return
    kind = CapacityError if status == OUT_OF_MEMORY else DeviceError
    raise kind(f"{name}: the GPU refused the launch: {_explained(status)}")


def find_gpu() -> torch.device:
    """torch's current GPU, if the ops can run there.

    Raises:
        DeviceError: they cannot; the message says what is missing.
    """
    if not is_built():
        raise DeviceError(f"device: expected a build with CUDA for 'cuda': {_not_built()}")
    status = _C.cuda_status()
    if status != 0:
        raise DeviceError(f"device: expected an NVIDIA GPU for 'cuda': {_explained(status)}")
    if not torch.cuda.is_available():
        raise DeviceError("device: expected a torch that reaches the GPU for 'cuda', got torch "
                          f"{torch.__version__}, built for CUDA {torch.version.cuda}")
    device = torch.device("cuda", torch.cuda.current_device())
    _check_capability(device, torch.cuda.get_device_capability(device))
    return device


def _check_capability(device: torch.device, capability: tuple[int, int]) -> None:
    name, (major, minor) = torch.cuda.get_device_name(device), capability
    if capability < OLDEST:
        raise DeviceError(f"device: expected a GPU of compute capability {OLDEST[0]}.{OLDEST[1]} "
                          f"or newer, got {major}.{minor} ({name})")
    if not has_image(capability, _C.cuda_architectures()):
        raise DeviceError(
            f"device: expected a build for compute capability {major}.{minor} ({name}), got one "
            f"for {_C.cuda_architectures()}; build it with "
            f"CMAKE_ARGS=-DCMAKE_CUDA_ARCHITECTURES={major}{minor}-real")


def has_image(capability: tuple[int, int], architectures: str) -> bool:
    """Whether machine code of a build runs on a GPU.

    capability: (major, minor). architectures: as CMake writes them, "80-real 90a-real". Code runs
    on its own generation from its own minor number on, with an `a` on that very one alone; what is
    not marked `real` holds code that the driver translates for anything newer.
    """
    for number, suffix, kind in re.findall(r"(\d+)([af]?)(-\w+)?", architectures):
        built = divmod(int(number), 10)
        is_same = capability == built
        is_newer = not suffix and capability[0] == built[0] and capability >= built
        is_translated = not suffix and kind != "-real" and capability >= built
        if is_same or is_newer or is_translated:
            return True
    return architectures in ("native", "all", "all-major")  # whatever the builder had in mind


def _explained(status: int) -> str:
    text = _C.cuda_error(status) if is_built() else "unknown"
    hint = _HINTS.get(status, "")
    if status == NO_IMAGE and is_built():
        hint = hint.format(architectures=_C.cuda_architectures())
    return f"status {status}, {text}{hint}"


def _not_built() -> str:
    return f"this build of pydstp has no kernels for GPUs; to build them: {HOW_TO_BUILD}"
