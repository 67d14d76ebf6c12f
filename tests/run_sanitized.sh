#!/bin/sh
# Builds the extension with ASan and UBSan into build/sanitize and runs the op tests on it.
# Usage: tests/run_sanitized.sh [interpreter [pytest arguments]]
set -eu

cd "$(dirname "$0")/.."
python=$(command -v "${1:-python3}")
[ $# -eq 0 ] || shift
build=build/sanitize

generator=$(command -v ninja >/dev/null && echo "-GNinja" || true)
cmake -S . -B "$build" $generator -DPYDSTP_SANITIZE=ON -DPYDSTP_SIMT=ON -DPYDSTP_CUDA=OFF \
    -DPython_EXECUTABLE="$python" \
    -Dpybind11_DIR="$("$python" -m pybind11 --cmakedir)"
cmake --build "$build" --parallel
module=$(ls "$build"/_C.*.so)

# With the instructions at hand, the tier that emulates them reads and writes the same memory again.
chosen=$(grep -qs avx512_bf16 /proc/cpuinfo && echo "not avx512bf16_emulated" || true)

# The interpreter itself is not instrumented, so the runtimes go in first; it also leaks at exit.
compiler=${CXX:-c++}
LD_PRELOAD="$("$compiler" -print-file-name=libasan.so) $("$compiler" -print-file-name=libubsan.so)" \
ASAN_OPTIONS=detect_leaks=0:alloc_dealloc_mismatch=0 UBSAN_OPTIONS=print_stacktrace=1 \
    "$python" -m pytest -q -p no:cacheprovider tests/ops --native "$module" -k "$chosen" "$@"
