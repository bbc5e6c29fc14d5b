"""The build: what it does with an old, a broken and a wrapped compiler; the kernels alone, under sanitizers."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PATH = os.pathsep.join([sysconfig.get_path("scripts"), os.path.dirname(sys.executable), os.environ.get("PATH", "")])
SANITIZERS = "-fsanitize=address,undefined -fno-sanitize-recover=all"


def _tool(*names: str) -> str:
    for name in names:
        if found := shutil.which(name, path=PATH):
            return found
    pytest.skip(f"none of {', '.join(names)} is installed")


def _run(*command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PATH": PATH, **environment}
    return subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False, env=env)


def _build_tests(folder: Path, compiler: str, flags: str) -> tuple[str, Path]:
    """Configure and build the C++ test; returns what CMake said and the program."""
    options = [f"-DCMAKE_CXX_COMPILER={compiler}", f"-DCMAKE_CXX_FLAGS=-O0 {flags}", "-DCMAKE_BUILD_TYPE=None"]
    ninja = _tool("ninja", "ninja-build")
    configured = _run(
        _tool("cmake"), "-S", ROOT, "-B", folder, "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}",
        "-DFASTCOMPRESS_TESTS=ON", *options, CXXFLAGS="",
    )  # fmt: skip
    assert configured.returncode == 0, configured.stdout + configured.stderr
    built = _run(ninja, "-C", folder, "fastcompress_tests")
    assert built.returncode == 0, built.stdout + built.stderr
    return configured.stdout + configured.stderr, folder / "fastcompress_tests"


def _script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.mark.slow
def test_kernels_pass_under_address_and_undefined_behaviour_sanitizers(tmp_path: Path) -> None:
    compiler = _tool("c++", "g++", "clang++")
    probe = tmp_path / "probe.cpp"
    probe.write_text("int main() { return 0; }\n")
    if _run(compiler, *SANITIZERS.split(), probe, "-o", tmp_path / "probe").returncode != 0:
        pytest.skip(f"{compiler} has no address and undefined-behaviour sanitizers")
    _, program = _build_tests(tmp_path / "build", compiler, SANITIZERS)
    # Leaks: the worker threads of libgomp never end, and what they hold would be reported.
    result = _run(program, ASAN_OPTIONS="detect_leaks=0", OMP_NUM_THREADS="2")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "generic: ok" in result.stdout


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the optional ISAs are those of x86-64")
def test_older_compiler_leaves_out_the_isas_it_does_not_know(tmp_path: Path) -> None:
    unknown = "*-mavxvnni*|*-mavx512*|*-mamx*) echo unrecognized command-line option >&2; exit 1;;"
    compiler = _script(tmp_path / "old-c++", f'case "$*" in {unknown} esac\nexec {_tool("c++", "g++")} "$@"')
    said, program = _build_tests(tmp_path / "build", str(compiler), "")
    for name in ("AVXVNNI", "AVX512", "AVX512VNNI", "AVX512BF16", "AMXINT8", "AMXBF16"):
        assert f"no {name} kernels" in said
    result = _run(program)
    assert result.returncode == 0, result.stdout + result.stderr
    assert [line.split(":")[0] for line in result.stdout.splitlines()] == ["generic", "avx2"]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What setup.py needs, with a torch and a pybind11 that exist in name only."""
    pytest.importorskip("setuptools")
    _tool("cmake"), _tool("ninja", "ninja-build")
    if not (Path(sysconfig.get_path("include")) / "Python.h").exists():
        pytest.skip("Python.h is not installed")
    for name in ("setup.py", "CMakeLists.txt"):
        shutil.copy(ROOT / name, tmp_path)
    for package in ("torch", "pybind11"):
        (tmp_path / "site" / package).mkdir(parents=True)
        (tmp_path / "site" / package / "__init__.py").write_text("def get_include():\n    return ''\n")
    return tmp_path


def _setup(checkout: Path, mode: str, compiler: str) -> subprocess.CompletedProcess[str]:
    environment = {"FASTCOMPRESS_NATIVE": mode, "CXX": compiler, "PYTHONPATH": str(checkout / "site")}
    env = {**os.environ, "CXXFLAGS": "", **environment}
    command = [sys.executable, "setup.py", "build_ext", "--build-lib", "out", "--build-temp", "temp"]
    return subprocess.run(command, cwd=checkout, env=env, capture_output=True, text=True, check=False)


def test_failed_build_is_one_warning_by_default(checkout: Path) -> None:
    broken = _script(checkout / "broken", "exit 1")
    result = _setup(checkout, "auto", str(broken))
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stderr.count("warning: fastcompress: no native kernels") == 1
    assert not list(checkout.rglob("_C*.so"))


def test_failed_build_is_an_error_on_demand(checkout: Path) -> None:
    broken = _script(checkout / "broken", "exit 1")
    result = _setup(checkout, "1", str(broken))
    assert result.returncode != 0
    assert "FASTCOMPRESS_NATIVE=1, but" in result.stderr
    assert "Traceback" not in result.stderr


def test_compiler_variable_keeps_launcher_compiler_and_flags(checkout: Path) -> None:
    launcher, compiler = (_script(checkout / name, "exit 1") for name in ("launcher", "compiler"))
    _setup(checkout, "auto", f"{launcher} {compiler} -m64 -g0")
    lines = (checkout / "build" / "cmake" / "CMakeCache.txt").read_text().splitlines()
    cache = {line.split(":")[0]: line.partition("=")[2] for line in lines if "=" in line}
    assert cache["CMAKE_CXX_COMPILER_LAUNCHER"] == str(launcher)
    assert cache["CMAKE_CXX_COMPILER"] == str(compiler)
    assert cache["CMAKE_CXX_FLAGS"].split() == ["-m64", "-g0"]


def test_missing_compiler_is_named(checkout: Path) -> None:
    result = _setup(checkout, "1", "no-such-compiler")
    assert result.returncode != 0
    assert "none of no-such-compiler is on PATH" in result.stderr
