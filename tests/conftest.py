"""Fixtures and options every test shares."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may reach for the network
# numpy's own threads, of no use to the oracle's small products, would wait busily for work on the kernels' cores.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import pytest

MIN_CASES = 20_000
CHUNK = 500
#: Kernel family → problems compared with the oracle in this run, for the summary line.
cases_run: Counter[str] = Counter()


def load_native() -> Any | None:
    """The native module, or None where it was not built."""
    from fastcompress.ops import native

    return native.module


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--cases",
        type=int,
        default=MIN_CASES,
        help=f"kernel problems per family, at least {MIN_CASES} (default); more is slower and covers more",
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--cases") < MIN_CASES:
        raise pytest.UsageError(f"--cases must be at least {MIN_CASES}, got {config.getoption('--cases')}")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "problem_range" in metafunc.fixturenames:
        cases = metafunc.config.getoption("--cases")
        ranges = [range(start, min(start + CHUNK, cases)) for start in range(0, cases, CHUNK)]
        metafunc.parametrize("problem_range", ranges, ids=[f"{r.start}-{r.stop - 1}" for r in ranges])
    if "isa" in metafunc.fixturenames:
        native = load_native()
        names = native.isa_supported() if native is not None else ["no-native-module"]
        metafunc.parametrize("isa", names, indirect=True)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if cases_run:
        native = load_native()
        isas = native.isa_supported() if native is not None else []
        counts = ", ".join(f"{family} {count:,}" for family, count in sorted(cases_run.items()))
        terminalreporter.write_line(f"distinct kernel problems, each on {', '.join(isas)}: {counts}")


@pytest.fixture
def native() -> Iterator[Any]:
    """The native module; the ISA and thread count it had are restored afterwards."""
    module = load_native()
    if module is None:
        pytest.skip("fastcompress._C is not built: kernel tests need it (make build)")
    isa, threads = module.isa(), module.num_threads()
    yield module
    module.set_isa(isa)
    module.set_num_threads(threads)


@pytest.fixture
def isa(native: Any, request: pytest.FixtureRequest) -> str:
    """Each supported ISA in turn, set for the test."""
    native.set_isa(request.param)
    return str(request.param)
