"""Build the native kernels on Windows, where setuptools would take a compiler that cannot: MSVC.

They are a library of C functions that uses nothing of Python, so that any other compiler will do:
clang++ with the libraries of MinGW-w64, which are linked in. (g++ for Windows does not align the
stack as AVX needs it.) Everything else about the package is in `pyproject.toml`.
"""

import os
import platform
import shutil
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

TARGETS = {"AMD64": "x86_64-w64-mingw32", "ARM64": "aarch64-w64-mingw32"}


class KernelsBuild(build_ext):
    """Builds extensions by clang++ on Windows, and as usual elsewhere."""

    def build_extension(self, ext: Extension) -> None:
        """Build one extension. `CXX` may name the compiler."""
        if sys.platform != "win32":
            super().build_extension(ext)
            return
        compiler = shutil.which(os.environ.get("CXX", "clang++"))
        target = TARGETS.get(platform.machine())
        if compiler is None or target is None:
            raise CompileError("the native kernels need clang++ and MinGW-w64")
        path = Path(self.get_ext_fullpath(ext.name))
        path.parent.mkdir(parents=True, exist_ok=True)
        command = [compiler, f"--target={target}", "-shared", "-static", *ext.extra_compile_args]
        command += [f"-I{folder}" for folder in ext.include_dirs]
        self.spawn([*command, *ext.sources, *ext.extra_link_args, "-o", str(path)])


setup(cmdclass={"build_ext": KernelsBuild})
