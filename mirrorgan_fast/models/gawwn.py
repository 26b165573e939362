"""GAWWN (Reed et al., 2016, "Learning What and Where to Draw") with a bounding box."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from mirrorgan_fast.boxes import LEAST_SIDE, Box, to_box
from mirrorgan_fast.errors import InputError
from mirrorgan_fast.models.config import GawwnConfig
from mirrorgan_fast.models.damsm import DAMSMImageEncoder
from mirrorgan_fast.models.glam import Generated
from mirrorgan_fast.models.layers import (
    BatchNormLeakyReLU,
    BatchNormReLU,
    Bottleneck,
    Conv2d,
    SentenceLinear,
    convolution,
    initialize,
    initialize_normally,
    transposed_up,
)
from mirrorgan_fast.models.text_to_image import TextToImage
from mirrorgan_fast.ops.checks import at_hand
from mirrorgan_fast.ops.wide import wide
from mirrorgan_fast.vocabulary import Vocabulary

SLOPE = BatchNormLeakyReLU.SLOPE
_OF_FLOAT16 = 1e-3  # more than boxes are rounded by in float16
_MIDDLE = (0.25, 0.25, 0.5, 0.5)  # the box of a model that has not been trained


class Gawwn(TextToImage):
    """A text encoder, and a generator ``G`` of one stage that is told where to draw.

    DAMSM's image encoder has no part in its training; with it, the text encoder was trained, and
    R-precision is measured.
    """

    SYSTEM = "gawwn"
    CONFIG = GawwnConfig
    GENERATOR = "G"
    config: GawwnConfig
    boxes: Tensor
    """Boxes of training images, (kept_boxes, 4)."""

    def __init__(self, config: GawwnConfig, vocabulary: Vocabulary) -> None:
        super().__init__(config, vocabulary)
        self.G = GawwnBoxGenerator(config)
        self.image_encoder = DAMSMImageEncoder(config)
        self.register_buffer("boxes", torch.tensor([_MIDDLE]).repeat(config.kept_boxes, 1))

    def noise(
        self,
        seed: int | Sequence[int],
        indices: Sequence[int],
        psi: float = 1.0,
        boxes: Sequence[Box | None] | None = None,
    ) -> tuple[Tensor, ...]:
        """Return z (N, noise) and the boxes (N, 4) of images (see ``TextToImage.noise``).

        psi does not change the boxes.

        Raises:
            InputError: see ``TextToImage.noise``; or a given box is not a box.
        """
        z, drawn = super().noise(seed, indices, boxes=boxes)
        kept = self.boxes.cpu().float()
        # The normal distribution's share below a random number is uniform.
        share = torch.special.ndtr(drawn[:, 0].double())
        chosen = kept[(share * len(kept)).long().clamp(max=len(kept) - 1)]
        sides = chosen[:, 2:].clamp(LEAST_SIDE, 1)  # a file may have them in float16
        chosen = torch.cat([torch.minimum(chosen[:, :2], 1 - sides), sides], dim=1)
        for row, box in enumerate(boxes or ()):
            if box is not None:
                chosen[row] = torch.tensor(_checked(box))
        return psi * z, chosen

    def check_noises(self, *noises: Tensor) -> None:
        """Raise InputError if z or a box on the CPU cannot be generated from."""
        super().check_noises(*noises)
        if at_hand(noises[1]):
            for box in noises[1].tolist():
                _checked(box)

    def check_weights(self, *parts: str) -> None:
        """Raise InputError if a weight of these parts is NaN or infinite, or a kept box is none."""
        super().check_weights(*parts)
        for row, box in enumerate(self.boxes.tolist()):
            try:
                to_box(box, rounding=_OF_FLOAT16)
            except InputError as error:
                raise InputError(f"weights boxes: row {row} is {box}, {error}") from error


class GawwnBoxGenerator(nn.Module):
    """Two paths to maps of an eighth of the image's size, and transposed convolutions to the image.

    The global path starts from z and from the place: the sentence where the box is. The local path
    draws the sentence and z without a place, and its map is then shrunk into the box. As in the
    authors' code; their biases before batch norms, which change nothing, are left out.
    """

    def __init__(self, config: GawwnConfig) -> None:
        super().__init__()
        ngf, self.grid = config.generator_channels, config.grid_size
        doublings = config.grid_size.bit_length() - 3  # from 4 pixels on
        text = 4 * ngf
        first = (2 * ngf) << doublings  # channels of the first map, of 4 pixels
        self.project = SentenceLinear(config.embedding_size, text)
        self.place = nn.Sequential()
        for _ in range(doublings):
            self.place.extend(
                [Conv2d(text, text, 4, stride=2, padding=1, bias=False), BatchNormReLU(text)]
            )
        self.place.extend([Conv2d(text, text, 4, bias=False), BatchNormReLU(text)])
        self.global_noise = nn.Linear(config.noise_size, text)
        self.global_path = nn.Sequential(
            nn.ConvTranspose2d(2 * text, first, 4, bias=False), BatchNormReLU(first)
        )
        self.local_noise = nn.Linear(config.noise_size, text)
        self.local_path = nn.Sequential(
            nn.ConvTranspose2d(2 * text, first, 4, bias=False), nn.BatchNorm2d(first)
        )
        for channels in (first >> doubling for doubling in range(doublings)):
            half = channels // 2
            self.global_path.extend([transposed_up(channels, half), BatchNormReLU(half)])
            self.local_path.extend(
                [
                    Bottleneck(channels, max(1, channels // 4), 0.0),
                    transposed_up(channels, half),
                    nn.BatchNorm2d(half),
                ]
            )
        quarter = max(1, ngf // 4)
        self.joint = nn.Sequential(
            Conv2d(4 * ngf, 2 * ngf, 3, padding=1, bias=False),
            BatchNormReLU(2 * ngf),
            transposed_up(2 * ngf, ngf),
            BatchNormReLU(ngf),
            transposed_up(ngf, quarter),
            BatchNormReLU(quarter),
        )
        self.image = nn.Sequential(
            nn.ConvTranspose2d(quarter, 3, 4, stride=2, padding=1), nn.Tanh()
        )
        initialize_normally(self, linear=False)

    def forward(
        self,
        noise: Tensor,  # (N, noise)
        box: Tensor,  # (N, 4)
        words: Tensor,  # (N, T, D)
        mask: Tensor,  # (N, T)
        sentence: Tensor,  # (N, D)
    ) -> Generated:
        """Generate images.

        Args:
            noise: z, standard normal.
            box: where to draw, x, y, width and height in shares of the image (see ``boxes``).
            words: not used.
            mask: not used.
            sentence: s from STEM.

        Returns:
            the images, and no statistics: there is no conditioning augmentation.
        """
        t = self.project(sentence)
        z = noise.to(t.dtype)
        points = points_around(box, self.grid)
        place = self.place(t[:, :, None, None] * covered(points).to(t.dtype))
        seen = torch.cat([functional.relu(self.global_noise(z)), place.flatten(1).to(t.dtype)], 1)
        whole = self.global_path(seen[:, :, None, None])
        drawn = functional.relu(torch.cat([self.local_noise(z), t], dim=1))
        local = functional.relu(resampled(self.local_path(drawn[:, :, None, None]), points))
        none = sentence[:, :0]
        return Generated([self.image(self.joint(torch.cat([whole, local], dim=1)))], none, none)


class Seen(NamedTuple):
    """What a discriminator makes of images, before it is told of captions and boxes."""

    trunk: Tensor
    """(N, 2 ndf, S / 8, S / 8)."""
    whole: Tensor
    """(N, C, 4, 4)."""


class GawwnBoxDiscriminator(nn.Module):
    """A global and a local path, to one logit of an image with its caption and its box.

    The local path looks at what is inside the box, stretched over a whole map. As in the authors'
    code, without their biases before batch norms. The crop of the sentence's map in their global
    path is left out: that map is the same everywhere, and so is any crop of it.

    A batch norm comes last but one, and real and generated images are batches of their own: its
    features have the same mean for both, so it learns slowly to tell them apart. Without batch
    norm (``config.discriminator_norm`` is ``none``) it learns that within a few steps.
    """

    def __init__(self, config: GawwnConfig) -> None:
        super().__init__()
        ndf, size, nt = config.discriminator_channels, config.grid_size, config.condition_size
        norm = config.discriminator_norm
        self.grid = size
        self.trunk = nn.Sequential(
            nn.Conv2d(3, ndf, 4, stride=2, padding=1),
            nn.LeakyReLU(SLOPE),
            Conv2d(ndf, ndf, 4, stride=2, padding=1),
            nn.LeakyReLU(SLOPE),
            *convolution(ndf, 2 * ndf, 4, norm, stride=2, padding=1),
            *convolution(2 * ndf, 2 * ndf, 3, norm, padding=1),
        )
        self.project = nn.Sequential(SentenceLinear(config.embedding_size, nt), nn.LeakyReLU(SLOPE))
        self.local_joint = convolution(2 * ndf + nt, 2 * ndf, 3, norm, padding=1)
        self.local = nn.Sequential(
            *convolution(2 * ndf, 2 * ndf, 1, norm), nn.Conv2d(2 * ndf, ndf, 1)
        )
        self.whole, self.whole_text = nn.Sequential(), nn.Sequential()
        channels, text = 2 * ndf, nt
        while size > 4:
            size //= 2
            of_text = 4 * ndf if size > 4 else ndf
            self.whole.extend(convolution(channels, 2 * channels, 4, norm, stride=2, padding=1))
            self.whole_text.extend(
                convolution(text, of_text, 4, norm, stride=2, padding=1, slope=0.0)
            )
            channels, text = 2 * channels, of_text
        self.whole_joint = nn.Sequential(
            *convolution(channels + text, 4 * ndf, 1, norm), *convolution(4 * ndf, ndf, 4, norm)
        )
        batch = norm == "batch"
        self.logit = nn.Sequential(
            nn.Linear(2 * ndf, ndf, bias=not batch),
            *([nn.BatchNorm1d(ndf)] if batch else []),
            nn.LeakyReLU(SLOPE),
            nn.Linear(ndf, 1),
        )
        if batch:
            initialize_normally(self, linear=False)
        else:
            initialize(self, nn.init.calculate_gain("leaky_relu", SLOPE))

    def forward(self, image: Tensor) -> Seen:
        """Map images (N, 3, S, S) to what ``conditional`` needs."""
        trunk = self.trunk(image)
        return Seen(trunk, self.whole(trunk))

    def conditional(
        self,
        seen: Seen,
        sentence: Tensor,  # (N, D)
        box: Tensor,  # (N, 4)
    ) -> Tensor:
        """Return the logits (N,) that images are real and fit their sentences and boxes."""
        t = self.project(sentence)[:, :, None, None].to(seen.trunk.dtype)
        t = t.expand(-1, -1, self.grid, self.grid)
        inside = resampled(
            self.local_joint(torch.cat([seen.trunk, t], dim=1)), points_inside(box, self.grid)
        )
        local = functional.leaky_relu(self.local(inside).mean(dim=(2, 3)), SLOPE)
        whole = self.whole_joint(torch.cat([seen.whole, self.whole_text(t)], dim=1)).flatten(1)
        logit: Tensor = self.logit(torch.cat([local, whole], dim=1))
        return logit.flatten()


def points_inside(box: Tensor, size: int) -> Tensor:
    """Return where a map must be sampled so that the inside of a box fills it.

    Args:
        box: (N, 4).
        size: G, the height and width of the map.

    Returns:
        (N, G, G, 2): x and y, of which -1 and 1 are the middles of the pixels at the edges.
    """
    corner, sides = wide(box).split(2, dim=1)
    return _points(sides, 2 * corner + sides - 1, size)


def points_around(box: Tensor, size: int) -> Tensor:
    """Return where a map must be sampled so that it is shrunk into a box: the inverse.

    The arguments and the result are those of ``points_inside``.
    """
    corner, sides = wide(box).split(2, dim=1)
    return _points(1 / sides, -(2 * corner + sides - 1) / sides, size)


def _points(
    scale: Tensor,  # (N, 2)
    shift: Tensor,  # (N, 2)
    size: int,
) -> Tensor:
    places = torch.linspace(-1, 1, size, dtype=scale.dtype, device=scale.device)
    x, y = (scale[:, :, None] * places + shift[:, :, None]).unbind(1)  # (N, G) each
    return torch.stack([x[:, None].expand(-1, size, -1), y[:, :, None].expand(-1, -1, size)], 3)


def resampled(x: Tensor, points: Tensor) -> Tensor:
    """Sample maps (N, C, G, G) bilinearly at points (N, G, G, 2); outside they are 0."""
    with torch.autocast(x.device.type, enabled=False):
        y = functional.grid_sample(
            wide(x), points.to(wide(x).dtype), "bilinear", "zeros", align_corners=True
        )
    return y.to(x.dtype)


def covered(points: Tensor) -> Tensor:
    """Return the maps (N, 1, G, G) that ``resampled`` makes of maps of ones."""
    return resampled(torch.ones_like(points[:, None, :, :, 0]), points)


def _checked(box: Sequence[float]) -> Box:
    try:
        return to_box(tuple(box))
    except InputError as error:
        raise InputError(f"box: found {list(box)!r:.80}, {error}") from error
