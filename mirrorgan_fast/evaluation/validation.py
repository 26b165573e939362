"""Validation: a few figures of a model in training, on the held-out split."""

from contextlib import suppress

import numpy as np
import torch
from torch import Tensor

from mirrorgan_fast.data.captioned_images import CaptionedImages
from mirrorgan_fast.data.image_folder import ImageFolder
from mirrorgan_fast.data.painted_birds.data_set import is_painted
from mirrorgan_fast.errors import InputError
from mirrorgan_fast.evaluation.captions import asserted_attributes, caption_pool
from mirrorgan_fast.evaluation.features import FeatureReader
from mirrorgan_fast.evaluation.images import generate, look, real_picture
from mirrorgan_fast.evaluation.judges import Judge
from mirrorgan_fast.evaluation.redescription import bleu_4, redescription_accuracy
from mirrorgan_fast.metrics.attributes import attribute_accuracy
from mirrorgan_fast.metrics.diversity import diversity
from mirrorgan_fast.metrics.kernel_distance import kernel_distance
from mirrorgan_fast.metrics.r_precision import r_precision
from mirrorgan_fast.models.text_to_image import TextToImage
from mirrorgan_fast.sampling.sampler import Sampler

_COUNT, _REAL = 200, 500
_CAPTIONS, _NOISES = 8, 4


class Validation:
    """Measures a model on held-out captions, always on the same ones.

    Args:
        images: the held-out split.
        judge: reads the attributes that captions name (``judge_of``); None: they are not measured.
        features: reads the features that the kernel distance compares; None: it is not measured.
        seed: of the choice of captions, and of the images.
    """

    def __init__(
        self,
        images: CaptionedImages,
        judge: Judge | None = None,
        features: FeatureReader | None = None,
        seed: int = 0,
    ) -> None:
        self.images, self.judge, self.features, self.seed = images, judge, features, seed
        self._real: Tensor | None = None

    @torch.no_grad()
    def __call__(self, model: TextToImage) -> dict[str, float]:
        """Return the figures of a model.

        Returns:
            "r_precision" (top 1 of 100; left out if there are too few captions); "redescription":
            BLEU-4 of STREAM's descriptions, or of painted birds the share of the attributes they
            name that the image shows; with a judge "attributes", the share of those that the
            caption names that the image shows; with features "kernel_distance" to the real
            pictures of the split, at most 500; "diversity" in gray levels.

        Raises:
            InputError: the split has too few captions with a known word.
        """
        rng = np.random.default_rng(self.seed)
        pool, known, _ = caption_pool(model, self.images)
        usable = [i for i, places in enumerate(known) if places][:_COUNT]
        chosen = [known[i][rng.integers(len(known[i]))] for i in usable]
        captions = [pool.texts[place] for _, place in chosen]
        sampler = Sampler(model)

        def sampled(texts: list[str]) -> Tensor:
            return generate(sampler, texts, range(len(texts)), self.seed, title="", quiet=True)

        images = sampled(captions)
        codes, descriptions = look(model, images)
        figures = {}
        with suppress(InputError):  # there are too few captions to compare with
            own = [place for _, place in chosen]
            shares = r_precision(codes, own, pool, np.random.default_rng(self.seed))
            figures["r_precision"] = shares[1]
        painted = False
        if self.judge is not None and isinstance(self.images, ImageFolder):
            painted = is_painted(self.images.record(0))
            shown = self.judge.read(images)
            named = [
                asserted_attributes(self.images, i, self.judge.names)[of_image]
                for i, (of_image, _) in zip(usable, chosen, strict=True)
            ]
            figures["attributes"] = attribute_accuracy(shown, named).overall
            if descriptions is not None and painted:
                figures["redescription"] = redescription_accuracy(descriptions, shown).overall
        if descriptions is not None and not painted:
            references = [self.images.captions(i) for i in usable]
            figures["redescription"] = bleu_4(descriptions, references)
        if self.features is not None:
            if self._real is None:
                self._real = self._features_of_pictures(self.features, images.shape[2])
            if min(len(self._real), len(images)) > 1:
                generated = self.features.read(images)
                figures["kernel_distance"] = kernel_distance(self._real, generated).mean
        few = captions[:_CAPTIONS]
        alike = [caption for caption in few for _ in range(_NOISES)]
        figures["diversity"] = diversity(sampled(alike).unflatten(0, (len(few), _NOISES)))
        return figures

    def _features_of_pictures(self, features: FeatureReader, size: int) -> Tensor:
        """Return the features of pictures of the split, at the size of generated images.

        Damaged ones are passed over, because a training should not stop for them.
        """
        pictures = [torch.empty(0, 3, size, size, dtype=torch.uint8)]
        for index in range(min(len(self.images), _REAL)):
            with suppress(InputError):
                pictures.append(real_picture(self.images, index, size))
        images = torch.cat(pictures)
        return features.read(images) if len(images) else torch.empty(0, 1)
