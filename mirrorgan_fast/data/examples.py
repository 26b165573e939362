"""Training examples: the pictures and captions of any data set as tensors."""

import copy
import hashlib
import json
import mmap
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple, NotRequired, Self, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from mirrorgan_fast.boxes import EXPECTED, Box, clipped, flipped, part_of
from mirrorgan_fast.data.captioned_images import CaptionedImages
from mirrorgan_fast.data.preparation import Preparation
from mirrorgan_fast.data.prepared_pictures import PreparedPictures
from mirrorgan_fast.errors import InputError
from mirrorgan_fast.vocabulary import Vocabulary


class Epoch:
    """The number of an epoch, which the processes that read examples share.

    Workers that outlive an epoch (persistent_workers) have a copy of everything else. An anonymous
    mapping takes no space in /dev/shm, which may be small or not writable.
    """

    def __init__(self) -> None:
        self._number = torch.frombuffer(mmap.mmap(-1, 8), dtype=torch.int64)

    @property
    def number(self) -> int:
        """The epoch, at least 0. Set it before iterating over a DataLoader, not during it.

        Raises:
            InputError: (when it is set) it is out of range.
        """
        return int(self._number)

    @number.setter
    def number(self, epoch: int) -> None:
        if not 0 <= epoch < 2**63:
            raise InputError(f"epoch must be at least 0 and below 2**63, found {epoch}")
        self._number.fill_(epoch)


class Example(TypedDict):
    """One training example.

    Attributes:
        image: uint8 (3, S, S), RGB in [0, 255]; missing in examples ``without_images``.
        tokens: int64 (T,), word numbers, padded with 0.
        length: number of words among the T tokens, in [1, T].
        index: the picture's index in the data set.
        label: the picture's class.
        more_tokens: int64 (K - 1, T), of further captions; only in examples ``with_captions``.
        more_lengths: int64 (K - 1,), likewise.
        edited_tokens: int64 (T,), of the caption with another word in the place of one; only in
            examples ``with_edits``.
        box: float32 (4,), where in the image the thing is that the captions describe (see
            ``boxes``); only in examples with boxes.
    """

    image: NotRequired[Tensor]
    box: NotRequired[Tensor]
    more_tokens: NotRequired[Tensor]
    more_lengths: NotRequired[Tensor]
    edited_tokens: NotRequired[Tensor]
    tokens: Tensor
    length: int
    index: int
    label: int


class Edits:
    """Edits of captions: a word becomes another of its kind, and "a" before it "an" if need be.

    Args:
        words: of the kind, at least two, such as colors.
        vocabulary: numbers the words.

    Raises:
        InputError: there are fewer than two words, or one is not in the vocabulary.
    """

    def __init__(self, words: Sequence[str], vocabulary: Vocabulary) -> None:
        known = {word: number for number, word in enumerate(vocabulary.words)}
        self._numbers: dict[int, str] = {}
        for given in words:
            tokens = vocabulary.tokenize(given)
            if len(tokens) != 1 or tokens[0] not in known:
                raise InputError(
                    f"edit_words: no caption has the word {given!r:.80}; leave it out, or correct "
                    f"it (one word each, without hyphens)"
                )
            self._numbers[known[tokens[0]]] = tokens[0]
        if len(self._numbers) < 2:
            raise InputError(
                f"edit_words has {len(self._numbers)} different words, expected two or more that "
                f"may take each other's places"
            )
        # a caption says "a" or "an" if the vocabulary has both
        self._articles = [known["a"], known["an"]] if {"a", "an"} <= known.keys() else []

    def edited(self, tokens: Tensor, rng: np.random.Generator) -> Tensor:
        """Return a copy of a caption's tokens (T,) with one word changed, if it has such a word.

        Args:
            tokens: of the caption.
            rng: chooses the word, and the other one.
        """
        places = [place for place, token in enumerate(tokens.tolist()) if token in self._numbers]
        if not places:
            return tokens
        place = int(rng.choice(places))
        others = [number for number in self._numbers if number != tokens[place]]
        edited, other = tokens.clone(), int(rng.choice(others))
        edited[place] = other
        if place and int(tokens[place - 1]) in self._articles:
            edited[place - 1] = self._articles[self._numbers[other][0] in "aeiou"]
        return edited


