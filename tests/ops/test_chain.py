"""``conv2d_chain`` gives the bits of one call a convolution: any geometry, batch, number of threads and ISA."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from fastcompress.ops.chain_program import INPUT
from tests.ops.cases import rng
from tests.ops.chains import (
    FLOATS,
    FORMS,
    KINDS,
    Chain,
    assert_same,
    batch,
    plain_chain,
    random_chain,
    residual_chain,
    step_by_step,
)

CHAIN = torch.ops.fastcompress.conv2d_chain
SEEDS, CHUNK = 400, 100
BATCHES = (0, 1, 2, 3, 5, 16, 17, 33)


@pytest.fixture(autouse=True)
def _threads(native: Any) -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def _images(chain: Chain, seed: int) -> Tensor:
    return batch(chain, seed % 4, FORMS[seed % len(FORMS)], seed, wild=seed % 3 == 0)


@pytest.mark.parametrize("first", range(0, SEEDS, CHUNK))
def test_random_chains(first: int) -> None:
    for seed in range(first, first + CHUNK):
        chain = random_chain(seed)
        x = _images(chain, seed)
        before = x.clone()
        torch.set_num_threads(1 + seed % 3)
        assert_same(CHAIN(x, *chain.arguments()), step_by_step(x, chain.steps(), chain.layers), seed)
        assert torch.equal(x.nan_to_num(), before.nan_to_num()), seed


def test_random_chains_hold_every_case() -> None:
    found: Counter[Any] = Counter()
    for seed in range(SEEDS):
        chain = random_chain(seed)
        last = len(chain.layers) - 1
        read = {layer.options["input"] for layer in chain.layers}
        found.update({chain.dtype, "one channel" * (chain.channels == 1), "one pixel" * (chain.size == (1, 1))})
        for index, layer in enumerate(chain.layers):
            o = layer.options
            top, bottom, left, right = o["padding"]
            found.update(
                {
                    layer.kind,
                    ("last" if index == last else "inner", o["out_dtype"]),
                    ("adds", {None: "nothing", INPUT: "the input"}.get(o["residual"], "a step")),
                    ("reads", "the last" if o["input"] == index - 1 else "another"),
                    "asymmetric" * (top != bottom or left != right),
                    "strided" * (o["stride"] != (1, 1)),
                    "dilated" * (o["dilation"] != (1, 1)),
                    "unread" * (index not in {*read, last}),
                }
            )
    expected = {*KINDS, *FLOATS, torch.uint8, "one channel", "one pixel", "asymmetric", "strided", "dilated", "unread"}
    expected |= {("adds", what) for what in ("nothing", "the input", "a step")}
    expected |= {("reads", what) for what in ("the last", "another")}
    expected |= {(place, dtype) for place in ("last", "inner") for dtype in (*FLOATS, torch.uint8, torch.int8)}
    assert min((found[case], str(case)) for case in expected)[0] >= 8


@pytest.mark.parametrize("kind", KINDS)
def test_batches_and_threads(kind: str) -> None:
    chain = residual_chain(KINDS.index(kind), count=6, kind=kind)
    arguments, steps = chain.arguments(), chain.steps()
    whole = batch(chain, max(BATCHES), seed=1)
    torch.set_num_threads(1)
    expected = torch.cat([step_by_step(x.unsqueeze(0), steps, chain.layers) for x in whole])
    for form in (torch.contiguous_format, torch.channels_last):
        for count in BATCHES:
            x = whole[:count].contiguous(memory_format=form)
            for threads in (1, 2, 3, 4):
                torch.set_num_threads(threads)
                assert_same(
                    CHAIN(x, *arguments), expected[:count].contiguous(memory_format=form), (form, count, threads)
                )


def test_more_threads_than_images_and_than_shares_of_a_queue() -> None:
    chain = residual_chain(3, channels=16, size=8, count=3)
    x = batch(chain, 41)
    torch.set_num_threads(1)
    arguments = chain.arguments()
    expected = CHAIN(x, *arguments)
    for threads in (7, 19):
        torch.set_num_threads(threads)
        for count in (3, 20, 41):
            assert_same(CHAIN(x[:count], *arguments), expected[:count], (threads, count))


def test_every_isa(native: Any) -> None:
    chains = [residual_chain(seed, channels=16, kind=kind) for seed, kind in enumerate(KINDS)]
    chains += [random_chain(seed) for seed in range(1000, 1040)]
    for number, chain in enumerate(chains):
        x = _images(chain, number)
        found = []
        for isa in native.isa_supported():
            native.set_isa(isa)
            torch.set_num_threads(1 + number % 3)
            found.append(CHAIN(x, *chain.arguments()))
            assert_same(found[-1], found[0], (number, isa))


def test_images_do_not_meet() -> None:
    chain = residual_chain(5)
    x = batch(chain, 17)
    arguments = chain.arguments()
    expected = CHAIN(x, *arguments)
    order = torch.randperm(17, generator=rng(0))
    torch.set_num_threads(2)
    assert_same(CHAIN(x[order], *arguments), expected[order])


def test_long_chains_in_few_buffers() -> None:
    for seed, count in ((0, 40), (1, 200), (2, 1024)):
        chain = residual_chain(seed, channels=4, size=3, count=count)
        x = batch(chain, 3)
        assert_same(CHAIN(x, *chain.arguments()), step_by_step(x, chain.steps(), chain.layers), count)


def test_calls_from_several_python_threads() -> None:
    chains = [residual_chain(seed, channels=16, count=4) for seed in range(4)]
    calls = [(chain.arguments(), batch(chain, 5 + seed)) for seed, chain in enumerate(chains)]
    expected = [CHAIN(x, *arguments) for arguments, x in calls]
    wrong: list[object] = []

    def work(number: int) -> None:
        torch.set_num_threads(1 + number % 2)
        try:
            for turn in range(30):
                place = (number + turn) % len(calls)
                arguments, x = calls[place]
                if not torch.equal(CHAIN(x, *arguments), expected[place]):
                    wrong.append((number, turn))
        except Exception as error:  # an assertion here would be lost
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("shape", [(2, 3, 5, 4), (2, 1, 5, 4), (1, 1, 5, 4), (2, 3, 1, 1), (1, 3, 1, 1), (2, 1, 1, 1)])
@pytest.mark.parametrize("channels_last", [False, True])
def test_answers_in_the_format_of_one_convolution(shape: tuple[int, ...], channels_last: bool) -> None:
    n, channels, *size = shape
    one = plain_chain(channels, (size[0], size[1]), (3, 3, 2))
    x = batch(one, n, "channels_last" if channels_last else "contiguous")
    expected = torch.ops.fastcompress.conv2d_w8a8(
        x, one.steps()[0].packed, 3, (3, 3), (1, 1), (2, 2, 2, 2), (1, 1), None, torch.float32
    )
    assert_same(CHAIN(x, *one.arguments()), expected)
    two = plain_chain(channels, one.size, (3, 3, 2), (4, 1, 0))
    assert_same(CHAIN(x, *two.arguments()), step_by_step(x, two.steps(), two.layers))


def test_programs_at_any_multiple_of_eight_bytes() -> None:
    """As ``open_blob`` allows it: a program may be a view into a file's memory."""
    for seed, kind in enumerate(KINDS):
        chain = residual_chain(seed, channels=16, size=6, kind=kind)
        program, *rest = chain.arguments()
        x = batch(chain, 2)
        expected = CHAIN(x, program, *rest)
        for start in range(8, 72, 8):
            memory = torch.zeros(program.numel() + 136, dtype=torch.uint8)
            place = -memory.data_ptr() % 64 + start
            memory[place : place + program.numel()] = program
            assert_same(CHAIN(x, memory[place : place + program.numel()], *rest), expected, (kind, start))


def test_results_are_memory_of_their_own() -> None:
    chain = residual_chain(1, channels=8, size=4)
    x, arguments = batch(chain, 3, "channels_last"), chain.arguments()
    first = CHAIN(x, *arguments)
    kept = first.clone()
    second = CHAIN(x * 2, *arguments)
    assert first.data_ptr() not in (second.data_ptr(), x.data_ptr())
    assert torch.equal(first, kept)


def test_more_images_than_a_pass_takes(native: Any) -> None:
    chain = plain_chain(1, (1, 1), (1, 1, 0), (1, 1, 0))
    x = torch.arange((1 << 20) + 5).remainder(7).sub(3).float().view(-1, 1, 1, 1)
    found = CHAIN(x, *chain.arguments())
    assert torch.equal(found[-5:], CHAIN(x[-5:], *chain.arguments()))
    assert torch.equal(found[:7], CHAIN(x[:7], *chain.arguments()))
