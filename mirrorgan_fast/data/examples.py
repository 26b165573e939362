"""Training examples: the pictures and captions of any data set as tensors."""

import copy
import hashlib
import json
import mmap
from collections import Counter
from typing import NotRequired, Self, TypedDict

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from mirrorgan_fast.data.captioned_images import CaptionedImages
from mirrorgan_fast.errors import InputError
from mirrorgan_fast.vocabulary import Vocabulary


class Example(TypedDict):
    """One training example.

    image: uint8 (3, S, S), RGB in [0, 255]; not there in examples ``without_images``.
    tokens: int64 (T,), word numbers, filled up with 0.
    length: how many of the T are words, in [1, T].
    index: the picture's index in the data set.
    label: the picture's class.
    """

    image: NotRequired[Tensor]
    tokens: Tensor
    length: int
    index: int
    label: int


class TrainingExamples(Dataset[Example]):
    """Pictures and captions as tensors, one example a picture, each time with one of its captions.

    Everything random (caption, crop, flip, the words kept of a long caption) depends on (seed,
    epoch, index) and nothing else, so that a resumed run sees what the uninterrupted one would have
    seen, with any number of workers.

    images: the data set.
    vocabulary: numbers the words; those it lacks are dropped, and captions of which nothing is left
        are passed over.
    image_size: S, the side of the examples' images in pixels.
    caption_length: T, the number of words kept.
    augment: scale the shorter side to 76/64 S, crop S x S anywhere and flip half of the images, as
        AttnGAN and MirrorGAN train, but none whose caption says "left" or "right"; otherwise the
        middle square, scaled to S.
    seed: of the randomness, at least 0.

    Raises InputError for a size, length or seed out of range; ``[index]`` raises it for a picture
    that cannot be read or that has no caption with a known word.
    """

    def __init__(
        self,
        images: CaptionedImages,
        vocabulary: Vocabulary,
        image_size: int,
        caption_length: int = 18,
        augment: bool = False,
        seed: int = 0,
    ) -> None:
        for argument, value, least, most in (
            ("image_size", image_size, 1, 4096),
            ("caption_length", caption_length, 1, 1024),
            ("seed", seed, 0, 2**128 - 1),
        ):
            if type(value) is not int or not least <= value <= most:
                raise InputError(
                    f"{argument} must be a whole number from {least} to {most:,}, found {value!r}"
                )
        self._images = images
        self._vocabulary = vocabulary
        self._image_size = image_size
        self._caption_length = caption_length
        self._augment = augment
        self._seed = seed
        self._reads_images = True
        # Shared with processes, because workers that outlive an epoch (persistent_workers) hold a
        # copy of everything else. Memory without a name takes no room in /dev/shm, which may be
        # small or not writable.
        self._epoch = torch.frombuffer(mmap.mmap(-1, 8), dtype=torch.int64)

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch, at least 0; call it before iterating a DataLoader, not during."""
        if not 0 <= epoch < 2**63:
            raise InputError(f"epoch must be at least 0 and below 2**63, found {epoch}")
        self._epoch.fill_(epoch)

    def without_images(self) -> Self:
        """The same examples without their images, which are not read; epochs are set for both."""
        examples = copy.copy(self)
        examples._reads_images = False
        return examples

    def phrases(self, count: int) -> Tensor:
        """Which of the ``count`` commonest phrases each picture's captions have.

        A phrase is one to three words in a row, of at least one picture in a thousand; phrases that
        at least nine in ten pictures have tell nothing and are passed over.

        Returns:
            bool (pictures, P), the commonest phrase first; P is ``count`` or, where there are not
            as many, less.

        Raises InputError where there is none.
        """
        known = set(self._vocabulary.words)
        phrases_of: list[set[tuple[str, ...]]] = []
        for index in range(len(self)):
            found: set[tuple[str, ...]] = set()
            for caption in self._images.captions(index):
                words = [w for w in self._vocabulary.tokenize(caption) if w in known]
                for length in (1, 2, 3):
                    found.update(zip(*(words[i:] for i in range(length)), strict=False))
            phrases_of.append(found)
        counts = Counter(phrase for found in phrases_of for phrase in found)
        telling = [
            (-number, phrase)
            for phrase, number in counts.items()
            if len(self) / 1000 <= number < len(self) * 9 / 10
        ]
        if not telling:
            raise InputError("the captions of all pictures say the same: nothing to learn from")
        place = {phrase: i for i, (_, phrase) in enumerate(sorted(telling)[:count])}
        has = torch.zeros(len(self), len(place), dtype=torch.bool)
        for index, found in enumerate(phrases_of):
            has[index, [place[phrase] for phrase in found if phrase in place]] = True
        return has

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        rng = np.random.default_rng((self._seed, int(self._epoch), index))
        tokens, length, may_flip = self._caption(index, rng)
        example = Example(
            tokens=tokens, length=length, index=index, label=self._images.label(index)
        )
        if self._reads_images:
            example["image"] = self._image(index, rng, may_flip)
        return example

    def _caption(self, index: int, rng: np.random.Generator) -> tuple[Tensor, int, bool]:
        """A caption with a known word: tokens (T,), length, and whether flipping keeps it true."""
        captions = self._images.captions(index)
        for choice in rng.permutation(len(captions)):
            encoded = self._vocabulary.encode([captions[choice]], self._caption_length, rng)
            length = int(encoded.lengths[0])
            if length > 0:
                may_flip = {"left", "right"}.isdisjoint(self._vocabulary.tokenize(captions[choice]))
                return encoded.tokens[0], length, may_flip
        raise InputError(
            f"picture {self._images.name(index)!r}: its captions have no word of the vocabulary"
        )

    def _image(self, index: int, rng: np.random.Generator, may_flip: bool) -> Tensor:
        """uint8 (3, S, S), cropped and scaled in one step: no pixel is interpolated twice."""
        picture = self._images.image(index)
        width, height = picture.size
        side: float = min(width, height)
        across, down, flip = 0.5, 0.5, False
        if self._augment:
            side *= 64 / 76
            across, down = rng.random(2)
            flip = bool(rng.random() < 0.5) and may_flip
        left, top = across * (width - side), down * (height - side)
        square = picture.resize(
            (self._image_size, self._image_size),
            Image.Resampling.BILINEAR,
            box=(left, top, left + side, top + side),
        )
        pixels = np.asarray(square)
        if flip:
            pixels = pixels[:, ::-1]
        return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))

    def digest(self) -> str:
        """A fingerprint of all names, classes and captions, in their order."""
        rows = hashlib.sha256()
        for i in range(len(self)):
            row = [self._images.name(i), int(self._images.label(i)), *self._images.captions(i)]
            rows.update(json.dumps(row).encode())
        return rows.hexdigest()[:16]