class View(NamedTuple):
    """What a training image shows of a prepared picture."""

    top: int
    left: int
    flip: bool


def box_in_view(
    box: Box,
    kept: Box,
    shape: tuple[int, int],
    crop: tuple[int, int, int],
    *,
    flip: bool,
) -> Box:
    """Take a box along from a picture to its training image: through scaling, crop and flip.

    Args:
        box: in shares of the picture.
        kept: the part of the picture that the prepared picture shows (``Preparation.part``).
        shape: (H, W) of the prepared picture in pixels.
        crop: top, left and side of the square that is cut from it, in pixels.
        flip: whether the square is flipped.

    Returns:
        what the square shows of the box, in shares of the square (see ``boxes.clipped``).
    """
    (height, width), (top, left, side) = shape, crop
    square = (left / width, top / height, side / width, side / height)
    seen = clipped(part_of(part_of(box, kept), square))
    return flipped(seen) if flip else seen


class TrainingExamples(Dataset[Example]):
    """Pictures and captions as tensors: one example per picture, with one of its captions.

    All random choices (caption, crop, flip, the words kept of a long caption) depend only on (seed,
    epoch, index). So a resumed run sees the same examples as an uninterrupted one, with any number
    of workers.

    Args:
        images: the data set.
        vocabulary: numbers the words. Unknown words are dropped, and captions without any known
            word are skipped.
        image_size: S, the side length of the examples' images in pixels.
        caption_length: T, the maximum number of words that are kept.
        augment: whether to augment the images as AttnGAN and MirrorGAN do in training: scale the
            shorter side to 76/64 S, crop S x S at a random position, and flip half of the images.
            Images whose caption says "left" or "right" are not flipped. Without augmentation, the
            center square is scaled to S. See ``Preparation``.
        seed: the random seed, at least 0.
        prepared: the prepared pictures of ``images``, for this size and augmentation. By default, a
            picture is prepared each time. The examples do not depend on it.
        boxes: whether examples have boxes. Those of all pictures are read at once.

    Raises:
        InputError: a size, length or seed is out of range, or ``prepared`` is for others; or
            ``boxes`` is set, and a picture has no box or cannot be read.
            ``[index]`` raises it if the picture cannot be read or has no caption with a known word.
    """

    def __init__(
        self,
        images: CaptionedImages,
        vocabulary: Vocabulary,
        image_size: int,
        caption_length: int = 18,
        augment: bool = False,
        seed: int = 0,
        prepared: PreparedPictures | None = None,
        boxes: bool = False,
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
        preparation = Preparation(image_size, augment)
        if prepared is None:
            prepared = PreparedPictures(images, preparation)
        elif (prepared.preparation, len(prepared)) != (preparation, len(images)):
            raise InputError(
                f"prepared must be {len(images)} pictures for {preparation}, found "
                f"{len(prepared)} for {prepared.preparation}"
            )
        self._images = images
        self._prepared = prepared
        self.vocabulary = vocabulary
        self._caption_length = caption_length
        self._seed = seed
        self._reads_images = True
        self._captions = 1
        self._edits: Edits | None = None
        self._boxes = boxes_of(images) if boxes else None
        self._sizes = [images.size(i) for i in range(len(images))] if boxes else []
        self._crop: int | None = None
        self._epoch = Epoch()

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, at least 0. Call this before iterating over a DataLoader, not during it.

        Raises:
            InputError: the epoch is out of range.
        """
        self._epoch.number = epoch

    @property
    def epoch(self) -> int:
        """The epoch."""
        return self._epoch.number

    def of_crop(self, number: int) -> Self:
        """Return the same examples with one of each picture's fixed crops, the same in all epochs.

        Only pictures none of whose captions says "left" or "right" are flipped.

        Args:
            number: of the crop, at least 0. Without augmentation all crops are the same.
        """
        examples = copy.copy(self)
        examples._crop = number
        return examples

    def with_captions(self, count: int) -> Self:
        """Return the same examples with further captions of each picture, drawn with replacement.

        Args:
            count: of the captions, with the first one.
        """
        examples = copy.copy(self)
        examples._captions = count
        return examples

    def with_edits(self, words: Sequence[str]) -> Self:
        """Return the same examples, each with a copy of its caption in which one word is another.

        A caption without any of the words stays as it is.

        Args:
            words: that may take each other's places, at least two.

        Raises:
            InputError: they are fewer than two, or one is not in the vocabulary.
        """
        examples = copy.copy(self)
        examples._edits = Edits(words, self.vocabulary)
        return examples

    def without_images(self) -> Self:
        """Return the same examples without images, which are not read.

        Both objects share the epoch.
        """
        examples = copy.copy(self)
        examples._reads_images = False
        return examples

    def phrases(self, count: int) -> Tensor:
        """Return which of the ``count`` most common phrases each picture's captions contain.

        A phrase is a sequence of one to three words that occurs for at least one picture in a
        thousand. Phrases that at least nine in ten pictures have are not informative and are
        skipped.

        Returns:
            bool (pictures, P), the most common phrase first. P is ``count``, or less if there are
            fewer phrases.

        Raises:
            InputError: there is no such phrase.
        """
        known = set(self.vocabulary.words)
        phrases_of: list[set[tuple[str, ...]]] = []
        for index in range(len(self)):
            found: set[tuple[str, ...]] = set()
            for caption in self._images.captions(index):
                words = [w for w in self.vocabulary.tokenize(caption) if w in known]
                for length in (1, 2, 3):
                    found.update(zip(*(words[i:] for i in range(length)), strict=False))
            phrases_of.append(found)
        counts = Counter(phrase for found in phrases_of for phrase in found)
        informative = [
            (-number, phrase)
            for phrase, number in counts.items()
            if len(self) / 1000 <= number < len(self) * 9 / 10
        ]
        if not informative:
            raise InputError("the captions of all pictures say the same: nothing to learn from")
        column = {phrase: i for i, (_, phrase) in enumerate(sorted(informative)[:count])}
        has = torch.zeros(len(self), len(column), dtype=torch.bool)
        for index, found in enumerate(phrases_of):
            has[index, [column[phrase] for phrase in found if phrase in column]] = True
        return has

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        return self._example(index, self.epoch)

    def boxes(self, count: int) -> Tensor:
        """Return the boxes of so many training images, spread evenly over the pictures.

        If there are more than pictures, those of further epochs follow.

        Args:
            count: of the boxes.

        Returns:
            float32 (count, 4).

        Raises:
            InputError: the examples have no boxes.
        """
        bare, pictures = self.without_images(), len(self)
        if self._boxes is None:
            raise InputError("the examples have no boxes; make them with boxes=True")
        places = [(n * pictures // count, 0) for n in range(count)]
        if count > pictures:
            places = [(n % pictures, n // pictures) for n in range(count)]
        return torch.stack([bare._example(index, epoch)["box"] for index, epoch in places])

    def _example(self, index: int, epoch: int) -> Example:
        rng = np.random.default_rng((self._seed, epoch, index))
        tokens, length, may_flip = self._caption(index, rng)
        example = Example(
            tokens=tokens, length=length, index=index, label=self._images.label(index)
        )
        if self._captions > 1:
            others = np.random.default_rng((self._seed, epoch, index, 3))
            more = [self._caption(index, others) for _ in range(self._captions - 1)]
            example["more_tokens"] = torch.stack([each[0] for each in more])
            example["more_lengths"] = torch.tensor([each[1] for each in more])
            may_flip = may_flip and all(each[2] for each in more)
        if self._edits is not None:
            drawn = np.random.default_rng((self._seed, epoch, index, 4))
            example["edited_tokens"] = self._edits.edited(tokens, drawn)
        if self._crop is not None:
            rng = np.random.default_rng((self._seed, self._crop, index, 1))
            may_flip = self._may_flip(self._images.captions(index))
        pixels = self._prepared[index] if self._reads_images else None
        if pixels is None and self._boxes is None:
            return example
        preparation = self._prepared.preparation
        shape = preparation.shape(self._sizes[index]) if pixels is None else pixels.shape[:2]
        view = choose_view(shape, preparation, rng, may_flip)
        if pixels is not None:
            example["image"] = cut(pixels, preparation.image_size, view)
        if self._boxes is not None:
            kept = preparation.part(self._sizes[index])
            crop = (view.top, view.left, preparation.image_size)
            box = box_in_view(self._boxes[index], kept, shape, crop, flip=view.flip)
            example["box"] = torch.tensor(box, dtype=torch.float32)
        return example

    def _caption(self, index: int, rng: np.random.Generator) -> tuple[Tensor, int, bool]:
        """Choose a caption with a known word.

        Returns:
            its tokens, int64 (T,), its length, and whether it stays true if the image is flipped.
        """
        captions = self._images.captions(index)
        for choice in rng.permutation(len(captions)):
            encoded = self.vocabulary.encode([captions[choice]], self._caption_length, rng)
            length = int(encoded.lengths[0])
            if length > 0:
                return encoded.tokens[0], length, self._may_flip([captions[choice]])
        raise InputError(
            f"picture {self._images.name(index)!r}: its captions have no word of the vocabulary"
        )

    def _may_flip(self, captions: list[str]) -> bool:
        """Return whether captions stay true if the image is flipped."""
        sides = {"left", "right"}
        return all(sides.isdisjoint(self.vocabulary.tokenize(caption)) for caption in captions)

    def described(self) -> str:
        """Return how many pictures and words there are."""
        return f"{len(self):,} pictures, {len(self.vocabulary):,} words"

    def digest(self) -> str:
        """Return a hash of all names, classes, captions and, if there are, boxes, in order."""
        rows = hashlib.sha256()
        for i in range(len(self)):
            row = [self._images.name(i), int(self._images.label(i)), *self._images.captions(i)]
            rows.update(json.dumps(row).encode())
            if self._boxes is not None:
                rows.update(json.dumps(self._boxes[i]).encode())
        return rows.hexdigest()[:16]


def choose_view(
    shape: tuple[int, int],
    preparation: Preparation,
    rng: np.random.Generator,
    may_flip: bool = True,
) -> View:
    """Choose what the image of an example shows of a prepared picture.

    Args:
        shape: of the prepared picture, (H, W).
        preparation: how it was prepared. With augmentation, the image is a random crop of it, and
            half of the images are flipped.
        rng: makes the random choices.
        may_flip: whether the image may be flipped.
    """
    if not preparation.augment:
        return View(0, 0, False)
    top, left = (int(rng.integers(side - preparation.image_size + 1)) for side in shape)
    flip = rng.random() < 0.5
    return View(top, left, flip and may_flip)


def cut(pixels: NDArray[np.uint8], size: int, view: View) -> Tensor:
    """Return the image of an example, uint8 (3, S, S).

    Args:
        pixels: the prepared picture, (H, W, 3).
        size: S.
        view: what the image shows of it.
    """
    pixels = pixels[view.top : view.top + size, view.left : view.left + size]
    if view.flip:
        pixels = pixels[:, ::-1]
    # A copy, because a tensor must not share memory with a read-only array
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy(order="C"))


def boxes_of(images: CaptionedImages) -> list[Box]:
    """Return the boxes of all pictures of a data set.

    Raises:
        InputError: a picture has none, or something else where its box should be.
    """
    boxes = []
    for index in range(len(images)):
        box = images.box(index)
        if box is None:
            raise InputError(
                f"picture {images.name(index)!r} has no box, which says where in the picture the "
                f'thing is that the captions describe: expected a "box" in each row of '
                f"metadata.jsonl, {EXPECTED}"
            )
        boxes.append(box)
    return boxes
