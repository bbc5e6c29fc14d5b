"""With and without the native module: import works, one warning at most, and blobs say what they need."""

import os
import subprocess
import sys
from typing import Any

import pytest
import torch

from fastcompress.errors import PackedBlobError
from fastcompress.ops import native, pack, packing, reference_layout, unpack
from tests.ops.cases import canonical_linear

_HIDE = "import sys; sys.modules['fastcompress._C'] = None\n"
_USE = """
import warnings, torch
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import fastcompress.ops
    import fastcompress.nn
    from fastcompress.ops import native
    layer = fastcompress.nn.QuantLinear.from_float(torch.nn.Linear(8, 4), input_mode="dynamic")
    layer(torch.randn(2, 8)); layer.repack()
ours = [w for w in caught if "fastcompress" in str(w.message)]
print(native.available, len(ours), layer.kernel_name(), *(str(w.message)[:60] for w in ours))
"""


def _run(code: str, **environment: str) -> str:
    inherited = {key: value for key, value in os.environ.items() if key != "FASTCOMPRESS_DISABLE_NATIVE"}
    result = subprocess.run(
        [sys.executable, "-c", code], env={**inherited, **environment}, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_missing_module_warns_exactly_once_and_runs() -> None:
    assert _run(_HIDE + _USE) == (
        "False 1 linear_w8a8_reference fastcompress: the native kernels (fastcompress._C) are not a"
    )


def test_disabling_is_silent() -> None:
    assert _run(_USE, FASTCOMPRESS_DISABLE_NATIVE="1") == "False 0 linear_w8a8_reference"


def test_available_says_whether_the_module_is_loaded() -> None:
    assert native.available == (native.module is not None)


def test_blob_of_the_native_kernels_without_them(monkeypatch: pytest.MonkeyPatch) -> None:
    foreign = torch.full((400,), 7, dtype=torch.uint8)
    monkeypatch.setattr(native, "module", None)
    for function in (unpack, packing.check, packing.info):
        with pytest.raises(PackedBlobError, match="packed by the native kernels, or is no blob at all") as caught:
            function(foreign)
        assert "load the layer from its state_dict" in str(caught.value)


def test_native_kernels_refuse_a_reference_blob_and_repacking_helps(native: Any) -> None:
    c = canonical_linear()
    reference = reference_layout.encode(c)
    x = torch.randn(3, 7)
    with pytest.raises(RuntimeError):
        torch.ops.fastcompress.linear_w8a8(x, reference, 5)
    torch.ops.fastcompress.linear_w8a8(x, pack(unpack(reference)), 5)
