"""Routing to the GPU and its errors, on machines with and without one. No kernel runs here."""

from __future__ import annotations

import pytest
import torch

from pydstp import _C, ops
from pydstp.errors import CapacityError, DeviceError, OptionError
from pydstp.ops import cuda
from tests.ops import conftest
from tests.ops.gpu import STREAM, OnSecondGpu, on_gpu, pretend_torch_reaches_gpus

needs_build = pytest.mark.skipif(not cuda.is_built(), reason="this build has no CUDA: no nvcc")
needs_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
X, WEIGHT = torch.ones(3, 8), torch.ones(8)


@pytest.fixture
def torch_with_gpus(monkeypatch):
    pretend_torch_reaches_gpus(monkeypatch)
    return monkeypatch


def rms_norm(pool, x=X, weight=WEIGHT, **options):
    return ops.rms_norm(x, weight, 1e-6, pool=pool, **options)


def test_tensors_on_a_gpu_go_to_its_launcher_in_torchs_stream(torch_with_gpus, pool):
    calls = []
    torch_with_gpus.setattr(_C, "rms_norm_cuda", lambda *a: calls.append(a) or 0, raising=False)
    x, weight = on_gpu(X), on_gpu(WEIGHT)
    out = rms_norm(pool, x, weight)
    assert calls == [(STREAM, x.data_ptr(), weight.data_ptr(), 0, out.data_ptr(), 3, 8, 1e-6, 0)]
    assert out.device == x.device
    rms_norm(pool)
    assert len(calls) == 1, "tensors on the CPU went to the GPU"


def test_a_recording_repeats_launches(torch_with_gpus, pool):
    calls = []
    torch_with_gpus.setattr(_C, "rms_norm_cuda", lambda *a: calls.append(a) or 0, raising=False)
    with ops.Recording(ops.Scratch()) as recording, ops.scratch():
        rms_norm(pool, on_gpu(X), on_gpu(WEIGHT))
    recording.replay()
    assert len(calls) == 2 and calls[0] == calls[1]


@pytest.mark.parametrize("x, weight, found", [
    (X, on_gpu(WEIGHT), "weight: expected a tensor on cpu, like x, got cuda:0"),
    (on_gpu(X), WEIGHT, "weight: expected a tensor on cuda:0, like x, got cpu"),
    (on_gpu(X), on_gpu(WEIGHT, OnSecondGpu), "weight: expected a tensor on cuda:0, like x, got"),
    (X.to("meta"), WEIGHT, "x: expected a tensor on cpu or cuda, got meta")])
def test_tensors_on_several_devices_are_named(x, weight, found, pool):
    with pytest.raises(OptionError, match=found):
        rms_norm(pool, x, weight)
    rms_norm(pool)  # the next call starts anew


def test_a_refused_launch_is_an_error_and_is_not_recorded(torch_with_gpus, pool):
    torch_with_gpus.setattr(_C, "rms_norm_cuda", lambda *a: cuda.NO_DRIVER, raising=False)
    with ops.Recording(ops.Scratch()) as recording, pytest.raises(DeviceError, match="status 35"):
        rms_norm(pool, on_gpu(X), on_gpu(WEIGHT))
    assert recording._calls == []


def test_numbers_that_are_none_are_named_on_a_gpu_too(torch_with_gpus, pool):
    def launcher(stream, *arguments):
        raise TypeError
    torch_with_gpus.setattr(_C, "rms_norm_cuda", launcher, raising=False)
    with pytest.raises(OptionError, match="rms_norm: expected numbers as documented, got 'x'"):
        ops.rms_norm(on_gpu(X), on_gpu(WEIGHT), "x", pool=pool)


@needs_build
@needs_no_gpu
def test_without_a_driver_a_launch_is_refused_and_nothing_crashes(torch_with_gpus, pool):
    with pytest.raises(DeviceError, match=r"rms_norm: the GPU refused the launch: status \d+"):
        rms_norm(pool, on_gpu(X), on_gpu(WEIGHT))


@needs_build
@needs_no_gpu
@pytest.mark.parametrize("name", [name for name in dir(_C) if name.endswith("_cuda")])
def test_no_launcher_takes_arguments_of_another_number(name):
    with pytest.raises(TypeError, match=f"{name}\\(\\): incompatible function arguments"):
        getattr(_C, name)(0)


@needs_build
def test_every_op_of_a_decode_step_has_a_launcher():
    kernels = {name[:-5] for name in dir(_C) if name.endswith("_cuda")}
    assert kernels == {
        "argmax", "attention_return", "decode_attention", "dequantise_rows", "expert_linear",
        "gather_kv", "linear", "mean_kv", "qk_norm_rope", "quantise_rows",
        "quantised_expert_linear", "quantised_linear", "rms_norm", "sample_tokens", "shift_detect",
        "shift_select", "silu_and_mul", "sketch_keys", "sketch_scale", "store_kv"}


