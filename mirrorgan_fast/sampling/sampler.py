"""The batched sampler: a stream of captions in, a stream of images out, in the same order."""

import logging
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from mirrorgan_fast.errors import InputError
from mirrorgan_fast.inference.renderer import fuse
from mirrorgan_fast.models.stem import word_mask
from mirrorgan_fast.models.text_to_image import TextToImage, in_evaluation, warn_of_unknown
from mirrorgan_fast.sampling.captions import Refused, Request, no_known_word
from mirrorgan_fast.vocabulary import Encoded, each_caption

_LOG = logging.getLogger("mirrorgan_fast")
# Images of a batch. More make nothing faster on two cores (8 to 64: the same images a second); on a
# GPU it is the largest batch with a CUDA graph.
_AUTO = {"cpu": 16, "cuda": 64}
_MOST_OF_A_BATCH = 65_536
AHEAD = 4
"""Batches whose captions are read ahead, so that those of a length can go together."""
Other = TypeVar("Other")


@dataclass(frozen=True)
class Result:
    """An image, and all that it was made of."""

    request: Request
    image: np.ndarray
    """uint8 (S, S, 3)."""
    words: list[str]
    """Words of the caption that the model took, T of them."""
    unknown: list[str]
    """Words that it does not know and that were skipped."""
    attention: list[np.ndarray]
    """If asked for, how much each of the later stages looked at each word and where: m - 1 arrays
    float32 (T, S_i, S_i), summing to 1 over the words. Else empty."""

    @property
    def caption(self) -> str:
        """What the image is of."""
        return self.request.caption

    @property
    def seed(self) -> int:
        """The seed of its noise."""
        return self.request.seed

    @property
    def index(self) -> int:
        """The index of its noise."""
        return self.request.index


class _Job(NamedTuple):
    place: int  # in the window
    request: Request
    row: int  # of its caption among those that are encoded
    words: list[str]
    unknown: list[str]


class _Painted(NamedTuple):
    batch: Sequence[_Job]
    images: Tensor  # (N, S, S, 3)
    attention: list[Tensor]  # (N, T, S_i, S_i)
    done: torch.cuda.Event | None  # until when a GPU is still at it


class _Window(NamedTuple):
    items: list[Any]  # requests, until their results replace them
    painted: list[_Painted]


