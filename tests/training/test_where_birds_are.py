"""What GAWWN learns in minutes at 32 pixels: to draw what captions say where boxes ask for it.

The box of a generated bird is read by a regressor that has only seen painted birds; its own overlap
on held-out ones is measured too. The text encoder is that of the package, and the judge of
attributes has not seen the model; it reads images that are cut around their boxes.
``python -m tests.training.test_where_birds_are SEED SIZE STEPS`` prints the figures of a seed.
"""

import copy
import dataclasses
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from mirrorgan_fast import MirrorGAN, Sampler
from mirrorgan_fast.data.examples import TrainingExamples
from mirrorgan_fast.data.image_folder import ImageFolder
from mirrorgan_fast.data.painted_birds.data_set import PaintedBirds, export_image_folder
from mirrorgan_fast.metrics.attributes import attribute_accuracy
from mirrorgan_fast.models.attribute_classifier import AttributeClassifier
from mirrorgan_fast.models.gawwn import Gawwn, GawwnBoxGenerator
from mirrorgan_fast.pictures import to_signed
from mirrorgan_fast.recipes import find_recipe
from mirrorgan_fast.sampling.captions import Request
from mirrorgan_fast.training.execution import Execution
from mirrorgan_fast.training.gan import train_gan
from mirrorgan_fast.training.gawwn import GawwnTraining

PICTURES, HELD_OUT = 3000, 200
CPU = torch.device("cpu")


def overlap(one: Tensor, other: Tensor) -> float:
    """Return the mean intersection over union of boxes (N, 4) and (N, 4)."""
    first = torch.maximum(one[:, :2], other[:, :2])
    last = torch.minimum(one[:, :2] + one[:, 2:], other[:, :2] + other[:, 2:])
    common = (last - first).clamp(min=0).prod(dim=1)
    whole = one[:, 2:].prod(dim=1) + other[:, 2:].prod(dim=1) - common
    return float((common / whole).mean())


class BoxReader(nn.Module):
    """A small CNN that reads the box of the bird in an image of any size from 32 pixels on."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for more in (24, 48, 96):
            layers += [nn.Conv2d(channels, more, 3, padding=1, stride=2), nn.BatchNorm2d(more)]
            layers += [nn.ReLU()]
            channels = more
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(96 * 16, 128), nn.ReLU())
        self.ends = nn.Linear(128, 4)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, 3, S, S) in [-1, 1] to left, top, right and bottom (N, 4)."""
        small = functional.interpolate(images, size=32, mode="area")
        ends: Tensor = self.ends(self.layers(small)).sigmoid()
        return ends

    @torch.no_grad()
    def read(self, images: Tensor) -> Tensor:
        """Map uint8 images (N, 3, S, S) to boxes (N, 4)."""
        first, last = self.eval()(to_signed(images, CPU)).split(2, dim=1)
        return torch.cat([first, (last - first).clamp(min=0.01)], dim=1)


def disturbed(images: Tensor) -> Tensor:
    """Blur, recolor, shift and noise images, as a generator's may be."""
    count = len(images)
    blurred = functional.avg_pool2d(images, 3, stride=1, padding=1, count_include_pad=False)
    images = torch.lerp(images, blurred, torch.rand(count, 1, 1, 1))
    images = images * (0.7 + 0.6 * torch.rand(count, 3, 1, 1)) + 0.3 * torch.randn(count, 3, 1, 1)
    noise = torch.randn_like(images) * 0.2 * torch.rand(count, 1, 1, 1)
    return (images + noise).clamp(-1, 1)


def trained_reader(examples: Sequence[Any] | TrainingExamples, steps: int = 1500) -> BoxReader:
    """Train a reader on real pictures, half of them mirrored."""
    torch.manual_seed(0)
    every = [examples[i] for i in range(len(examples))]
    images = functional.interpolate(
        to_signed(torch.stack([each["image"] for each in every]), CPU), size=32, mode="area"
    )
    boxes = torch.stack([each["box"] for each in every])
    reader = BoxReader()
    adam = torch.optim.Adam(reader.parameters(), 2e-3)
    slower = torch.optim.lr_scheduler.OneCycleLR(adam, 4e-3, total_steps=steps)
    for _ in range(steps):
        rows = torch.randint(len(images), (64,))
        seen, box = images[rows], boxes[rows]
        if torch.rand(()) < 0.5:
            seen = seen.flip(3)
            box = torch.stack([1 - box[:, 0] - box[:, 2], *box[:, 1:].unbind(1)], dim=1)
        ends = torch.cat([box[:, :2], box[:, :2] + box[:, 2:]], dim=1)
        loss = functional.smooth_l1_loss(reader(disturbed(seen)), ends, beta=0.05)
        adam.zero_grad()
        loss.backward()
        adam.step()
        slower.step()
    return reader


