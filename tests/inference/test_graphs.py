"""CUDA graphs: when a new one is captured, and that each row of the result is in its place.

A CUDA graph needs a GPU. Most tests replace it by a call of the function that writes the result
where a graph would write it.
"""

import copy
import pickle
import threading

import pytest
import torch
from torch import Tensor

from mirrorgan_fast.inference.graphs import BUCKETS, Captured, Graphs
from mirrorgan_fast.inference.renderer import fuse
from mirrorgan_fast.models.mirrorgan import MirrorGAN
from mirrorgan_fast.ops import asked_for, use


class CalledAgain(Graphs):
    def capture(self, inputs: tuple[Tensor, ...]) -> Captured:
        output = self.function(*inputs).clone()

        def replay() -> None:
            output.copy_(self.function(*inputs))

        return Captured(replay, inputs, output)


@pytest.mark.parametrize("batch", [0, 1, 2, 3, 7, 8, 63, 64, 65, 130])
def test_results_are_in_the_order_of_the_rows(batch: int) -> None:
    graphs = CalledAgain(lambda a, b: a * 2 + b[:, None])
    for seed in range(3):
        torch.manual_seed(seed)
        a, b = torch.randn(batch, 3), torch.randn(batch)
        assert torch.equal(graphs(a, b), a * 2 + b[:, None])


def test_a_bucket_is_captured_once() -> None:
    graphs = CalledAgain(lambda a: a + 1)
    for batch in (1, 2, 3, 4, 4, 3, 70, 64, 6, 1):
        graphs(torch.ones(batch, 5))
    assert sorted(key[0] for key in graphs.captured) == [1, 2, 4, 8, 64]
    graphs(torch.ones(3, 6))  # each shape and data type needs its own graph
    graphs(torch.ones(3, 6).double())
    assert len(graphs.captured) == 7


def test_another_choice_of_implementations_is_captured_again() -> None:
    graphs = CalledAgain(lambda a: a + len(asked_for()))
    for _ in range(2):
        assert graphs(torch.zeros(2)).tolist() == [0, 0]
        with use("reference"):
            assert graphs(torch.zeros(2)).tolist() == [9, 9]
    assert len(graphs.captured) == 2


def test_a_graph_captured_in_inference_mode_runs_outside_it() -> None:
    graphs = CalledAgain(lambda a: a + 1)
    with torch.inference_mode():
        graphs(torch.zeros(3))
    assert graphs(torch.ones(3)).tolist() == [2, 2, 2]


def test_results_are_not_overwritten_by_the_next_call() -> None:
    graphs = CalledAgain(lambda a: a + 1)
    first = graphs(torch.zeros(3))
    graphs(torch.ones(3))
    assert first.tolist() == [1, 1, 1]


def test_inputs_are_not_overwritten() -> None:
    graphs = CalledAgain(lambda a: a + 1)
    for batch in (BUCKETS[2], 3):
        given = torch.zeros(batch)
        graphs(given)
        graphs(torch.ones(batch))
        assert given.tolist() == [0] * batch


def test_a_model_gives_the_same_images_with_graphs() -> None:
    """All captions are padded to one length, which must not change the images."""
    captions = ["a red bird", "this bird has a yellow crown and a white belly", "a small bird"]
    renderer = fuse(MirrorGAN.from_pretrained())
    expected = renderer.sample(captions, seed=3)
    renderer._graphs = CalledAgain(renderer._render)
    for indices in ([0], [1, 2], [0, 1, 2]):
        images = renderer.sample([captions[i] for i in indices], 3, indices)
        assert images == [expected[i] for i in indices]


def test_a_copy_has_no_graphs_yet() -> None:
    """A capture can be neither copied nor sent to another process."""
    renderer = fuse(MirrorGAN.from_pretrained())
    renderer._graphs = CalledAgain(renderer._render)
    expected = renderer.sample(["a red bird"])
    for made in (copy.deepcopy(renderer), pickle.loads(pickle.dumps(renderer))):
        assert made._graphs is None  # they are captured again on a GPU
        assert made.sample(["a red bird"]) == expected
    for graphs in (
        copy.deepcopy(renderer._graphs),
        pickle.loads(pickle.dumps(Graphs(torch.clone))),
    ):
        assert graphs.captured == {}


def test_a_stream_waits_for_the_stream_of_the_last_call() -> None:
    class Stream:
        def __init__(self) -> None:
            self.waited_for: list[Stream] = []

        def wait_stream(self, other: "Stream") -> None:
            self.waited_for.append(other)

    graphs = Graphs(torch.clone)
    a, b = Stream(), Stream()
    for stream in (a, a, b, b, a):
        graphs.follow(stream)
    assert (a.waited_for, b.waited_for) == ([b], [a])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_capturing_works_beside_other_streams_and_threads() -> None:
    model = MirrorGAN.from_pretrained().cuda()
    renderer = fuse(model)
    captions = ["a red bird", "a blue bird on a rock"] * 9
    encoded, noise = model.encode(captions), model.noise(1, range(len(captions)))
    inputs = [part.cuda() for part in (encoded.tokens, encoded.lengths, *noise)]
    expected = renderer._render(*inputs)
    ended = threading.Event()

    def allocate() -> None:
        while not ended.is_set():
            torch.empty(1 << 20).pin_memory().cuda()

    beside = threading.Thread(target=allocate)
    beside.start()
    try:
        for stream in (torch.cuda.Stream(), torch.cuda.Stream()):
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for batch in (18, 1, 2, 5):
                    images = renderer.render(*(part[:batch] for part in inputs))
                    assert torch.equal(images, expected[:batch])
    finally:
        ended.set()
        beside.join()
