"""What every text-to-image system shares: captions to tokens, noise, images, files of weights."""

import copy
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import ClassVar, Self, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from mirrorgan_fast.boxes import Box
from mirrorgan_fast.errors import InputError, UnknownWordsWarning, listed
from mirrorgan_fast.models.config import CascadeConfig, TextToImageConfig
from mirrorgan_fast.models.damsm import DAMSMImageEncoder
from mirrorgan_fast.models.glam import GLAM, Generated
from mirrorgan_fast.models.stem import STEM, read_text, word_mask
from mirrorgan_fast.ops.checks import at_hand
from mirrorgan_fast.pictures import to_uint8
from mirrorgan_fast.vocabulary import Encoded, Vocabulary
from mirrorgan_fast.weights import (
    CONFIG,
    load_pretrained,
    load_vocabulary,
    save_description,
    save_tensors,
)

SEEDS = 2**128
"""Seeds and indices are whole numbers below this."""
Network = TypeVar("Network", bound=nn.Module)


class TextToImage(nn.Module):
    """A text encoder and a generator. Subclasses add the generator, and what else they have.

    Args:
        config: the sizes of the networks.
        vocabulary: the words that the text encoder knows.
    """

    SYSTEM: ClassVar[str]
    """The system's name, which config.json has."""
    CONFIG: ClassVar[type[TextToImageConfig]]
    GENERATOR: ClassVar[str]
    """The name of the part that is the generator. It takes the tensors of ``config.noises``,
    then STEM's words, their mask and the sentence, and returns ``Generated``."""
    SHARED: ClassVar[Mapping[str, str]] = {}
    """Parts that may be copies of another part, which a file then has once (``save_tensors``)."""
    WORD_TABLES: ClassVar[frozenset[str]] = frozenset({"stem.embedding"})
    """Layers whose tensors have a row for each word of the vocabulary."""
    stem: STEM
    image_encoder: DAMSMImageEncoder
    """A model that reads text vectors has neither this nor ``stem``."""

    def __init__(self, config: TextToImageConfig, vocabulary: Vocabulary) -> None:
        super().__init__()
        self.config = config
        self.vocabulary = vocabulary
        if config.vector_size is None:
            self.stem = STEM(config, len(vocabulary))
        elif len(vocabulary) > 1:
            raise InputError(
                f"the vocabulary has {len(vocabulary)} words, but the model reads text vectors; "
                f'give it a vocabulary of "<end>" alone'
            )

    @property
    def generator(self) -> nn.Module:
        """The generator."""
        return self.get_submodule(self.GENERATOR)

    @property
    def image_parts(self) -> tuple[str, ...]:
        """The names of the parts that make images: the generator, and STEM if there is one."""
        return (self.GENERATOR,) if self.config.vector_size else ("stem", self.GENERATOR)

    def forward(self, *inputs: Tensor) -> Generated:
        """Generate the images of all stages.

        Args:
            inputs: tokens, int64 (N, T), and lengths, int64 (N,), of captions (see ``STEM``), or of
                a model that reads text vectors these, float (N, D); then the random vectors of
                ``noise``, each (N, length).
        """
        text, noises = split_inputs(self.config, inputs)
        stem = None if self.config.vector_size else self.stem
        generated: Generated = self.generator(*noises, *read_text(stem, *text))
        return generated

    @torch.no_grad()
    def sample(
        self, captions: Sequence[str], seed: int = 0, indices: Sequence[int] | None = None
    ) -> list[Image.Image]:
        """Generate one image for each caption, all in one batch. The model may be in training mode.

        An image is a function of its caption, ``seed`` and its index alone. The same caption
        several times gives several images of it. For many captions, use a ``Sampler``.

        Args:
            captions: any text; words that the vocabulary lacks are skipped, and the first
                ``config.caption_length`` of the others are used.
            seed: 0 or more.
            indices: the index of each image, 0 or more (default: 0, 1, 2 ...), so that a long list
                can be made in parts.

        Returns:
            RGB images of ``config.image_size`` pixels a side.

        Raises:
            InputError: a caption is not a string or has no known word, the seed or an index is not
                a whole number from 0 to 2^128 - 1, or there are not as many indices as captions.

        Warns:
            UnknownWordsWarning: a caption has words that the vocabulary lacks.
        """
        return sample_with(self, self.render, captions, seed, indices)

    def encode(self, captions: Sequence[str]) -> Encoded:
        """Turn captions into tokens.

        Raises:
            InputError: a caption is not a string or has no known word, or the model reads text
                vectors.
        """
        self.config.check_text(None)
        encoded = self.vocabulary.encode(captions, self.config.caption_length)
        for caption, length in zip(captions, encoded.lengths.tolist(), strict=True):
            if length == 0:
                raise InputError(
                    f"no word of the caption {caption!r:.60} is known to the model; "
                    f"say it with other words (mirrorgan-fast info --words lists them)"
                )
        return encoded

    def noise(
        self,
        seed: int | Sequence[int],
        indices: Sequence[int],
        psi: float = 1.0,
        boxes: Sequence[Box | None] | None = None,
    ) -> tuple[Tensor, ...]:
        """Return the random vectors of images, given their indices.

        They are those of ``config.noises``, each (N, length) and standard normal: of most systems,
        z and the eps of the conditioning augmentation. They depend on (seed, index) alone, and are
        the same on every device and torch version. Systems that place things also have a box.

        Args:
            seed: of all images, or of each.
            indices: of the images, N.
            psi: factor from 0 to 1 that multiplies the random vectors, but no box.
            boxes: of each image, instead of the one that is drawn; None: that one.

        Raises:
            InputError: a seed or an index is not a whole number from 0 to 2^128 - 1, there are not
                as many seeds or boxes as indices, or there is a box and the system takes none.
        """
        if boxes is not None and len(boxes) != len(indices):
            raise InputError(f"{len(boxes)} boxes but {len(indices)} indices, expected one each")
        if any(box is not None for box in boxes or ()):
            self.check_takes_boxes()
        seeds = seed if isinstance(seed, Sequence) else [seed] * len(indices)
        if len(seeds) != len(indices):
            raise InputError(f"{len(seeds)} seeds but {len(indices)} indices, expected one each")
        for name, values in (("seed", seeds), ("index", indices)):
            for value in values:
                if not isinstance(value, int | np.integer) or not 0 <= value < SEEDS:
                    raise InputError(
                        f"{name} is {value!r:.60}, expected a whole number from 0 to 2^128 - 1"
                    )
        sizes = list(self.config.noises.values())
        drawn = torch.empty(len(indices), sum(sizes))
        for row, of_image in zip(drawn.numpy(), zip(seeds, indices, strict=True), strict=True):
            bits = np.random.Philox(_seed_sequence(*of_image))
            np.random.Generator(bits).standard_normal(dtype=np.float32, out=row)
        noises: tuple[Tensor, ...] = (drawn * psi).split(sizes, dim=1)
        return noises

    def check_takes_boxes(self) -> None:
        """Raise InputError if images of this system are generated without a box."""
        if not self.config.places:
            raise InputError(
                f"a {self.SYSTEM} model takes no box: it does not place what it draws; leave the "
                f"box out, or use a model of the system gawwn"
            )

    def check_noises(self, *noises: Tensor) -> None:
        """Raise InputError if one of ``noise``'s tensors on the CPU is NaN or infinite."""
        for name, given in zip(self.config.noises, noises, strict=True):
            if at_hand(given) and not given.isfinite().all():
                raise InputError(f"{name}: found NaN or infinity, expected finite numbers")

    @torch.no_grad()
    def render(self, *inputs: Tensor) -> Tensor:
        """Return the last stage's images, uint8 (N, S, S, 3). The model may be in training mode.

        ``inference.renderer.fuse`` makes an object that does the same faster.

        Args:
            inputs: those of ``forward``.

        Raises:
            InputError: on the CPU, a noise is NaN or infinite, or a box is none. (On a GPU, the
                check would wait.)
        """
        self.check_noises(*split_inputs(self.config, inputs)[1])
        generated = in_evaluation(self)(*inputs)
        return to_uint8(generated.images[-1])

    def attention_maps(
        self,
        tokens: Tensor,  # (N, T)
        lengths: Tensor,  # (N,)
        *noises: Tensor,  # each (N, length)
    ) -> list[Tensor]:
        """Return the word attention of each stage that has one, (N, T, S, S) (see ``GLAM``).

        Raises:
            InputError: the system has no word attention.
        """
        raise InputError(f"a {self.SYSTEM} model has no word attention, so there are no maps of it")

    def check_weights(self, *parts: str) -> None:
        """Raise InputError if a weight of these parts, such as "stem", is NaN or infinite."""
        for part in parts:
            for name, tensor in getattr(self, part).state_dict().items():
                if not tensor.isfinite().all():
                    raise InputError(
                        f"weights {part}.{name}: found NaN or infinity, expected finite numbers; "
                        f"did the training diverge?"
                    )

    def save_pretrained(
        self, folder: str | os.PathLike[str], dtype: torch.dtype = torch.float32
    ) -> None:
        """Write config.json, vocabulary.txt and model.safetensors into ``folder``.

        Args:
            folder: made if need be.
            dtype: of the weights in the file; float16 halves it.

        Raises:
            InputError: the folder cannot be written.
        """
        save_description(folder, self.SYSTEM, self.config, self.vocabulary)
        save_tensors(folder, self.state_dict(), dtype, self.SHARED)

    @classmethod
    def from_pretrained(cls, name_or_path: str | os.PathLike[str] = "birds-painted") -> Self:
        """Load a model for inference: one that comes with the package, or a folder.

        ``mirrorgan_fast.load`` does this for a folder of any system.

        Raises:
            InputError: there is no such model, its system is another, or one of its files is
                missing, damaged or from a newer version.
        """
        return load_pretrained(
            name_or_path,
            cls.SYSTEM,
            lambda folder, sizes: cls(
                cls.CONFIG.from_dict(sizes, folder / CONFIG), load_vocabulary(folder)
            ),
            cls.SHARED,
        )


