"""The built module: no torch C++ symbols, no wide registers outside the ISA files."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
#: File name suffix → widest register that its code may touch.
WIDTHS = {
    "_avx2": "ymm",
    "_avxvnni": "ymm",
    "_avx512": "zmm",
    "_avx512vnni": "zmm",
    "_amxint8": "zmm",
}


def _tool(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} (binutils) is not installed")
    return path


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _torch_symbols(lines: list[str]) -> list[str]:
    pattern = re.compile(r"\b(at|c10|torch)::|_ZN?K?(St)?[A-Za-z0-9_]*?(2at|3c10|5torch)\d")
    return [line for line in lines if pattern.search(line)]


def test_torch_symbol_scan_finds_what_it_looks_for() -> None:
    names = ["U at::Tensor::dim() const", "U _ZN3c1010TensorImplE", "U vtable for c10::Error", "U _ZN2at4_ops3addE"]
    assert _torch_symbols(names) == names
    assert _torch_symbols(["U aoti_torch_delete_tensor_object", "U std::format(int)", "U _ZNSt6vectorIiE"]) == []


@pytest.mark.parametrize("demangle", [True, False])
def test_module_needs_no_unstable_torch_symbol(native: Any, demangle: bool) -> None:
    """at::, c10:: and torch:: C++ symbols change from release to release; the stable C shim does not."""
    flags = ["-C"] if demangle else []
    symbols = _output(_tool("nm"), "-D", "--undefined-only", *flags, native.__file__).splitlines()
    assert symbols, "nm found no undefined symbol at all"
    assert _torch_symbols(symbols) == []


def _objects() -> list[Path]:
    found = sorted((ROOT / "build").rglob("*.o"))
    if not found:
        pytest.skip("no object files under build/: the module was not built from this checkout")
    return found


def _allowed(path: Path) -> str | None:
    stem = path.name.split(".")[0]
    return next((width for suffix, width in WIDTHS.items() if stem.endswith(suffix)), None)


def _functions_with(objdump: str, path: Path, register: str) -> set[str]:
    """Names of the functions in which a register such as %ymm3 or %zmm3 appears."""
    function, found = "?", set()
    for line in _output(objdump, "-d", "--no-show-raw-insn", str(path)).splitlines():
        if line.endswith(">:"):
            function = line.split("<", 1)[1][:-2]
        elif f"%{register}" in line:
            found.add(function)
    return found


def test_every_isa_has_its_own_object_files(native: Any) -> None:
    names = {path.name.split(".")[0] for path in _objects()}
    for isa in native.isa_compiled():
        if isa != "generic":
            assert any(name.endswith(f"_{isa}") for name in names), f"no object file ends with _{isa}: {sorted(names)}"


def test_wide_registers_stay_in_the_isa_files() -> None:
    objdump = _tool("objdump")
    objects = _objects()
    offenders = []
    for path in objects:
        allowed = _allowed(path)
        forbidden = {None: ("ymm", "zmm"), "ymm": ("zmm",), "zmm": ()}[allowed]
        offenders += [
            f"{path.name}: {f} uses {r}" for r in forbidden for f in sorted(_functions_with(objdump, path, r))
        ]
    assert offenders == []
    assert {_allowed(path) for path in objects} >= {None, "ymm", "zmm"}  # the scan has seen all three kinds


def test_scan_sees_wide_registers_where_they_belong() -> None:
    objdump = _tool("objdump")
    for suffix, width in (("w8a8_avx2", "ymm"), ("w8a8_avx512vnni", "zmm")):
        path = next(p for p in _objects() if p.name.startswith(suffix + "."))
        assert _functions_with(objdump, path, width)


def test_isa_files_export_nothing_that_the_linker_could_share() -> None:
    """A weak symbol compiled with AVX-512 could replace its baseline twin in the whole module."""
    nm = _tool("nm")
    shared = []
    for path in _objects():
        if _allowed(path) is not None:
            for line in _output(nm, "-C", "--defined-only", str(path)).splitlines():
                kind, _, name = line[17:].partition(" ")
                if kind in "WVu":
                    shared.append(f"{path.name}: {name}")
    assert shared == []