def around(images: Tensor, boxes: Tensor) -> Tensor:
    """Cut images around the middle of boxes, so that birds are as large as the judge knows them.

    Args:
        images: uint8 (N, 3, S, S).
        boxes: (N, 4).

    Returns:
        uint8 (N, 3, 64, 64): what is within 0.275 widths of the middle, or as near as there is.
    """
    size = images.shape[2]
    side = round(0.55 * size)
    corners = ((boxes[:, :2] + boxes[:, 2:] / 2) * size - side / 2).round().long()
    cut = [
        image[None, :, y : y + side, x : x + side].float()
        for image, (x, y) in zip(images, corners.clamp(0, size - side).tolist(), strict=True)
    ]
    larger = functional.interpolate(torch.cat(cut), size=64, mode="bilinear", antialias=True)
    return larger.round().to(torch.uint8)


class Found(NamedTuple):
    """Mean intersections over unions, and shares of the attributes that captions name."""

    reader: float
    """Overlap of what the reader reads in held-out real pictures with their boxes."""
    asked: float
    """Of what it reads in generated images with the boxes that they were asked to be in."""
    shuffled: float
    """Of the same with the boxes of other images."""
    real: float
    """Attributes that the judge sees in held-out real pictures of this size."""
    begun: float
    """Those that it sees in images of the generator before it is trained."""
    right: float
    """In images of the trained one."""
    others: float
    """Of those that the captions of other images name."""