class Cascade(TextToImage):
    """A system whose generator is a cascade (``GLAM``), matched with captions by DAMSM."""

    GENERATOR = "glam"
    CONFIG: ClassVar[type[CascadeConfig]]
    config: CascadeConfig

    def __init__(self, config: CascadeConfig, vocabulary: Vocabulary) -> None:
        super().__init__(config, vocabulary)
        self.glam = GLAM(config)

    def attention_maps(
        self,
        tokens: Tensor,  # (N, T)
        lengths: Tensor,  # (N,)
        *noises: Tensor,  # each (N, length)
    ) -> list[Tensor]:
        """Return the word attention of each stage after the first, (N, T, S, S).

        Raises:
            InputError: the system has no word attention.
        """
        if not self.config.word_attention:
            return super().attention_maps(tokens, lengths, *noises)
        words, sentence = self.stem(tokens, lengths)
        mask = word_mask(lengths, tokens.shape[1])
        noise, condition_noise = noises
        return self.glam.attention_maps(noise, condition_noise, words, mask, sentence)


def sample_with(
    model: TextToImage,
    render: Callable[..., Tensor],
    captions: Sequence[str],
    seed: int,
    indices: Sequence[int] | None,
) -> list[Image.Image]:
    """Do what ``TextToImage.sample`` does, with another ``render``.

    It must be called by a function with the decorator ``torch.no_grad``: its warning points at the
    line that called that function.
    """
    encoded = model.encode(captions)
    warn_of_unknown(encoded.unknown, stacklevel=5)
    indices = range(len(captions)) if indices is None else indices
    if len(indices) != len(captions):
        raise InputError(f"{len(captions)} captions but {len(indices)} indices, expected one each")
    if not captions:
        return []
    device = next(model.parameters()).device
    inputs = (encoded.tokens, encoded.lengths, *model.noise(seed, indices))
    images = render(*(part.to(device) for part in inputs))
    return [Image.fromarray(array) for array in images.cpu().numpy()]


