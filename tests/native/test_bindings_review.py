"""The bindings' own duties: what may be passed as a buffer, argument checks, the GIL, Ctrl-C."""

from __future__ import annotations

import re
import signal
import sys
import threading
import time
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch

F, U, S, I32 = np.float32, np.uint8, np.int8, np.int32


def _packed(native: Any, weight: np.ndarray | None = None, mode: int = 1) -> np.ndarray:
    weight = np.ones((6, 10), S) if weight is None else weight
    return np.asarray(native.pack_w8a8(weight, np.ones(len(weight), F), None, mode, 1.0, 0, 0))


class Stubborn:
    """Looks like an array until numpy asks for it."""

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        raise ValueError("not today")


class Exporter:
    """DLPack around a numpy array, as the protocol was before version 1.0 (`old`) and is now."""

    def __init__(self, array: np.ndarray, old: bool) -> None:
        self.array, self.old = array, old

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)

    def __dlpack__(self, **keywords: Any) -> Any:
        if self.old:
            if keywords:
                raise TypeError("no such keyword")
            return self.array.__dlpack__()
        return self.array.__dlpack__(max_version=(1, 0))


UNREADABLE = {
    "needs gradient": (lambda shape: torch.ones(shape, requires_grad=True), "requires? grad"),
    "bfloat16": (lambda shape: torch.ones(shape, dtype=torch.bfloat16), "uint16"),
    "meta": (lambda shape: torch.ones(shape, device="meta"), "meta"),
    "raises": (lambda _: Stubborn(), "not today"),
}


@pytest.mark.parametrize("name", UNREADABLE)
@pytest.mark.parametrize("argument", ["x", "packed", "out", "residual"])
def test_what_cannot_be_read_as_an_array_is_a_type_error(native: Any, argument: str, name: str) -> None:
    make, reason = UNREADABLE[name]
    arguments = {"x": np.ones((2, 10), F), "packed": _packed(native), "out": np.zeros((2, 6), F)}
    with pytest.raises(TypeError, match=f"linear_w8a8: {argument} ") as caught:
        native.linear_w8a8(**arguments | {argument: make((2, 6))})
    if not (argument == "out" and name == "raises"):  # no array to write to, whatever it says
        assert re.search(reason, str(caught.value))


@pytest.mark.parametrize("name", UNREADABLE)
def test_quantizer_refuses_such_outputs(native: Any, name: str) -> None:
    with pytest.raises(TypeError, match="quantize_per_tensor: out "):
        native.quantize_per_tensor(np.ones((2, 6), F), UNREADABLE[name][0]((2, 6)), 1.0, 0)


def test_tensor_without_gradient_is_an_output(native: Any) -> None:
    out = torch.zeros(2, 10, dtype=torch.int8)
    native.quantize_per_tensor(torch.full((2, 10), 3.0), out, 1.0, 0)
    assert torch.equal(out, torch.full((2, 10), 3, dtype=torch.int8))


def test_interrupts_are_not_turned_into_type_errors(native: Any) -> None:
    class Interrupted:
        def __array__(self, *_: Any, **__: Any) -> np.ndarray:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        native.blob_info(Interrupted())


@pytest.mark.skipif(np.lib.NumpyVersion(np.__version__) < "2.1.0", reason="numpy exports DLPack 1.0 since 2.1")
def test_dlpack_output_that_says_it_is_read_only_is_refused(native: Any) -> None:
    x, packed, memory = np.ones((2, 10), F), _packed(native), np.zeros((2, 6), F)
    native.linear_w8a8(x, packed, Exporter(memory, old=False))
    assert memory.all()
    memory[:] = 0
    memory.flags.writeable = False
    with pytest.raises(ValueError, match="linear_w8a8: out is read-only"):
        native.linear_w8a8(x, packed, Exporter(memory, old=False))
    assert not memory.any()


def test_dlpack_output_of_the_old_protocol_is_written(native: Any) -> None:
    """It cannot say whether it may be written, and numpy's view of it is always read-only."""
    memory = np.zeros((2, 6), F)
    native.linear_w8a8(np.ones((2, 10), F), _packed(native), Exporter(memory, old=True))
    assert memory.all()


def _neighbours(first: np.ndarray, second: np.ndarray, shared: int) -> tuple[np.ndarray, np.ndarray]:
    """Copies of both in one block of memory; the last `shared` bytes of the first are the first of the second."""
    memory = np.zeros(first.nbytes + second.nbytes, U)
    a = memory[: first.nbytes].view(first.dtype).reshape(first.shape)
    start = first.nbytes - shared
    b = memory[start : start + second.nbytes].view(second.dtype).reshape(second.shape)
    a[...], b[...] = first, second
    return a, b


CALLS: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "linear float": ("linear_w8a8", ("out",), ("x", "packed", "residual")),
    "linear u8": ("linear_w8a8", ("out",), ("x", "packed", "input_scale", "input_zero_point")),
    "conv2d": ("conv2d_w8a8", ("out",), ("x", "packed", "residual")),
    "per tensor": ("quantize_per_tensor", ("out",), ("x",)),
    "per token": ("quantize_per_token", ("out_q", "out_scale", "out_zero_point"), ("x",)),
}
PAIRS = [
    (name, written[i], other)
    for name, (_, written, read) in CALLS.items()
    for i in range(len(written))
    for other in (*written[i + 1 :], *read)
]


