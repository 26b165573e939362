"""A function of batches as CUDA graphs, so that a small batch costs its launches once."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mirrorgan_fast.ops import asked_for
from mirrorgan_fast.ops.parts import in_parts

BUCKETS = (1, 2, 4, 8, 16, 32, 64)


class Captured(NamedTuple):
    """A graph, and the memory that it reads and writes."""

    replay: Callable[[], None]
    inputs: tuple[Tensor, ...]
    output: Tensor


class Graphs:
    """A function whose result has a row for each row of its arguments, and depends on that alone.

    It is captured once for each of `BUCKETS` and each choice of implementations; other batches are
    filled up to the next bucket, and larger ones cut. A captured function must not wait for the GPU
    nor read its memory. All graphs share their memory: calls may come from several streams, one
    after the other, but not from two threads at once. A copy has no graphs yet.

    Args:
        function: takes tensors (N, ...) and returns one (N, ...), all of them on one GPU.
    """

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self.function = function
        self.captured: dict[tuple[object, ...], Captured] = {}
        self.pool: Any = None
        self.capturing: torch.cuda.Stream | None = None
        self.last: torch.cuda.Stream | None = None  # that had a call

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.function,)

    @torch.no_grad()
    def __call__(self, *inputs: Tensor) -> Tensor:
        """Return what the function returns, as a new tensor."""
        if len(inputs[0]) == 0:
            return self.function(*inputs)
        if inputs[0].is_cuda:
            self.follow(torch.cuda.current_stream(inputs[0].device))
        parts = [self._replay(*rows) for rows in in_parts(inputs, BUCKETS[-1])]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _replay(self, *inputs: Tensor) -> Tensor:
        batch = len(inputs[0])
        bucket = next(bucket for bucket in BUCKETS if bucket >= batch)
        about = tuple((tensor.shape[1:], tensor.dtype, tensor.device) for tensor in inputs)
        kind = inputs[0].device.type
        key = (bucket, *about, asked_for(), torch.is_autocast_enabled(kind))
        if key not in self.captured:
            with torch.inference_mode(False), torch.no_grad():  # or only inference mode may write
                # copies of the first row are as good as any to fill the bucket up
                rest = [t[:1].expand(bucket - batch, *t.shape[1:]) for t in inputs]
                filled = [torch.cat([t, more]) for t, more in zip(inputs, rest, strict=True)]
                self.captured[key] = self.capture(tuple(filled))
        captured = self.captured[key]
        for static, given in zip(captured.inputs, inputs, strict=True):
            static[:batch].copy_(given)
        captured.replay()
        return captured.output[:batch].clone()  # the next replay writes there again

    def follow(self, stream: torch.cuda.Stream) -> None:
        """Have a stream wait until another one has had its result out of the graphs' memory."""
        if self.last is not None and self.last != stream:
            stream.wait_stream(self.last)
        self.last = stream

    def capture(self, inputs: tuple[Tensor, ...]) -> Captured:
        """Capture the function on these inputs, whose memory becomes the graph's."""
        device = inputs[0].device
        if self.capturing is None:
            self.capturing = torch.cuda.Stream(device)  # one, or graphs could not share memory
            self.pool = torch.cuda.graph_pool_handle()
        stream = self.capturing
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            for _ in range(2):  # what is compiled and allocated once must not be captured
                self.function(*inputs)
        torch.cuda.current_stream(device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # Another thread may copy to the GPU meanwhile and allocate: that is not of this graph.
        with torch.cuda.graph(graph, self.pool, stream, "thread_local"):
            output = self.function(*inputs)
        return Captured(graph.replay, inputs, output)