def where(seed: int, size: int, steps: int, folder: Path) -> Found:
    """Train GAWWN on birds in varied places; measure what it draws of held-out captions, and where.

    Neither the captions nor the boxes were seen in training, and they are not of one picture.
    """
    full, recipe = MirrorGAN.from_pretrained(), find_recipe("gawwn-birds-painted")
    same = {
        name: getattr(full.config, name)
        for name in ("embedding_size", "word_embedding_size", "caption_length", "text_dropout")
    }
    config: Any = dataclasses.replace(recipe.config, **same, image_size=size)
    gan = {"steps": steps, "decay_steps": steps // 5}
    settings: Any = dataclasses.replace(
        recipe.settings, seed=seed, gan=dataclasses.replace(recipe.settings.gan, **gan)
    )
    if not (folder / "birds").exists():
        export_image_folder(
            folder / "birds", PICTURES, test=0, size=64, progress=False, places="varied"
        )
    birds = ImageFolder(folder / "birds", "train")
    train = TrainingExamples(birds, full.vocabulary, size, boxes=True)
    reader, judge = trained_reader(train), AttributeClassifier.from_pretrained()
    run = Execution(CPU, quiet=True)
    torch.manual_seed(seed)
    begun = GawwnBoxGenerator(config)
    learned_from = (train, {"stem": full.stem}, folder / f"gan{seed}", run)
    trained = train_gan(GawwnTraining, config, settings.gan, settings, *learned_from)

    held_out = PaintedBirds("test", HELD_OUT, 64, places="varied")
    captions = [held_out.bird_captions(i)[0] for i in range(HELD_OUT)]
    named = [caption.named for caption in captions]
    boxes = torch.tensor([held_out.box(i) for i in range(HELD_OUT)])
    asked = boxes.roll(1, dims=0)
    requests = [
        Request(i + 1, i, caption.text, seed, i, tuple(box))
        for i, (caption, box) in enumerate(zip(captions, asked.tolist(), strict=True))
    ]

    def images_of(generator: nn.Module) -> Tensor:
        model = Gawwn(config, full.vocabulary)
        model.stem, model.G = full.stem, copy.deepcopy(generator)  # type: ignore[assignment]
        results = Sampler(model, dtype=torch.float32).stream(requests)
        return torch.stack([torch.from_numpy(each.image) for each in results]).permute(0, 3, 1, 2)

    def share(images: Tensor, boxes: Tensor, named: Sequence[dict[str, str]]) -> float:
        return attribute_accuracy(judge.read(around(images, boxes)), named).overall

    painted = [torch.from_numpy(held_out.painting(i).image.copy()) for i in range(HELD_OUT)]
    real = torch.stack(painted).permute(0, 3, 1, 2).float()
    real = functional.interpolate(real, size=size, mode="area").round().to(torch.uint8)
    drawn = images_of(trained)
    read = reader.read(drawn)
    return Found(
        overlap(reader.read(real), boxes),
        overlap(read, asked),
        overlap(read, asked.roll(1, dims=0)),
        share(real, boxes, named),
        share(images_of(begun), asked, named),
        share(drawn, asked, named),
        share(drawn, asked, named[1:] + named[:1]),
    )


def test_overlaps_are_intersections_over_unions() -> None:
    """Against the shares of a grid's points that are in both boxes, and in one of them."""
    torch.manual_seed(0)
    sides = torch.rand(2, 6, 2) * 0.5 + 0.1
    one, other = torch.cat([torch.rand(2, 6, 2) * (1 - sides), sides], dim=2)
    places = (torch.arange(1000) + 0.5) / 1000
    shares = []
    for pair in zip(one, other, strict=True):
        masks = []
        for x, y, width, height in pair:
            columns = (places > x) & (places < x + width)
            rows = (places > y) & (places < y + height)
            masks.append(rows[:, None] & columns)
        shares.append((masks[0] & masks[1]).sum() / (masks[0] | masks[1]).sum())
    assert overlap(one, other) == pytest.approx(float(torch.stack(shares).mean()), abs=0.005)
    assert overlap(one, one) == pytest.approx(1)


def test_images_are_cut_around_boxes() -> None:
    """A bright pixel in the middle of a box comes to the middle, or as near as the edge allows."""
    images = torch.zeros(3, 3, 40, 40, dtype=torch.uint8)
    places = [(20, 12), (2, 20), (38, 39)]  # 22 pixels are cut, and 64 made of them
    for image, (x, y) in zip(images, places, strict=True):
        image[:, y, x] = 255
    boxes = torch.tensor([[x / 40 - 0.1, y / 40 - 0.05, 0.225, 0.125] for x, y in places])
    seen = around(images, boxes).float()
    assert seen.shape == (3, 3, 64, 64)
    numbers = torch.arange(64) + 0.5
    for image, (x, y) in zip(
        seen[:, 0] / seen[:, 0].sum((1, 2), keepdim=True), places, strict=True
    ):
        middle = (image.sum(0) @ numbers, image.sum(1) @ numbers)
        expected = [p + 0.5 - min(max(p + 0.5 - 11, 0), 18) for p in (x, y)]
        assert middle == pytest.approx([64 / 22 * p for p in expected], abs=64 / 22)


def test_the_reader_learns_to_read_boxes() -> None:
    """Of white rectangles, better than the boxes of others after a few steps."""
    torch.manual_seed(0)
    examples = []
    for _ in range(200):
        x, y, width, height = (torch.rand(4) * 0.4 + torch.tensor([0.05, 0.05, 0.1, 0.1])).tolist()
        image = torch.full((3, 32, 32), 40, dtype=torch.uint8)
        rows = slice(round(y * 32), round((y + height) * 32))
        image[:, rows, round(x * 32) : round((x + width) * 32)] = 220
        examples.append({"image": image, "box": torch.tensor([x, y, width, height])})
    reader = trained_reader(examples[:150], steps=60)
    boxes = torch.stack([each["box"] for each in examples[150:]])
    read = reader.read(torch.stack([each["image"] for each in examples[150:]]))
    assert overlap(read, boxes) > 0.15 + overlap(read, boxes.roll(1, dims=0))


@pytest.mark.slow
def test_birds_are_where_their_boxes_ask_for_them(tmp_path: Path) -> None:
    """Seed 1 has 0.56 after 1,800 steps; others were measured after 1,200 alone (0.50: seed 0)."""
    found = where(1, 32, 1800, tmp_path)
    print(found)
    assert found.asked > 0.5
    assert found.asked > 2 * found.shuffled


if __name__ == "__main__":
    seed, size, steps = map(int, sys.argv[1:4])
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as made:
        figures = where(seed, size, steps, Path(made))
    print(sys.argv[1:], figures, f"{time.perf_counter() - begun:.0f} s")