def _arguments(native: Any, name: str) -> dict[str, Any]:
    """Buffers of 4-byte multiples, so that any can follow any."""
    picture = np.zeros((1, 2, 2, 8), F)
    weight = np.ones((8, 12), S)
    calls: dict[str, dict[str, Any]] = {
        "linear float": {
            "x": np.ones((4, 12), F),
            "packed": _packed(native, weight),
            "out": np.zeros((4, 8), F),
            "residual": np.ones((4, 8), F),
        },
        "linear u8": {
            "x": np.ones((4, 12), U),
            "packed": _packed(native, weight),
            "out": np.zeros((4, 8), U),
            "input_scale": np.ones(4, F),
            "input_zero_point": np.zeros(4, I32),
            "dtype": "u8",
            "out_dtype": "u8",
        },
        "conv2d": {
            "x": np.ones((1, 4, 4, 4), F),
            "packed": _packed(native, np.ones((8, 4, 3, 3), S), 0),
            "out": picture,
            "residual": picture + 1,
            "stride": (1, 1),
            "padding": (0, 0, 0, 0),
            "dilation": (1, 1),
        },
        "per tensor": {"x": np.ones((4, 12), F), "out": np.zeros((4, 12), U), "scale": 1.0, "zero_point": 0},
        "per token": {
            "x": np.linspace(-1, 1, 48, dtype=F).reshape(4, 12),
            "out_q": np.zeros((4, 12), U),
            "out_scale": np.zeros(4, F),
            "out_zero_point": np.zeros(4, I32),
        },
    }
    return calls[name]


@pytest.mark.parametrize(("name", "first", "second"), PAIRS)
def test_an_output_must_not_share_memory(native: Any, name: str, first: str, second: str) -> None:
    function = getattr(native, CALLS[name][0])
    arguments = _arguments(native, name)
    a, b = arguments[first], arguments[second]
    message = f"{CALLS[name][0]}: {first} and {second} share memory"
    if second != "packed":  # a blob is aligned memory of its own
        apart = dict(zip((first, second), _neighbours(a, b, 0), strict=True))
        function(**arguments | apart)
        assert apart[first].any()
        with pytest.raises(ValueError, match=message):
            function(**arguments | dict(zip((first, second), _neighbours(a, b, 4), strict=True)))
        with pytest.raises(ValueError, match=message):
            function(**arguments | dict(zip((second, first), _neighbours(b, a, 4), strict=True)))
        return
    inside = b[-a.nbytes :].view(a.dtype).reshape(a.shape)
    with pytest.raises(ValueError, match=message):
        function(**arguments | {first: inside})


def test_empty_buffers_share_nothing(native: Any) -> None:
    pool = np.ones(12, F)
    native.linear_w8a8(pool[:0].reshape(0, 10), _packed(native), pool[:0].reshape(0, 6))


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("threads", [-1, 1025, 2**31 - 1])
def test_thread_arguments_are_checked(native: Any, name: str, threads: int) -> None:
    function = CALLS[name][0]
    with pytest.raises(ValueError, match=f"{function}: threads is {threads}, allowed: 0 .all. to 1024"):
        getattr(native, function)(**_arguments(native, name), threads=threads)
    getattr(native, function)(**_arguments(native, name), threads=1024)


def test_a_blob_of_the_other_family_is_named_first(native: Any) -> None:
    conv, linear = _packed(native, np.ones((6, 3, 3, 3), S), 0), _packed(native)
    with pytest.raises(ValueError, match="linear_w8a8: the packed weights belong to a convolution"):
        native.linear_w8a8(np.ones((2, 10), F), conv, np.zeros((2, 6), F))
    with pytest.raises(ValueError, match="conv2d_w8a8: the packed weights belong to a linear layer"):
        native.conv2d_w8a8(np.ones((1, 5, 5, 3), F), linear, np.zeros((1, 3, 3, 6), F), (1, 1), (0,) * 4, (1, 1))


def test_unpacking_lets_other_threads_run(native: Any) -> None:
    """Another thread must tick in the middle of the call, not only around it."""
    packed = _packed(native, np.ones((4096, 4096), S))
    ticks: list[float] = []
    stop = threading.Event()

    def tick() -> None:
        while not stop.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0.0005)

    thread = threading.Thread(target=tick, daemon=True)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    thread.start()
    try:
        for _ in range(20):  # a busy machine may give the other thread no time in one of them
            start = time.perf_counter()
            native.unpack_w8a8(packed)
            quarter = (time.perf_counter() - start) / 4
            if any(start + quarter < t < start + 3 * quarter for t in list(ticks)):
                return
        pytest.fail("no other thread ran during 20 calls of unpack_w8a8")
    finally:
        stop.set()
        thread.join()
        sys.setswitchinterval(interval)


class Alarm(Exception):
    pass


def _raise(_: int, __: FrameType | None) -> None:
    raise Alarm


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs POSIX timers")
@pytest.mark.parametrize("function", ["ceiling", "read_bandwidth"])
def test_long_measurements_hear_signals(native: Any, function: str) -> None:
    """What Ctrl-C does, with a signal that pytest does not use."""
    argument = "fp32" if function == "ceiling" else 1 << 20
    before = signal.signal(signal.SIGALRM, _raise)
    start = time.perf_counter()
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        with pytest.raises(Alarm):
            getattr(native, function)(argument, 8.0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert time.perf_counter() - start < 4


def test_measurements_say_which_seconds_came(native: Any) -> None:
    for seconds in (-1.0, 61.0, float("nan")):
        with pytest.raises(ValueError, match=r"ceiling: seconds is .*, allowed: 0 to 60"):
            native.ceiling("fp32", seconds)
    with pytest.raises(ValueError, match="read_bandwidth: bytes is 100, at least 4096"):
        native.read_bandwidth(100)
    assert native.ceiling("fp32", 0.0) > 0
