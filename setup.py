"""Build script: hands the extension ``fastcompress._C`` to CMake and ninja; everything else is in pyproject.toml.

Environment: ``FASTCOMPRESS_NATIVE`` = ``auto`` (default: build; where that fails, install pure Python with a warning),
``1`` (a failure is an error), ``0`` (never build). ``CXX`` names the compiler: ``g++-13``, ``ccache g++ -m64``.
"""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
BUILD_DIR = ROOT / "build" / "cmake"


class BuildError(Exception):
    """The native build lacks something or failed; the message says what and what to do."""


def find_tool(*names: str) -> str:
    """Return the first of ``names`` found beside this interpreter or on PATH."""
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.path.dirname(sys.executable), os.environ.get("PATH", "")])
    for name in names:
        if found := shutil.which(name, path=path):
            return found
    raise BuildError(f"none of {', '.join(names)} is on PATH")


def find_compiler() -> tuple[list[str], str, list[str]]:
    """Return what ``CXX`` names: launchers (``ccache``, say), the C++ compiler, flags."""
    words = shlex.split(os.environ.get("CXX", "")) or [find_tool("c++", "g++", "clang++")]
    programs = next((i for i, word in enumerate(words) if i and word.startswith("-")), len(words))
    found = [find_tool(word) for word in words[:programs]]
    return found[:-1], found[-1], words[programs:]


def cmake_arguments(library: Path) -> list[str]:
    """Return CMake's ``-D`` options; torch and pybind11 are asked where their headers are."""
    for package in ("torch", "pybind11"):
        if importlib.util.find_spec(package) is None:
            raise BuildError(f"{package} is not installed here (pip install it, then use --no-build-isolation)")
    include_dir = Path(sysconfig.get_path("include"))
    if not (include_dir / "Python.h").exists():
        raise BuildError(f"{include_dir} has no Python.h (install this Python's development package, python3-dev)")
    import pybind11
    import torch

    launchers, compiler, flags = find_compiler()
    torch_dir = Path(torch.__file__).resolve().parent
    include = torch_dir / "include"
    return [
        f"-DCMAKE_BUILD_TYPE={os.environ.get('CMAKE_BUILD_TYPE', 'Release')}",
        f"-DCMAKE_CXX_COMPILER_LAUNCHER={';'.join(launchers)}",
        f"-DCMAKE_CXX_COMPILER={compiler}",
        f"-DCMAKE_CXX_FLAGS={' '.join([*flags, os.environ.get('CXXFLAGS', '')])}",
        f"-DCMAKE_MAKE_PROGRAM={find_tool('ninja', 'ninja-build')}",
        f"-DPYTHON_EXECUTABLE={sys.executable}",
        f"-DPYTHON_INCLUDE_DIR={include_dir}",
        f"-DPYBIND11_INCLUDE_DIR={pybind11.get_include()}",
        f"-DTORCH_INCLUDE_DIR={include};{include / 'torch/csrc/api/include'}",
        f"-DTORCH_LIB_DIR={torch_dir / 'lib'}",
        f"-DFASTCOMPRESS_OUTPUT={library}",
    ]


def is_foreign(cache: Path, arguments: list[str]) -> bool:
    """Say whether a CMake cache is of another checkout, generator or compiler, and its findings do not hold here."""
    text = cache.read_text(errors="replace") if cache.exists() else ""
    compiler = next(a.partition("=")[2] for a in arguments if a.startswith("-DCMAKE_CXX_COMPILER="))
    wanted = f"CMAKE_HOME_DIRECTORY:INTERNAL={ROOT}\n", "CMAKE_GENERATOR:INTERNAL=Ninja\n", f"={compiler}\n"
    return bool(text) and not all(line in text for line in wanted)


def run(*command: str) -> None:
    """Run a step of the build; its output goes to the terminal (with pip: ``pip install -v``)."""
    if subprocess.run(command, check=False).returncode != 0:
        raise BuildError(f"{shlex.join(command[:2])} … failed (pip install -v shows the output)")


class CMakeBuild(build_ext):
    """Run CMake for the one extension; where that fails, the package is pure Python."""

    def build_extension(self, ext: Extension) -> None:
        mode = os.environ.get("FASTCOMPRESS_NATIVE", "auto")
        if mode not in ("auto", "0", "1"):
            raise SystemExit(f"FASTCOMPRESS_NATIVE={mode!r}: allowed are auto, 0 and 1")
        try:
            if mode != "0":
                self.build_native(Path(self.get_ext_fullpath(ext.name)).resolve())
        except Exception as failure:  # whatever it is (a torch that cannot be imported, a full disk): pure Python works
            if mode == "1":
                raise SystemExit(f"FASTCOMPRESS_NATIVE=1, but {failure}") from failure
            print(f"warning: fastcompress: no native kernels, {failure}; the reference path will run", file=sys.stderr)

    def build_native(self, output: Path) -> None:
        library = BUILD_DIR / output.name  # a fixed place, so that a second build finds nothing to do
        cmake, arguments = find_tool("cmake"), cmake_arguments(library)
        if is_foreign(BUILD_DIR / "CMakeCache.txt", arguments):
            shutil.rmtree(BUILD_DIR)
        run(cmake, "-S", str(ROOT), "-B", str(BUILD_DIR), "-G", "Ninja", *arguments)
        run(cmake, "--build", str(BUILD_DIR), "--target", "_C")
        output.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(library, output)


setup(
    # optional: setuptools must not insist on a file that a machine without a compiler cannot have.
    ext_modules=[Extension("fastcompress._C", sources=[], optional=True)],
    cmdclass={"build_ext": CMakeBuild},
)
