"""MirrorGAN: a caption goes in, an image comes out, and the image is described back."""

import copy
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from mirrorgan_fast.errors import InputError, UnknownWordsWarning, listed
from mirrorgan_fast.inference.fused_glam import FusedGLAM
from mirrorgan_fast.inference.fused_stem import FusedSTEM
from mirrorgan_fast.inference.graphs import Graphs
from mirrorgan_fast.models.config import ModelConfig
from mirrorgan_fast.models.damsm import DAMSMImageEncoder
from mirrorgan_fast.models.glam import GLAM, Generated
from mirrorgan_fast.models.stem import STEM, word_mask
from mirrorgan_fast.models.stream import STREAM
from mirrorgan_fast.ops.checks import at_hand
from mirrorgan_fast.ops.parts import in_parts
from mirrorgan_fast.pictures import Picture, from_image, to_uint8
from mirrorgan_fast.vocabulary import Encoded, Vocabulary
from mirrorgan_fast.weights import (
    find_pretrained,
    load_description,
    load_weights,
    save_description,
    save_tensors,
    without_weights,
)

SEEDS = 2**128
"""How many seeds there are, and how many indices of each."""
# Captions, or pictures to describe, that go together, so that memory does not grow with them.
_TOGETHER = 64


class MirrorGAN(nn.Module):
    """STEM, GLAM and STREAM, with DAMSM's image encoder beside them for evaluation."""

    def __init__(self, config: ModelConfig, vocabulary: Vocabulary) -> None:
        super().__init__()
        self.config = config
        self.vocabulary = vocabulary
        self.stem = STEM(config, len(vocabulary))
        self.glam = GLAM(config)
        self.stream = STREAM(config, len(vocabulary))
        self.image_encoder = DAMSMImageEncoder(config)
        self.fused_stem: FusedSTEM | None = None
        self.fused_glam: FusedGLAM | None = None
        self.graphs: Graphs | None = None

    def fused(self, dtype: torch.dtype | None = None) -> Self:
        """Return the same model with text encoder and generator made ready for inference beside it.

        ``sample`` of the model that is returned takes those, and everything else is shared. This
        model is not changed; what it learns later the fused parts do not know.

        Args:
            dtype: in which the fused parts compute, float32 or bfloat16, on a GPU also float16
                (default: what is fastest on the device that this model is on). Images of bfloat16
                are less than a grey level from those of float32 in the mean.

        Raises:
            InputError: another data type, or a weight that is no number.
        """
        self.check_weights("stem", "glam")
        model = copy.copy(self)
        model._modules = dict(self._modules)  # a copy of a module shares even this
        model.fused_glam = FusedGLAM(self.glam, dtype)
        model.fused_stem = FusedSTEM(self.stem, dtype=model.fused_glam.dtype)
        if next(self.parameters()).device.type == "cuda":
            model.graphs = Graphs(model._render_fused)
        return model

    def check_weights(self, *parts: str) -> None:
        """Raise InputError if a weight of these parts, such as "stem", is NaN or infinite."""
        for part in parts:
            for name, tensor in getattr(self, part).state_dict().items():
                if not tensor.isfinite().all():
                    raise InputError(
                        f"weights {part}.{name}: found NaN or infinity, wanted numbers, as of a "
                        f"training that did not diverge"
                    )

    def forward(
        self,
        tokens: Tensor,  # (N, T)
        lengths: Tensor,  # (N,)
        noise: Tensor,  # (N, noise)
        condition_noise: Tensor,  # (N, condition)
    ) -> Generated:
        """Generate the images of all stages for captions (see ``GLAM.forward``)."""
        words, sentence = self.stem(tokens, lengths)
        mask = word_mask(lengths, tokens.shape[1])
        generated: Generated = self.glam(noise, condition_noise, words, mask, sentence)
        return generated

    @torch.no_grad()
    def sample(
        self, captions: Sequence[str], seed: int = 0, indices: Sequence[int] | None = None
    ) -> list[Image.Image]:
        """Make one image a caption, all in one batch, in evaluation mode.

        An image is a function of its caption, ``seed`` and its index alone. The same caption
        several times gives several images of it.

        Args:
            captions: any text; words that the vocabulary lacks are skipped, and of the rest the
                first ``config.caption_length`` count.
            seed: 0 or more.
            indices: the index of each image, 0 or more (default: 0, 1, 2 ...), so that a long list
                can be made in parts.

        Returns:
            RGB images of ``config.image_size`` pixels a side.

        Raises:
            InputError: a caption has no known word, the seed or an index is out of range, or there
                are not as many indices as captions.

        Warns:
            UnknownWordsWarning: a caption has words that the vocabulary lacks.
        """
        encoded = self.encode(captions)
        warn_of_unknown(encoded.unknown, stacklevel=4)  # past torch.no_grad
        indices = range(len(captions)) if indices is None else indices
        if len(indices) != len(captions):
            raise InputError(
                f"{len(captions)} captions but {len(indices)} indices, expected one each"
            )
        if not captions:
            return []
        device = next(self.parameters()).device
        noise, condition_noise = self.noise(seed, indices)
        inputs = (encoded.tokens, encoded.lengths, noise, condition_noise)
        images = self.render(*(part.to(device) for part in inputs))
        return [Image.fromarray(array) for array in images.cpu().numpy()]

    def encode(self, captions: Sequence[str]) -> Encoded:
        """Turn captions into tokens.

        Raises:
            InputError: a caption has no known word.
        """
        encoded = self.vocabulary.encode(captions, self.config.caption_length)
        for caption, length in zip(captions, encoded.lengths.tolist(), strict=True):
            if length == 0:
                raise InputError(
                    f"no word of the caption {caption!r:.60} is known to the model; "
                    f"say it with other words (mirrorgan-fast info --words lists them)"
                )
        return encoded

    @torch.no_grad()
    def render(
        self,
        tokens: Tensor,  # (N, T)
        lengths: Tensor,  # (N,)
        noise: Tensor,  # (N, noise)
        condition_noise: Tensor,  # (N, condition)
    ) -> Tensor:
        """Return the last images, uint8 (N, S, S, 3), by the fused parts if there are any.

        Where there are none, it is in evaluation mode.

        Raises:
            InputError: on the CPU, a noise is NaN or infinite. (A GPU would have to be waited for.)
        """
        for name, given in (("noise", noise), ("condition_noise", condition_noise)):
            if at_hand(given) and not given.isfinite().all():
                raise InputError(f"{name}: found NaN or infinity, wanted numbers")
        if self.fused_stem is None:
            with evaluating(self):
                generated = self(tokens, lengths, noise, condition_noise)
            return to_uint8(generated.images[-1])
        if self.graphs is None:
            return self._render_fused(tokens, lengths, noise, condition_noise)
        # to one length, so that there are not graphs of each
        tokens = functional.pad(tokens, (0, max(0, self.config.caption_length - tokens.shape[1])))
        return self.graphs(tokens, lengths, noise, condition_noise)

    def _render_fused(
        self,
        tokens: Tensor,  # (N, T)
        lengths: Tensor,  # (N,)
        noise: Tensor,  # (N, noise)
        condition_noise: Tensor,  # (N, condition)
    ) -> Tensor:
        assert self.fused_stem is not None
        assert self.fused_glam is not None
        size = self.config.image_size
        images = torch.empty(len(tokens), size, size, 3, dtype=torch.uint8, device=tokens.device)
        mask = word_mask(lengths, tokens.shape[1])
        for rows in in_parts((tokens, lengths, noise, condition_noise, mask, images), _TOGETHER):
            some_tokens, some_lengths, z, eps, some_mask, out = rows
            words, sentence = self.fused_stem(some_tokens, some_lengths)
            self.fused_glam(z, eps, words, some_mask, sentence, out=out)
        return images

    def noise(self, seed: int | Sequence[int], indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return z (N, noise) and eps (N, condition) for images, given their indices.

        They depend on (seed, index) alone, and are the same on every device and torch version.

        Args:
            seed: of all images, or of each.
            indices: of the images, N.

        Raises:
            InputError: a seed or an index is not a whole number from 0 to 2^128.
        """
        seeds = seed if isinstance(seed, Sequence) else [seed] * len(indices)
        for name, values in (("seed", seeds), ("index", indices)):
            for value in values:
                if not isinstance(value, int | np.integer) or not 0 <= value < SEEDS:
                    raise InputError(
                        f"{name} is {value!r:.60}, expected a whole number from 0 to 2^128"
                    )
        size = self.config.noise_size + self.config.condition_size
        rows = [
            np.random.Generator(np.random.Philox(_seed_sequence(*both)))
            .standard_normal(size, dtype=np.float32)
            for both in zip(seeds, indices, strict=True)
        ]  # fmt: skip
        both = torch.from_numpy(np.stack(rows))
        return both[:, : self.config.noise_size], both[:, self.config.noise_size :]

    @torch.no_grad()
    def describe(self, images: Picture | Sequence[Picture]) -> list[str]:
        """Say what is in each image, with STREAM, in evaluation mode.

        Args:
            images: of any size: images of Pillow, paths, or arrays, uint8 (H, W), (H, W, 3) or
                (H, W, 4); or one of these. Each is turned upright as its EXIF says, what is
                transparent is put on white, and a square is cut from its middle.

        Returns:
            a caption for each.

        Raises:
            InputError: one is none of these or cannot be read; or the weights give NaN.
        """
        if isinstance(images, Image.Image | str | os.PathLike) or (
            isinstance(images, np.ndarray) and images.ndim < 4
        ):
            images = [images]
        if not isinstance(images, Iterable):
            raise InputError(f"describe: found {type(images).__name__}, wanted images")
        size, device = self.config.image_size, next(self.parameters())
        described: list[str] = []
        numbered = enumerate(images)
        with evaluating(self):
            while batch := list(islice(numbered, _TOGETHER)):
                # each is small before the next one is read
                tensors = [from_image(image, size, f"image {i}") for i, image in batch]
                tokens = self.stream.describe(torch.stack(tensors).to(device))
                described += [self.vocabulary.decode(row) for row in tokens]
        return described

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
        save_description(folder, self.config, self.vocabulary)
        save_tensors(folder, self.state_dict(), dtype)

    @classmethod
    def from_pretrained(cls, name_or_path: str | os.PathLike[str] = "birds-painted") -> Self:
        """Load a model for inference: one that comes with the package, or a folder.

        Raises:
            InputError: there is no such model, or a file of it is damaged.
        """
        folder = find_pretrained(name_or_path)
        with without_weights():
            model = cls(*load_description(folder, ModelConfig.from_dict))
        load_weights(folder, model)
        return model.eval()


def warn_of_unknown(unknown: Iterable[Sequence[str]], stacklevel: int = 3) -> None:
    """Warn once of the words that were skipped in captions, in the name of the caller's caller."""
    words = list(dict.fromkeys(word for of_caption in unknown for word in of_caption))
    if words:
        warnings.warn(
            f"words that the model does not know are skipped: {listed(words)}",
            UnknownWordsWarning,
            stacklevel=stacklevel,
        )


def _seed_sequence(seed: int, index: int) -> np.random.SeedSequence:
    # Both are taken apart into words of 32 bits, and seeds of several words would run into indices.
    if seed >= 2**32:
        return np.random.SeedSequence(seed, spawn_key=(index,))
    return np.random.SeedSequence((seed, index))


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Put a network into evaluation mode, and back what was not in it."""
    trained = [module for module in network.modules() if module.training]
    network.eval()
    try:
        yield
    finally:
        for module in trained:
            module.training = True
