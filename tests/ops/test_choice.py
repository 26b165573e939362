"""Requests by name: whom they reach, and that nothing is left of them."""

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch
from torch import Tensor

from mirrorgan_fast.errors import InputError
from mirrorgan_fast.ops import (
    asked_for,
    batch_norm_glu,
    batch_norm_leaky_relu,
    choice,
    glam_attention,
    use,
    word_similarity,
)

from . import calls
from .conftest import compiled


def in_another_thread(function: Callable[[], str]) -> str:
    results = []
    thread = threading.Thread(target=lambda: results.append(function()))
    thread.start()
    thread.join()
    return results[0]


def enter(implementation: str) -> AbstractContextManager[None]:
    context = use(implementation)
    context.__enter__()
    return context


def leave(context: AbstractContextManager[None]) -> None:
    context.__exit__(None, None, None)


def compiled_lengths() -> tuple[Callable[[], int], list[object]]:
    """Return a compiled function that gives the length of the requested name, and its graphs."""
    graphs: list[object] = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., object]:
        graphs.append(graph)
        return graph.forward

    def length(x: Tensor) -> Tensor:
        return x + len(asked_for())

    torch.compiler.reset()
    run = torch.compile(length, fullgraph=True, backend=backend)
    return lambda: int(run(torch.zeros(()))), graphs


def test_a_request_does_not_reach_another_thread():
    with use("reference"):
        assert asked_for() == "reference"
        assert in_another_thread(asked_for) == ""

        def with_its_own() -> str:
            with use("cpu"):
                return asked_for()

        assert in_another_thread(with_its_own) == "cpu"
        assert asked_for() == "reference"
    assert asked_for() == ""


def test_asyncio_tasks_have_their_own_requests():
    async def task(implementation: str) -> str:
        with use(implementation):
            await asyncio.sleep(0.01)  # the other task enters its context here
            return asked_for()

    async def both() -> list[str]:
        return await asyncio.gather(task("reference"), task("cpu"))

    assert asyncio.run(both()) == ["reference", "cpu"]
    assert asked_for() == ""


def test_of_nested_contexts_the_inner_one_decides():
    with use("cpu"):
        with use("reference"):
            assert asked_for() == "reference"
        assert asked_for() == "cpu"
        with use(""):
            assert asked_for() == ""


def test_contexts_that_overlap_leave_nothing_behind():
    first, second = enter("reference"), enter("cpu")
    assert asked_for() == "cpu"
    leave(first)
    assert asked_for() == "cpu"
    leave(second)
    assert asked_for() == ""
    assert choice._names_of_all == ()


def test_an_exception_ends_a_request():
    with pytest.raises(ZeroDivisionError), use("reference"):
        _ = 1 / 0
    assert asked_for() == ""
    assert choice._names_of_all == ()


def test_an_unknown_implementation_is_refused():
    wanted = r"use: implementation: found 'gpu', wanted one of cpu, cuda, reference, triton"
    with pytest.raises(InputError, match=wanted), use("gpu"):
        pass
    assert asked_for() == ""
    assert choice._names_of_all == ()


@pytest.mark.parametrize(
    ("requested", "printed"),
    [("reference", "requested by name"), ("gpu", "MIRRORGAN_FAST_OPS: found 'gpu', wanted one of")],
)
def test_the_environment_requests_for_all_threads(requested, printed):
    script = """
import threading, torch
from mirrorgan_fast.errors import InputError
from mirrorgan_fast.ops import choice

def run():
    try:
        print(choice.choose("conv_glu", "cpu", torch.float32, needs_grad=False).reason)
    except InputError as error:
        print(error)

thread = threading.Thread(target=run)
thread.start()
thread.join()
"""
    environment = os.environ | {"MIRRORGAN_FAST_OPS": requested}
    command = [sys.executable, "-c", script]
    output = subprocess.run(command, env=environment, check=True, text=True, capture_output=True)
    assert output.stdout.startswith(printed)


def test_a_compiled_function_follows_a_request():
    run, graphs = compiled_lengths()
    assert run() == 0
    for _ in range(3):
        with use("reference"):
            assert run() == len("reference")
            with use("cpu"):
                assert run() == len("cpu")
            assert run() == len("reference")
        assert run() == 0
    assert len(graphs) == 3, "what was traced once is not traced again"


def test_a_compiled_function_follows_contexts_that_overlap():
    run, _ = compiled_lengths()
    reference, cpu, again = enter("reference"), enter("cpu"), enter("reference")
    assert run() == len("reference")
    leave(again)
    assert run() == len("cpu")
    leave(reference)
    assert run() == len("cpu")
    leave(cpu)
    # the same two names, but the other one was entered last
    cpu, reference = enter("cpu"), enter("reference")
    assert run() == len("reference")
    leave(reference)
    leave(cpu)
    assert run() == 0


def test_a_compiled_function_follows_the_thread_that_it_is_traced_in():
    """Whatever another thread requests at that time."""
    run, _ = compiled_lengths()
    entered, ended = threading.Event(), threading.Event()

    def request() -> None:
        with use("reference"):
            entered.set()
            ended.wait()

    other = threading.Thread(target=request)
    other.start()
    entered.wait()
    try:
        assert run() == 0
    finally:
        ended.set()
        other.join()


@compiled
def test_a_compiled_op_follows_a_request():
    inputs = calls.call("glam_attention_mix", calls.Shapes(), torch.float32).arguments[:3]
    targets: list[set[str]] = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., object]:
        targets.append({str(node.target) for node in graph.graph.nodes})
        return graph.forward

    torch.compiler.reset()
    run = torch.compile(glam_attention, fullgraph=True, backend=backend)
    for implementation in ("cpu", "reference", "cpu"):
        with use(implementation), torch.no_grad():
            run(*inputs)
    assert ["mirrorgan.glam_attention.default" in names for names in targets] == [True, False]


def losses() -> dict[str, Callable[[], Tensor]]:
    """Return a forward pass of every op that has a gradient."""
    ones = torch.ones
    x, words = ones(2, 6, 4, 4, requires_grad=True), ones(2, 3, 6, requires_grad=True)
    mask = ones(2, 3, dtype=torch.bool)
    runs: dict[str, Callable[[], Tensor]] = {
        "batch_norm_glu": lambda: batch_norm_glu(x, ones(6), ones(6))[0],
        "batch_norm_leaky_relu": lambda: batch_norm_leaky_relu(x, ones(6), ones(6))[0],
        "glam_attention": lambda: glam_attention(x, words, mask),
        "word_similarity": lambda: word_similarity(words, mask, words),
    }
    for op in ("conv_add", "conv_glu", "glam_attention_mix", "glam_stage"):
        called = calls.call(op, calls.Shapes(), torch.float32)
        called.arguments[0].requires_grad_()
        runs[op] = called.run
    return runs


@pytest.mark.parametrize("op", losses())
def test_a_backward_pass_chooses_nothing(implementation, monkeypatch, op):
    """On a GPU it runs in threads that no request reaches."""
    loss = losses()[op]().sum()

    def unreachable() -> str:
        raise AssertionError("the backward pass asks for the implementation")

    monkeypatch.setattr(choice, "asked_for", unreachable)
    with pytest.raises(AssertionError, match="asks for"):
        choice.choose("conv_glu", "cpu", torch.float32, needs_grad=False)
    loss.backward()
