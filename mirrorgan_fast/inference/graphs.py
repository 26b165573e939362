"""A function of batches as CUDA graphs, so that its kernels are launched together."""

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
    """Replays a function in which each row of the result depends only on that row of the arguments.

    The function is captured once for each batch size in `BUCKETS` and each choice of
    implementations. A batch of another size is padded to the next bucket, and a larger one is
    split. A captured function must neither wait for the GPU nor read its memory. All graphs share
    their memory: calls may come from several streams one after another, but not from two threads at
    the same time. A copy starts without graphs.

    Args:
        function: takes tensors (N, ...) and returns one (N, ...), all of them on one GPU.
    """

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self.function = function
        self.captured: dict[tuple[object, ...], Captured] = {}
        self.pool: Any = None
        self.capturing: torch.cuda.Stream | None = None
        self.last: torch.cuda.Stream | None = None  # the stream of the last call

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
                # Copies of the first row fill the rest of the bucket.
                rest = [t[:1].expand(bucket - batch, *t.shape[1:]) for t in inputs]
                filled = [torch.cat([t, more]) for t, more in zip(inputs, rest, strict=True)]
                self.captured[key] = self.capture(tuple(filled))
        captured = self.captured[key]
        for static, given in zip(captured.inputs, inputs, strict=True):
            static[:batch].copy_(given)
        captured.replay()
        return captured.output[:batch].clone()  # the next replay overwrites it

    def follow(self, stream: torch.cuda.Stream) -> None:
        """Make a stream wait until the last stream has read its result from the graphs' memory."""
        if self.last is not None and self.last != stream:
            stream.wait_stream(self.last)
        self.last = stream

    def capture(self, inputs: tuple[Tensor, ...]) -> Captured:
        """Capture the function on these inputs. Their memory becomes the graph's."""
        device = inputs[0].device
        if self.capturing is None:
            self.capturing = torch.cuda.Stream(
                device
            )  # one stream, so that graphs can share memory
            self.pool = torch.cuda.graph_pool_handle()
        stream = self.capturing
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            for _ in range(2):  # one-time compilation and allocation must not be captured
                self.function(*inputs)
        torch.cuda.current_stream(device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # Another thread may copy to the GPU and allocate meanwhile; that is not part of the graph.
        with torch.cuda.graph(graph, self.pool, stream, "thread_local"):
            output = self.function(*inputs)
        return Captured(graph.replay, inputs, output)
