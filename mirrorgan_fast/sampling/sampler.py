"""The batched sampler: a stream of captions in, a stream of images out, in the same order."""

import logging
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from mirrorgan_fast.errors import InputError
from mirrorgan_fast.inference.renderer import fuse
from mirrorgan_fast.models.text_to_image import TextToImage, in_evaluation, warn_of_unknown
from mirrorgan_fast.sampling.captions import Refused, Request, no_known_word
from mirrorgan_fast.sampling.text_vectors import TextVectors
from mirrorgan_fast.vocabulary import each_caption

_LOG = logging.getLogger("mirrorgan_fast")
# Default images per batch. Larger batches are not faster on two cores (8 to 64 images give the same
# throughput). On a GPU, 64 is the largest batch that has a CUDA graph.
_DEFAULT_BATCH_SIZE = {"cpu": 16, "cuda": 64}
_MAX_BATCH_SIZE = 65_536
AHEAD = 4
"""Number of batches whose captions are read ahead, so that captions of similar length can share a
batch."""
Other = TypeVar("Other")


@dataclass(frozen=True)
class Result:
    """An image and the inputs that it was made from."""

    request: Request
    image: np.ndarray
    """uint8 (S, S, 3)."""
    words: list[str]
    """The T words of the caption that the model used."""
    unknown: list[str]
    """Words that the model does not know. They were skipped."""
    attention: list[np.ndarray]
    """The attention maps, if requested: for each stage after the first, how much it attends to each
    word at each position. m - 1 arrays, float32 (T, S_i, S_i), which sum to 1 over the words.
    Otherwise empty."""

    @property
    def caption(self) -> str:
        """The caption of the image, or the name of its text vector, such as "row 12"."""
        return self.request.caption

    @property
    def seed(self) -> int:
        """The seed of the image's noise."""
        return self.request.seed

    @property
    def index(self) -> int:
        """The index of the image's noise."""
        return self.request.index


class _Job(NamedTuple):
    place: int  # position in the window
    request: Request
    row: int  # index of the text among those of the window
    words: list[str]
    unknown: list[str]


class _Painted(NamedTuple):
    batch: Sequence[_Job]
    images: Tensor  # (N, S, S, 3)
    attention: list[Tensor]  # (N, T, S_i, S_i)
    done: torch.cuda.Event | None  # set once the GPU has finished; None on a CPU


class _Window(NamedTuple):
    items: list[Any]  # requests, which are later replaced by their results
    painted: list[_Painted]