def split_inputs(
    config: TextToImageConfig, inputs: Sequence[Tensor]
) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """Split the inputs of a model into those of its text and the random vectors."""
    place = len(inputs) - len(config.noises)
    return inputs[:place], inputs[place:]


def in_evaluation(network: Network) -> Network:
    """Return the network in evaluation mode, without changing its own mode.

    The result shares all parameters, buffers and hooks with the network. Other threads, which may
    train it or sample from it meanwhile, notice nothing. Make one for each call: what is assigned
    to the network later, such as another submodule, is not in it.
    """
    view = copy.copy(network)
    view.training = False
    view._modules = {
        name: None if module is None else in_evaluation(module)
        for name, module in network._modules.items()
    }
    return view


def warn_of_unknown(unknown: Iterable[Sequence[str]], stacklevel: int = 3) -> None:
    """Warn once about the words that were skipped in captions, at the caller's caller's line."""
    words = list(dict.fromkeys(word for caption in unknown for word in caption))
    if words:
        warnings.warn(
            f"words that the model does not know are skipped: {listed(words)}",
            UnknownWordsWarning,
            stacklevel=stacklevel,
        )


def _seed_sequence(seed: int, index: int) -> np.random.SeedSequence:
    # Both are split into words of 32 bits, and a seed of several words would run into the index.
    if seed >= 2**32:
        return np.random.SeedSequence(seed, spawn_key=(index,))
    return np.random.SeedSequence((seed, index))
