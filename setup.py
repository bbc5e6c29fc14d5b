"""Build script: hands the extension ``fastcompress._C`` to CMake and ninja; everything else is in pyproject.toml.

Environment: ``FASTCOMPRESS_NATIVE`` = ``auto`` (default: build where the tools and torch are present, otherwise install
pure Python with a warning), ``1`` (missing tools are an error), ``0`` (never build). ``CXX`` names the compiler.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
BUILD_DIR = ROOT / "build" / "cmake"


class ToolMissingError(Exception):
    """Something that the native build needs is not on this machine; the message says what."""


def find_tool(*names: str) -> str:
    """Return the first of ``names`` found beside this interpreter or on PATH."""
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.path.dirname(sys.executable), os.environ.get("PATH", "")])
    for name in names:
        if found := shutil.which(name, path=path):
            return found
    raise ToolMissingError(f"none of {', '.join(names)} is on PATH")


def find_compiler() -> str:
    """Return a C++ compiler that can compile and link a program against the standard library."""
    wanted = os.environ.get("CXX", "").split()[:1] or ["c++", "g++", "clang++"]
    compiler = find_tool(*wanted)
    probe = "#include <vector>\nint main() { return (int)std::vector<int>{}.size(); }\n"
    command = [compiler, "-std=c++17", "-x", "c++", "-", "-o", os.devnull]
    result = subprocess.run(command, input=probe, text=True, capture_output=True, check=False)
    if result.returncode != 0:
        reason = (result.stderr.strip().splitlines() or ["no output"])[-1]
        raise ToolMissingError(f"{compiler} cannot build a C++17 program ({reason})")
    return compiler


def cmake_arguments(library: Path) -> list[str]:
    """Return CMake's ``-D`` options; torch and pybind11 are asked where their headers are."""
    for package in ("torch", "pybind11"):
        if importlib.util.find_spec(package) is None:
            raise ToolMissingError(f"{package} is not installed here (pip install it, then use --no-build-isolation)")
    import pybind11
    import torch

    torch_dir = Path(torch.__file__).resolve().parent
    include = torch_dir / "include"
    return [
        f"-DCMAKE_BUILD_TYPE={os.environ.get('CMAKE_BUILD_TYPE', 'Release')}",
        f"-DCMAKE_CXX_COMPILER={find_compiler()}",
        f"-DCMAKE_MAKE_PROGRAM={find_tool('ninja', 'ninja-build')}",
        f"-DPYTHON_EXECUTABLE={sys.executable}",
        f"-DPYTHON_INCLUDE_DIR={sysconfig.get_path('include')}",
        f"-DPYBIND11_INCLUDE_DIR={pybind11.get_include()}",
        f"-DTORCH_INCLUDE_DIR={include};{include / 'torch/csrc/api/include'}",
        f"-DTORCH_LIB_DIR={torch_dir / 'lib'}",
        f"-DFASTCOMPRESS_OUTPUT={library}",
    ]


def is_foreign(cache: Path) -> bool:
    """Say whether a CMake cache was made in another checkout or by another generator, so that CMake would refuse it."""
    text = cache.read_text(errors="replace") if cache.exists() else ""
    here = f"CMAKE_HOME_DIRECTORY:INTERNAL={ROOT}\n" in text and "CMAKE_GENERATOR:INTERNAL=Ninja\n" in text
    return bool(text) and not here


class CMakeBuild(build_ext):
    """Run CMake for the one extension; a machine without the tools gets the pure-Python package and a warning."""

    def build_extension(self, ext: Extension) -> None:
        mode = os.environ.get("FASTCOMPRESS_NATIVE", "auto")
        if mode not in ("auto", "0", "1"):
            raise SystemExit(f"FASTCOMPRESS_NATIVE={mode!r}: allowed are auto, 0 and 1")
        if mode == "0":
            return
        output = Path(self.get_ext_fullpath(ext.name)).resolve()
        library = BUILD_DIR / output.name  # a fixed place, so that a second build finds nothing to do
        try:
            cmake, arguments = find_tool("cmake"), cmake_arguments(library)
        except ToolMissingError as missing:
            if mode == "1":
                raise SystemExit(f"FASTCOMPRESS_NATIVE=1, but {missing}") from None
            print(f"warning: fastcompress: no native kernels, {missing}; the reference path will run", file=sys.stderr)
            return
        if is_foreign(BUILD_DIR / "CMakeCache.txt"):
            shutil.rmtree(BUILD_DIR)
        subprocess.run([cmake, "-S", str(ROOT), "-B", str(BUILD_DIR), "-G", "Ninja", *arguments], check=True)
        subprocess.run([cmake, "--build", str(BUILD_DIR), "--target", "_C"], check=True)
        output.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(library, output)


setup(
    # optional: setuptools must not insist on a file that a machine without a compiler cannot have.
    ext_modules=[Extension("fastcompress._C", sources=[], optional=True)],
    cmdclass={"build_ext": CMakeBuild},
)