class Sampler:
    """Makes images of captions, in batches.

    An image is a function of the weights, its caption, seed and index, and of psi: its bits do not
    depend on the batch size, nor on what else is sampled. (This holds for the compiled kernels, on
    one kind of processor and in one data type.)

    Args:
        model: is moved to the device. Its weights are folded and packed here (see ``fuse``), and
            again if they change.
        device: "cpu", "cuda", ... (default: where the model is).
        dtype: in which the generator computes (default: as ``fuse``).
        batch_size: images that are made together. If the memory does not suffice for them, it is
            halved, which is logged.

    Raises:
        InputError: the batch size is out of range, or a data type that there is no generator of.
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
            batch_size = _AUTO.get(self.device.type, _AUTO["cpu"])
        if not 1 <= batch_size <= _MOST_OF_A_BATCH:
            raise InputError(f"batch_size is {batch_size}, expected 1 to {_MOST_OF_A_BATCH:,}")
        self.batch_size = batch_size
        self._painting = threading.Lock()  # on a GPU calls share the memory of a CUDA graph
        self.seconds = 0.0
        """How long the model has taken so far."""

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_painting"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._painting = threading.Lock()

    def __call__(
        self,
        captions: Iterable[str],
        seed: int = 0,
        per_caption: int = 1,
        psi: float = 1.0,
        attention: bool = False,
    ) -> Iterator[Result]:
        """Yield an image for each caption, or several, in order.

        Args:
            captions: any text, any number of them; they are read a few batches ahead.
            seed: 0 or more.
            per_caption: images of each. The first image of caption i, from 0, has the index
                ``i * per_caption``.
            psi: see ``stream``.
            attention: whether to look at where the words went; it takes a pass of the model that is
                not fused.

        Raises:
            InputError: a caption has no word that the model knows (the images of those before it
                come first) or is no string, or ``psi`` or the seed is out of range.

        Warns:
            UnknownWordsWarning: a caption has words that the model does not know, the first time.
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

    def stream(
        self, requests: Iterable[Request | Other], psi: float = 1.0, attention: bool = False
    ) -> Iterator[Result | Refused | Other]:
        """Yield an image for each request, in order, or why there is none.

        Args:
            requests: a few batches are read ahead. What is no request comes out in its place.
            psi: from 0 to 1, by which the noise is multiplied: less makes images more alike and
                nearer to the mean of what the model paints (truncation, as in StyleGAN).
            attention: whether the results have attention maps.

        Raises:
            InputError: ``psi`` is out of range, or there is no memory for a single image.
        """
        check_psi(psi)
        unread = iter(requests)
        waiting: list[Request | Other] = []
        # On a GPU the next captions are prepared while it paints; there is nobody to on a CPU.
        in_flight = 0 if self.device.type == "cpu" else 1
        begun: deque[_Window] = deque()
        ahead = 1  # the first images are soon there
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
        """Start to paint what is wanted, captions of about a length together.

        None if the memory does not suffice.
        """
        wanted = {place: item for place, item in enumerate(items) if isinstance(item, Request)}
        texts = list(dict.fromkeys(request.caption for request in wanted.values()))
        encoded = self.model.vocabulary.encode(texts, self.model.config.caption_length)
        rows = {text: row for row, text in enumerate(texts)}
        lengths, known = encoded.lengths.tolist(), self.model.vocabulary.words
        window = _Window(list(items), [])
        jobs = []
        for place, request in wanted.items():
            row = rows[request.caption]
            unknown = encoded.unknown[row]
            if length := lengths[row]:
                words = [known[token] for token in encoded.tokens[row, :length].tolist()]
                jobs.append(_Job(place, request, row, words, unknown))
            else:
                window.items[place] = no_known_word(request, unknown)
        jobs.sort(key=lambda job: len(job.words))
        try:
            for start in range(0, len(jobs), self.batch_size):
                batch = jobs[start : start + self.batch_size]
                window.painted.append(self._paint(batch, encoded, psi, attention))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return None
        return window

    @torch.no_grad()
    def _paint(
        self, batch: Sequence[_Job], encoded: Encoded, psi: float, attention: bool
    ) -> _Painted:
        """Start to paint a batch."""
        rows = [job.row for job in batch]
        lengths = encoded.lengths[rows]
        tokens = encoded.tokens[rows, : int(lengths.max())]
        seeds, indices = zip(*((job.request.seed, job.request.index) for job in batch), strict=True)
        noise, condition_noise = (psi * part for part in self.model.noise(seeds, indices))
        start = time.perf_counter()
        inputs = [
            part.to(self.device, non_blocking=True)
            for part in (tokens, lengths, noise, condition_noise)
        ]
        with self._painting:
            images = self.renderer.render(*inputs).to("cpu", non_blocking=True)
        maps = [
            each.to("cpu", non_blocking=True)
            for each in (self._attention_maps(*inputs) if attention else [])
        ]
        done = None
        if self.device.type == "cuda":
            done = torch.cuda.Event()
            done.record()
        self.seconds += time.perf_counter() - start
        return _Painted(batch, images, maps, done)

    def _attention_maps(
        self, tokens: Tensor, lengths: Tensor, noise: Tensor, condition_noise: Tensor
    ) -> list[Tensor]:
        model = in_evaluation(self.model)
        words, sentence = model.stem(tokens, lengths)
        mask = word_mask(lengths, tokens.shape[1])
        return model.glam.attention_maps(noise, condition_noise, words, mask, sentence)

    def _halve(self) -> None:
        """Go on with smaller batches."""
        if self.batch_size == 1:
            raise InputError(
                f"{self.device}: out of memory with a single image; free some of it, or use "
                "another device"
            )
        self.batch_size //= 2
        _LOG.warning("out of memory: going on with batches of %d", self.batch_size)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _finish(self, window: _Window) -> Iterator[Any]:
        """Yield the items of a window, each request replaced by its result."""
        items = window.items
        for batch, images, maps, done in window.painted:
            if done is not None:
                start = time.perf_counter()
                done.synchronize()
                self.seconds += time.perf_counter() - start
            arrays, looked = images.numpy(), [each.numpy() for each in maps]
            for row, job in enumerate(batch):
                attention = [each[row, : len(job.words)] for each in looked]
                items[job.place] = Result(
                    job.request, arrays[row], job.words, job.unknown, attention
                )
        yield from items


def check_psi(psi: float) -> None:
    """Raise InputError if the factor of the noise is out of range."""
    if not 0 <= psi <= 1:
        raise InputError(f"psi is {psi}, expected 0 to 1")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Python, PyTorch or a kernel of ours could not get memory."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    told = str(error).lower()
    signs = (
        "out of memory",
        "not enough memory",
        "t allocate memory",
        "alloc_failed",
        "bad_alloc",
        "could not create a primitive",  # oneDNN
        "can't start new thread",
    )
    return any(sign in told for sign in signs)
