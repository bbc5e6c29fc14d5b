"""What depends on the process: environment variables, fork, OpenMP runtimes, life without the native module."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
ISA_NAMES = ("generic", "avx2", "avxvnni", "avx512", "avx512vnni", "amxint8")

USE_LAYER = """
import json, sys, warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    BEFORE
    import torch, fastcompress.nn, fastcompress.ops
    import fastcompress as fc
    layer = fastcompress.nn.QuantLinear.from_float(torch.nn.Linear(40, 30), input_mode="dynamic")
    out = layer(torch.ones(3, 40))
    layer(torch.ones(2, 40))
ours = [str(w.message) for w in caught if "fastcompress" in str(w.message)]
print(json.dumps({"shape": list(out.shape), "finite": bool(out.isfinite().all()), "warnings": ours,
                  "native": fastcompress.ops.native.available, "isa": fastcompress.ops.info(layer.packed)["isa"]}))
"""


def _python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    clean = {k: v for k, v in os.environ.items() if not k.startswith("FASTCOMPRESS_")}
    return subprocess.run(
        [sys.executable, "-c", code],
        env=clean | {"PYTHONPATH": path} | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def _report(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


def test_forced_isa_is_used(native: Any) -> None:
    for isa in native.isa_supported():
        report = _report(_python(USE_LAYER.replace("BEFORE", "pass"), FASTCOMPRESS_ISA=isa))
        assert report == {"shape": [3, 30], "finite": True, "warnings": [], "native": True, "isa": isa}


@pytest.mark.parametrize("value", ["avx9000", "AVX2 ", "sse", "generic,avx2"])
def test_unknown_isa_is_an_error_that_lists_the_supported_ones(native: Any, value: str) -> None:
    done = _python(USE_LAYER.replace("BEFORE", "pass"), FASTCOMPRESS_ISA=value)
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert "FASTCOMPRESS_ISA" in last
    assert value.strip() in last
    assert all(name in last for name in native.isa_supported())


def test_unsupported_isa_is_an_error_that_lists_the_supported_ones(native: Any) -> None:
    missing = [name for name in native.isa_compiled() if name not in native.isa_supported()]
    if not missing:
        pytest.skip("this machine supports every ISA that was compiled")
    done = _python(USE_LAYER.replace("BEFORE", "pass"), FASTCOMPRESS_ISA=missing[0])
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert missing[0] in last
    assert all(name in last for name in native.isa_supported())


def test_set_isa_refuses_unknown_names_and_keeps_the_old_one(native: Any) -> None:
    before = native.isa()
    with pytest.raises(RuntimeError, match="avx9000") as caught:
        native.set_isa("avx9000")
    assert all(name in str(caught.value) for name in native.isa_supported())
    assert native.isa() == before


def test_isa_lists_are_consistent(native: Any) -> None:
    compiled, supported = native.isa_compiled(), native.isa_supported()
    assert [n for n in ISA_NAMES if n in compiled] == compiled  # weakest first
    assert [n for n in compiled if n in supported] == supported
    assert "generic" in supported
    assert native.isa() in supported
    chosen = {row["family"]: row["isa"] for row in native.kernels() if row["chosen"]}
    assert {"linear_w8a8", "conv2d_w8a8"} <= set(chosen)


def _work(native: Any, threads: int) -> np.ndarray:
    """A product large enough to be split over threads."""
    rng = np.random.default_rng(0)
    weight = rng.integers(-127, 128, (512, 512), dtype=np.int8)
    packed = native.pack_w8a8(weight, np.ones(512, np.float32), None, 1, 1.0, 0, 0)
    out = np.empty((256, 512), np.float32)
    native.linear_w8a8(rng.standard_normal((256, 512), dtype=np.float32), packed, out, threads=threads)
    return out


def _child(native: Any, want: np.ndarray, queue: Any) -> None:
    queue.put([bool(np.array_equal(_work(native, threads), want)) for threads in (1, 2, 3)])


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_forked_child_can_run_kernels_after_the_parent_has(native: Any) -> None:
    """libgomp's pool does not survive a fork (a DataLoader worker, for example); the child must not wait for it."""
    want = _work(native, 3)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_child, args=(native, want, queue), daemon=True)
    child.start()
    child.join(60)
    hangs = child.is_alive()
    if hangs:
        child.kill()
    assert not hangs, "the forked child hangs in a kernel"
    assert child.exitcode == 0
    assert queue.get(timeout=10) == [True, True, True]
    assert np.array_equal(_work(native, 3), want)  # the parent is unharmed


def test_one_openmp_runtime_is_mapped(native: Any) -> None:
    """Two runtimes mean two thread pools that fight for the cores, and hangs."""
    code = (
        "import torch, fastcompress.ops\n"
        "from fastcompress.ops.native import module\n"
        "import numpy as np\n"
        "w = np.ones((512, 512), np.int8)\n"
        "p = module.pack_w8a8(w, np.ones(512, np.float32), None, 1, 1.0, 0, 0)\n"
        "module.linear_w8a8(np.ones((256, 512), np.float32), p, np.empty((256, 512), np.float32), threads=2)\n"
        "torch.ones(600, 600) @ torch.ones(600, 600)\n"
        "print(open('/proc/self/maps').read())\n"
    )
    if not Path("/proc/self/maps").exists():
        pytest.skip("needs /proc/self/maps")
    done = _python(code)
    assert done.returncode == 0, done.stderr
    libraries = {line.split()[-1] for line in done.stdout.splitlines() if "/" in line}
    runtimes = sorted(p for p in libraries if re.search(r"/lib(gomp|iomp5|omp)[-.\d\w]*\.so", p))
    assert len(runtimes) == 1, runtimes


def test_missing_native_module_is_one_warning_and_a_working_layer() -> None:
    """What an install without a compiler looks like: `fastcompress._C` cannot be imported."""
    hide = "sys.modules['fastcompress._C'] = None"
    report = _report(_python(USE_LAYER.replace("BEFORE", hide)))
    assert (report["shape"], report["finite"], report["native"], report["isa"]) == ([3, 30], True, False, "reference")
    assert len(report["warnings"]) == 1
    assert "fastcompress._C" in report["warnings"][0]
    assert "make build" in report["warnings"][0]


def test_native_module_can_be_switched_off_silently() -> None:
    report = _report(_python(USE_LAYER.replace("BEFORE", "pass"), FASTCOMPRESS_DISABLE_NATIVE="1"))
    assert report == {"shape": [3, 30], "finite": True, "warnings": [], "native": False, "isa": "reference"}


def test_thread_count_can_be_set_and_is_checked(native: Any) -> None:
    for count in (1, 2, 3):
        native.set_num_threads(count)
        assert native.num_threads() == count
    for bad in (0, -1):
        with pytest.raises(ValueError, match="thread"):
            native.set_num_threads(bad)


def test_ceilings_are_positive_numbers(native: Any) -> None:
    assert native.ceiling("fp32", 0.01) > 0
    assert native.ceiling("int8", 0.01) > 0
    assert native.read_bandwidth(1 << 20, 0.01) > 0
    with pytest.raises((ValueError, RuntimeError), match="int4"):
        native.ceiling("int4", 0.01)
