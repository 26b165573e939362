"""Contact sheets of what a generator in training makes of a few captions."""

from pathlib import Path

import numpy as np
import torch
from torch import nn

from mirrorgan_fast.data.examples import TrainingExamples
from mirrorgan_fast.models.config import CascadeConfig
from mirrorgan_fast.models.stem import STEM, word_mask
from mirrorgan_fast.pictures import to_uint8, write_sheet

_CAPTIONS, _NOISES = 8, 4


class SampleSheets:
    """Sheets of the same captions and noises: a column a caption, a row a noise.

    Args:
        generator: see ``GLAM.forward``.
        stem: the text encoder.
        examples: the captions are those of the first few.
        config: the sizes of the networks.
        folder: where to write the sheets.
        device: that the networks are on.
    """

    def __init__(
        self,
        generator: nn.Module,
        stem: STEM,
        examples: TrainingExamples,
        config: CascadeConfig,
        folder: Path,
        device: torch.device,
    ) -> None:
        self.generator, self.stem, self.config = generator, stem, config
        self.folder, self.device = folder, device
        examples.set_epoch(0)
        chosen = [examples[i] for i in range(min(_CAPTIONS, len(examples)))]
        self._tokens = torch.stack([example["tokens"] for example in chosen]).to(device)
        self._lengths = torch.tensor([example["length"] for example in chosen]).to(device)

    @torch.no_grad()
    def write(self, steps: int, stages: int) -> None:
        """Write the sheet of a generator that was trained for so many steps, as a PNG file.

        Args:
            steps: name the file.
            stages: of the generator, to draw the last of them.

        Raises:
            InputError: it cannot be written.
        """
        words, sentence = self.stem(self._tokens, self._lengths)
        mask = word_mask(self._lengths, self._tokens.shape[1])
        count = len(self._tokens)
        random = torch.Generator().manual_seed(0)
        images: list[np.ndarray] = []
        for _ in range(_NOISES):
            z = torch.randn(count, self.config.noise_size, generator=random).to(self.device)
            eps = torch.randn(count, self.config.condition_size, generator=random).to(self.device)
            made = self.generator(z, eps, words, mask, sentence, stages).images[-1]
            images.extend(to_uint8(made).cpu().numpy())
        write_sheet(self.folder / f"{steps:07d}.png", images, columns=_CAPTIONS)