@needs_build
@pytest.mark.parametrize("status, kind, text", [
    (2, CapacityError, "status 2, cudaErrorMemoryAllocation: out of memory"),
    (9, DeviceError, "status 9, cudaErrorInvalidConfiguration"),
    (35, DeviceError, "cudaErrorInsufficientDriver: .*; install a driver"),
    (209, DeviceError, "cudaErrorNoKernelImageForDevice: .*; this build has machine code for 80")])
def test_what_a_status_says(status, kind, text):
    cuda.check_status("linear", 0)
    with pytest.raises(kind, match=f"linear: the GPU refused the launch: .*{text}"):
        cuda.check_status("linear", status)


def test_a_build_without_cuda_says_how_to_build_it(torch_with_gpus, pool):
    for name in [name for name in dir(_C) if "cuda" in name]:
        torch_with_gpus.delattr(_C, name)
    with pytest.raises(DeviceError, match="rms_norm: .* no kernels for GPUs.*-DPYDSTP_CUDA=ON"):
        rms_norm(pool, on_gpu(X), on_gpu(WEIGHT))
    with pytest.raises(DeviceError, match="device: .* no kernels for GPUs.*-DPYDSTP_CUDA=ON"):
        ops.find_gpu()


def test_an_op_without_a_gpu_version_says_so(torch_with_gpus, pool):
    x = on_gpu(torch.ones(2, 4, 8))
    with pytest.raises(DeviceError, match="prefill_attention: expected tensors on cpu, got "):
        ops.prefill_attention(x, x, x, scale=1.0, pool=pool)


@needs_build
@needs_no_gpu
def test_a_machine_without_a_gpu_says_what_is_missing():
    with pytest.raises(DeviceError, match=r"device: expected an NVIDIA GPU for 'cuda': status \d+"):
        ops.find_gpu()


@needs_build
def test_a_torch_without_cuda_is_named(monkeypatch):
    monkeypatch.setattr(_C, "cuda_status", lambda: 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceError, match="torch that reaches the GPU .* got torch 2"):
        ops.find_gpu()


@needs_build
@pytest.mark.parametrize("capability, text", [
    ((7, 5), r"compute capability 8.0 or newer, got 7.5 \(Test GPU\)"),
    ((12, 0), r"a build for compute capability 12.0 \(Test GPU\), got one for 80.*=120-real")])
def test_gpus_that_cannot_run_the_kernels_are_refused(monkeypatch, capability, text):
    monkeypatch.setattr(_C, "cuda_status", lambda: 0)
    monkeypatch.setattr(_C, "cuda_architectures", lambda: "80-real 90a-real")
    pretend_torch_reaches_gpus(monkeypatch, capability=capability)
    with pytest.raises(DeviceError, match=text):
        ops.find_gpu()


@needs_build
def test_a_gpu_that_can_run_them_is_found(monkeypatch):
    monkeypatch.setattr(_C, "cuda_status", lambda: 0)
    monkeypatch.setattr(_C, "cuda_architectures", lambda: "80-real 90a-real")
    pretend_torch_reaches_gpus(monkeypatch, capability=(9, 0))
    assert ops.find_gpu() == torch.device("cuda", 0)


@pytest.mark.parametrize("capability, architectures, has", [
    ((8, 0), "80-real 90a-real", True), ((8, 9), "80-real 90a-real", True),
    ((9, 0), "80-real 90a-real", True), ((9, 0), "80-real 90-real", True),
    ((9, 0), "80-real 89-real", False), ((10, 0), "90a-real", False), ((8, 0), "89-real", False),
    ((10, 3), "100-real", True), ((10, 3), "100a-real", False), ((12, 0), "100-real", False),
    ((12, 0), "80", True), ((12, 0), "80-virtual", True), ((12, 0), "120-real", True)])
def test_which_gpus_a_build_runs_on(capability, architectures, has):
    assert cuda.has_image(capability, architectures) is has


def test_the_op_tests_run_on_a_gpu_where_there_is_one():
    if not torch.cuda.is_available():
        pytest.skip("no GPU that torch can reach: op tests ran on the CPU and in emulation")
    assert conftest.GPUS == ["cuda"] and ops.find_gpu().type == "cuda"


def test_random_numbers_of_a_test_are_the_same_on_every_device():
    draws = [lambda g: torch.randn(3, generator=g), lambda g: torch.randperm(9, generator=g),
             lambda g: torch.randint(5, (2, 3), generator=g), lambda g: torch.rand(2, generator=g)]
    for draw in draws:
        expected = draw(torch.Generator().manual_seed(1))
        torch.set_default_device("meta")  # stands for any other than the CPU's own
        try:
            with conftest.DrawnOnCpu():
                elsewhere = draw(torch.Generator().manual_seed(1))
            assert elsewhere.device.type == "meta" and elsewhere.shape == expected.shape
        finally:
            torch.set_default_device(None)
        with conftest.DrawnOnCpu():
            assert torch.equal(draw(torch.Generator().manual_seed(1)), expected)