class Sampler:
    """Generates images from captions, or from text vectors, in batches.

    An image depends only on the weights, its caption, seed, index and box, and on psi. Its bits do
    not depend on the batch size or on the other images that are sampled. (This holds for the
    compiled kernels, on one type of processor and with one data type.)

    Args:
        model: the model, which is moved to the device. Its weights are folded and packed here (see
            ``fuse``), and again if they change.
        device: "cpu", "cuda", ... (default: the device of the model).
        dtype: the data type in which the generator computes (default: the same as for ``fuse``).
        batch_size: number of images per batch. If there is not enough memory for a batch, the size
            is halved and a warning is logged.

    Raises:
        InputError: the batch size is out of range, the generator does not support the data type,
            or a weight is NaN or infinite.
    """

    def __init__(
        self,
        model: TextToImage,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        batch_size: int | Literal["auto"] = "auto",
    ) -> None:
        if device is not None:
            model = model.to(device)
        self.model = model
        self.renderer = fuse(model, dtype)
        self.dtype = self.renderer.dtype
        self.device = next(model.parameters()).device
        if batch_size == "auto":
            batch_size = _DEFAULT_BATCH_SIZE.get(self.device.type, _DEFAULT_BATCH_SIZE["cpu"])
        if not 1 <= batch_size <= _MAX_BATCH_SIZE:
            raise InputError(f"batch_size is {batch_size}, expected 1 to {_MAX_BATCH_SIZE:,}")
        self.batch_size = batch_size
        self._lock = threading.Lock()  # on a GPU, all calls share the memory of a CUDA graph
        self.seconds = 0.0
        """Time that the model has taken so far, in seconds."""

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._lock = threading.Lock()

    def __call__(
        self,
        captions: Iterable[str],
        seed: int = 0,
        per_caption: int = 1,
        psi: float = 1.0,
        attention: bool = False,
    ) -> Iterator[Result]:
        """Yield one or more images for each caption, in order.

        Args:
            captions: any number of texts. They are read a few batches ahead.
            seed: 0 or more.
            per_caption: number of images per caption. The first image of caption i, counted from 0,
                has the index ``i * per_caption``.
            psi: see ``stream``.
            attention: whether to compute attention maps. This takes an additional pass through the
                model, without fused kernels.

        Raises:
            InputError: a caption has no word that the model knows (images of earlier captions are
                yielded first) or is not a string; ``per_caption``, ``psi`` or the seed is out of
                range; or there is not enough memory for a single image.

        Warns:
            UnknownWordsWarning: a caption has words that the model does not know. Only the first
                such caption gives a warning.
        """
        if per_caption < 1:
            raise InputError(f"per_caption is {per_caption}, expected 1 or more")
        requests = (
            Request(i + 1, number, caption, seed, number)
            for i, caption in enumerate(each_caption(captions))
            for number in range(i * per_caption, (i + 1) * per_caption)
        )
        warned = False
        for result in self.stream(requests, psi, attention):
            if isinstance(result, Refused):
                raise InputError(f"caption {result.line} {result.reason}: {result.text!r:.60}")
            if result.unknown and not warned:
                warn_of_unknown([result.unknown])
                warned = True
            yield result

    def sample_vectors(
        self,
        vectors: np.ndarray | Tensor,
        seed: int = 0,
        per_vector: int = 1,
        psi: float = 1.0,
    ) -> Iterator[Result]:
        """Yield one or more images for each text vector, in order.

        For models that read text vectors instead of captions, such as a StackGAN with published
        weights (see ``StackGANConfig.text``). The results have no words, and their captions are
        the vectors' names: "row 0", or "image 0, caption 0".

        Args:
            vectors: floating-point numbers (rows, D) or (images, captions, D), where D is
                ``config.embedding_size``.
            seed: 0 or more.
            per_vector: number of images per vector. The first image of vector i, counted from 0,
                has the index ``i * per_vector``.
            psi: see ``stream``.

        Raises:
            InputError: the vectors have another type or shape; one has NaN or infinity (images of
                earlier vectors are yielded first); the model reads captions; ``per_vector``,
                ``psi`` or the seed is out of range; or there is not enough memory for a single
                image.
        """
        if per_vector < 1:
            raise InputError(f"per_vector is {per_vector}, expected 1 or more")
        given = TextVectors.of(vectors)
        self.model.config.check_text(given.vector_size)
        requests = (
            Request(line, number, record.beginning, seed, number, vector=record.vector)
            for line, record in given.records()
            for number in range((line - 1) * per_vector, line * per_vector)
        )
        for result in self.stream(requests, psi):
            assert isinstance(result, Result)  # only captions are refused
            yield result

    def stream(
        self, requests: Iterable[Request | Other], psi: float = 1.0, attention: bool = False
    ) -> Iterator[Result | Refused | Other]:
        """Yield, in order, an image for each request or the reason why there is none.

        Args:
            requests: the requests, which are read a few batches ahead. Any other object is yielded
                unchanged, in its place.
            psi: factor from 0 to 1 that multiplies the noise. A smaller factor makes images more
                alike and closer to the model's mean image (truncation, as in StyleGAN).
            attention: whether the results have attention maps.

        Raises:
            InputError: ``psi``, a seed or an index is out of range, a request has a box and the
                system takes none, there is not enough memory for a single image, the system has no
                word attention, or the model reads text vectors and a request has none, or one of
                another length, or the reverse.
        """
        check_psi(psi)
        unread = iter(requests)
        waiting: list[Request | Other] = []
        # A GPU generates images while the CPU prepares the next captions. On a CPU nothing runs in
        # parallel.
        in_flight = 0 if self.device.type == "cpu" else 1
        begun: deque[_Window] = deque()
        ahead = 1  # start with a single batch, so that the first images come soon
        while True:
            size = ahead * self.batch_size
            waiting.extend(islice(unread, max(0, size - len(waiting))))
            if not waiting:
                break
            window = self._begin(waiting[:size], psi, attention)
            if window is None:
                self._halve()
                continue
            del waiting[:size]
            ahead = AHEAD
            begun.append(window)
            if len(begun) > in_flight:
                yield from self._finish(begun.popleft())
        for last in begun:
            yield from self._finish(last)

    def _begin(self, items: Sequence[object], psi: float, attention: bool) -> _Window | None:
        """Start to generate the images of a window, with captions of similar length in a batch.

        Returns:
            the window, or None if there is not enough memory.
        """
        requests = {place: item for place, item in enumerate(items) if isinstance(item, Request)}
        for request in requests.values():
            vector = request.vector
            self.model.config.check_text(None if vector is None else len(vector))
        window = _Window(list(items), [])
        if self.model.config.vector_size is None:
            texts, jobs = self._encode(requests, window)
        else:
            vectors = np.array([request.vector for request in requests.values()], np.float32)
            texts = (torch.from_numpy(vectors),)
            jobs = [_Job(*item, row, [], []) for row, item in enumerate(requests.items())]
        try:
            for start in range(0, len(jobs), self.batch_size):
                batch = jobs[start : start + self.batch_size]
                window.painted.append(self._paint(batch, texts, psi, attention))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return None
        return window

    def _encode(
        self, requests: Mapping[int, Request], window: _Window
    ) -> tuple[tuple[Tensor, ...], list[_Job]]:
        """Encode the captions of requests, whose places in the window are given.

        Captions without a known word are refused in the window.

        Returns:
            tokens (C, T) and lengths (C,) of the captions, and the jobs, short captions first.
        """
        captions = list(dict.fromkeys(request.caption for request in requests.values()))
        encoded = self.model.vocabulary.encode(captions, self.model.config.caption_length)
        rows = {caption: row for row, caption in enumerate(captions)}
        lengths, known = encoded.lengths.tolist(), self.model.vocabulary.words
        jobs = []
        for place, request in requests.items():
            row = rows[request.caption]
            unknown = encoded.unknown[row]
            if length := lengths[row]:
                words = [known[token] for token in encoded.tokens[row, :length].tolist()]
                jobs.append(_Job(place, request, row, words, unknown))
            else:
                window.items[place] = no_known_word(request, unknown)
        jobs.sort(key=lambda job: len(job.words))
        return (encoded.tokens, encoded.lengths), jobs

    @torch.no_grad()
    def _paint(
        self, batch: Sequence[_Job], texts: Sequence[Tensor], psi: float, attention: bool
    ) -> _Painted:
        """Start to generate a batch of images."""
        rows = [job.row for job in batch]
        text = [part[rows] for part in texts]
        if self.model.config.vector_size is None:
            tokens, lengths = text
            text[0] = tokens[:, : int(lengths.max())]
        requests = [job.request for job in batch]
        seeds, indices, boxes = zip(*((r.seed, r.index, r.box) for r in requests), strict=True)
        noises = self.model.noise(seeds, indices, psi, boxes)
        start = time.perf_counter()
        inputs = [part.to(self.device, non_blocking=True) for part in (*text, *noises)]
        with self._lock:
            images = self.renderer.render(*inputs).to("cpu", non_blocking=True)
        maps = [
            each.to("cpu", non_blocking=True)
            for each in (in_evaluation(self.model).attention_maps(*inputs) if attention else [])
        ]
        done = None
        if self.device.type == "cuda":
            done = torch.cuda.Event()
            done.record()
        self.seconds += time.perf_counter() - start
        return _Painted(batch, images, maps, done)

    def _halve(self) -> None:
        """Halve the batch size."""
        if self.batch_size == 1:
            raise InputError(
                f"{self.device}: out of memory with a single image; free some memory, or use "
                "another device"
            )
        self.batch_size //= 2
        _LOG.warning("out of memory: continuing with batches of %d", self.batch_size)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _finish(self, window: _Window) -> Iterator[Any]:
        """Yield the items of a window, with each request replaced by its result."""
        items = window.items
        for batch, images, maps, done in window.painted:
            if done is not None:
                start = time.perf_counter()
                done.synchronize()
                self.seconds += time.perf_counter() - start
            arrays, map_arrays = images.numpy(), [each.numpy() for each in maps]
            for row, job in enumerate(batch):
                attention = [each[row, : len(job.words)] for each in map_arrays]
                items[job.place] = Result(
                    job.request, arrays[row], job.words, job.unknown, attention
                )
        yield from items


def check_psi(psi: float) -> None:
    """Raise InputError if psi, the factor of the noise, is out of range."""
    if not 0 <= psi <= 1:
        raise InputError(f"psi is {psi}, expected 0 to 1")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether Python, PyTorch or one of our kernels ran out of memory."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    message = str(error).lower()
    signs = (
        "out of memory",
        "not enough memory",
        "t allocate memory",
        "alloc_failed",
        "bad_alloc",
        "could not create a primitive",  # oneDNN
        "can't start new thread",
    )
    return any(sign in message for sign in signs)
