"""Contact sheets of what a generator in training makes of a few captions."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from mirrorgan_fast.data.examples import TrainingExamples
from mirrorgan_fast.models.config import BOX, TextToImageConfig
from mirrorgan_fast.models.glam import GLAM
from mirrorgan_fast.models.stem import STEM, word_mask
from mirrorgan_fast.pictures import outlined, to_uint8, write_sheet

_CAPTIONS, _NOISES = 8, 4
_LEAST_SIDE = 96  # pixels


class SampleSheets:
    """Sheets of the same captions and noises: a column a caption, a row a noise.

    The captions are below. The first row has the real pictures of the captions, unless they are
    left out. Small images are enlarged, so that the captions can be read. If images have boxes,
    those of a column are drawn with the box of its real picture, which is outlined.

    Args:
        generator: see ``GLAM.forward``.
        stem: the text encoder.
        examples: the captions are those of the first few.
        config: the sizes of the networks.
        folder: where to write the sheets.
        device: that the networks are on.
        real_row: whether there is a row of real pictures.
    """

    def __init__(
        self,
        generator: nn.Module,
        stem: STEM,
        examples: TrainingExamples,
        config: TextToImageConfig,
        folder: Path,
        device: torch.device,
        real_row: bool = True,
    ) -> None:
        self.generator, self.stem, self.config = generator, stem, config
        self.folder, self.device = folder, device
        examples.set_epoch(0)
        chosen = [examples[i] for i in range(min(_CAPTIONS, len(examples)))]
        self._tokens = torch.stack([example["tokens"] for example in chosen]).to(device)
        self._captions = [
            " ".join(examples.vocabulary.words[n] for n in example["tokens"][: example["length"]])
            for example in chosen
        ]
        self._boxes: Tensor | None = None
        if config.places:
            self._boxes = torch.stack([example["box"] for example in chosen]).to(device)
        self._real = [example["image"].permute(1, 2, 0).numpy() for example in chosen if real_row]
        self._lengths = torch.tensor([example["length"] for example in chosen]).to(device)

    @torch.no_grad()
    def write(self, steps: int, options: tuple[Any, ...] = ()) -> tuple[Path, Tensor]:
        """Write the sheet of a generator that was trained for so many steps, as a PNG file.

        Args:
            steps: name the file.
            options: what else the generator is called with.

        Returns:
            the file, and the generated images, uint8 (captions, noises, S, S, 3).

        Raises:
            InputError: it cannot be written.
        """
        random = torch.Generator().manual_seed(0)
        rows: list[Tensor] = []
        for _ in range(_NOISES):
            made = self.generator(*self._inputs(random), *options).images[-1]
            rows.append(to_uint8(made).cpu())
        side = self.config.image_size * -(-_LEAST_SIDE // self.config.image_size)
        images = [*self._real, *(image.numpy() for row in rows for image in row)]
        scaled = [
            np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.NEAREST))
            for image in images
        ]
        if self._boxes is not None:
            boxes = self._boxes.tolist()
            scaled = [outlined(image, boxes[i % len(boxes)]) for i, image in enumerate(scaled)]
        path = self.folder / f"{steps:07d}.png"
        write_sheet(path, scaled, columns=len(self._tokens), captions=self._captions)
        return path, torch.stack(rows, dim=1)

    @torch.no_grad()
    def attention(self, options: tuple[Any, ...] = ()) -> np.ndarray | None:
        """Return a picture of the last stage's word attention, uint8 (H, W, 3).

        A row has the maps of a caption's words. White is the largest weight of a map. There is none
        if the generator has no word attention, or only one stage is computed.
        """
        if not isinstance(self.generator, GLAM) or not self.generator.attends or options == (1,):
            return None
        inputs = self._inputs(torch.Generator().manual_seed(0))
        maps = self.generator.attention_maps(*inputs)[-1].float().cpu()
        maps = maps / maps.amax(dim=(2, 3), keepdim=True).clamp(min=1e-9)
        rows = maps.transpose(1, 2).flatten(2).flatten(0, 1)  # (N S, T S)
        return (rows * 255).byte()[..., None].expand(-1, -1, 3).numpy()

    def _inputs(self, random: torch.Generator) -> list[Tensor]:
        """Return what the generator makes images of the captions from, with new random vectors."""
        words, sentence = self.stem(self._tokens, self._lengths)
        count = len(self._tokens)
        noises = [
            torch.randn(count, size, generator=random).to(self.device)
            for name, size in self.config.noises.items()
            if name != BOX
        ]
        if self._boxes is not None:
            noises.append(self._boxes)
        return [*noises, words, word_mask(self._lengths, self._tokens.shape[1]), sentence]
