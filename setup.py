"""Builds the extension by calling CMake, and maps models/ to pydstp.models."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


class CMakeBuild(build_ext):
    """Configures once, then builds what changed. In-place builds also get the test-only twins."""

    def run(self) -> None:
        self.is_developer_build = bool(self.inplace) or self.editable_mode
        super().run()

    def build_extension(self, ext: Extension) -> None:
        import pybind11

        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        temporary = Path(self.build_temp).resolve()
        build_dir = ROOT / "build" / "dev" if self.is_developer_build else temporary
        configure = [
            "cmake",
            "-S", str(ROOT),
            "-B", str(build_dir),
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DPYDSTP_SIMT={'ON' if self.is_developer_build else 'OFF'}",
            *(["-G", "Ninja"] if shutil.which("ninja") else []),
            *os.environ.get("CMAKE_ARGS", "").split(),
        ]  # fmt: skip
        subprocess.run(configure, check=True)
        subprocess.run(["cmake", "--build", str(build_dir), "--parallel"], check=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(build_dir / target.name, target)


setup(
    packages=[*find_packages(include=["pydstp", "pydstp.*"]), "pydstp.models"],
    package_dir={"pydstp.models": "models"},
    ext_modules=[Extension("pydstp._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
    # Asked for only where the machine has none: the wheel of CMake is large.
    setup_requires=[] if shutil.which("cmake") else ["cmake>=3.18"],
)
