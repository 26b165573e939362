"""GAWWN: the authors' sizes, boxes applied to maps, and what an image depends on."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from mirrorgan_fast.boxes import to_box
from mirrorgan_fast.errors import InputError
from mirrorgan_fast.figures.walk import walk
from mirrorgan_fast.inference.renderer import fuse
from mirrorgan_fast.models.config import GanIntClsConfig, GawwnConfig, Norm
from mirrorgan_fast.models.gan_int_cls import GanIntCls
from mirrorgan_fast.models.gawwn import (
    Gawwn,
    GawwnBoxDiscriminator,
    GawwnBoxGenerator,
    covered,
    points_around,
    points_inside,
    resampled,
)
from mirrorgan_fast.models.layers import BatchNormActivation
from mirrorgan_fast.sampling.captions import Request
from mirrorgan_fast.sampling.sampler import Result, Sampler
from mirrorgan_fast.vocabulary import END, Vocabulary
from tests.small import WORDS, small_gawwn

SIZES: dict[str, Any] = {
    "embedding_size": 16,
    "word_embedding_size": 8,
    "caption_length": 8,
    "noise_size": 6,
    "image_encoder": "small",
}
SMALL = GawwnConfig(
    image_size=64,
    generator_channels=8,
    discriminator_channels=6,
    condition_size=5,
    kept_boxes=40,
    **SIZES,
)
BOX = (0.125, 0.5, 0.25, 0.375)
OTHER = (0.5, 0.25, 0.5, 0.5)


@pytest.fixture
def model() -> Gawwn:
    made = small_gawwn(SMALL)
    made.boxes.copy_(random_boxes(40))
    return made


def random_boxes(count: int) -> Tensor:
    rng = np.random.default_rng(0)
    sides = rng.uniform(0.1, 1, (count, 2))
    corners = rng.uniform(0, 1 - sides)
    return torch.tensor(np.concatenate([corners, sides], axis=1), dtype=torch.float32)


# --- sizes


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def left_out(module: nn.Module) -> int:
    """Return how many biases of convolutions and linear layers are left out."""
    layers = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
    found = [each for each in module.modules() if isinstance(each, layers) and each.bias is None]
    return sum(
        each.out_features if isinstance(each, nn.Linear) else each.out_channels for each in found
    )


@pytest.mark.parametrize(
    ("text", "ndf", "of_generator", "of_discriminator"),
    [
        (1024, 128, 73_545_699, 16_763_137),
        (1024, 64, 73_545_699, 4_629_697),
        (256, 128, 73_152_483, 16_664_833),
    ],
)
def test_it_has_as_many_parameters_as_the_authors(
    text: int, ndf: int, of_generator: int, of_discriminator: int
) -> None:
    """Theirs also have biases before batch norms, which change nothing."""
    config = GawwnConfig(embedding_size=text, discriminator_channels=ndf)
    with torch.device("meta"):
        generator, discriminator = GawwnBoxGenerator(config), GawwnBoxDiscriminator(config)
    assert count(generator) + left_out(generator) == of_generator
    assert count(discriminator) + left_out(discriminator) == of_discriminator
    assert (left_out(generator), left_out(discriminator)) == (7_840, 31 * ndf)
    normalized = [
        len(norm.weight)
        for network in (generator, discriminator)
        for norm in network.modules()
        if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d | BatchNormActivation)
    ]
    assert sum(normalized) == left_out(generator) + left_out(discriminator)


@pytest.mark.parametrize("norm", ["batch", "none"])
@pytest.mark.parametrize("size", [32, 64, 128, 256])
def test_every_size_is_made_and_judged(size: int, norm: Norm) -> None:
    config = dataclasses.replace(
        SMALL, image_size=size, generator_channels=2, discriminator_norm=norm
    )
    generator, discriminator = GawwnBoxGenerator(config), GawwnBoxDiscriminator(config)
    boxes, sentence = random_boxes(3), torch.randn(3, 16)
    empty = torch.zeros(3, 0, 16), torch.zeros(3, 0, dtype=torch.bool)
    images = generator(torch.randn(3, 6), boxes, *empty, sentence).images
    assert [image.shape for image in images] == [(3, 3, size, size)]
    logits = discriminator.conditional(discriminator(images[0]), sentence, boxes)
    assert logits.shape == (3,)
    assert config.grid_size == size // 8


def test_without_a_norm_each_image_is_judged_alone() -> None:
    images, sentences, boxes = torch.randn(4, 3, 64, 64), torch.randn(4, 16), random_boxes(4)
    norms: dict[Norm, bool] = {"batch": False, "none": True}
    for norm, alone in norms.items():
        D = GawwnBoxDiscriminator(dataclasses.replace(SMALL, discriminator_norm=norm))
        whole = D.conditional(D(images), sentences, boxes)
        half = D.conditional(D(images[:2]), sentences[:2], boxes[:2])
        assert torch.allclose(whole[:2], half, rtol=1e-4, atol=1e-5) == alone
    whole.sum().backward()  # every weight has a part in the judgment
    assert [name for name, weight in D.named_parameters() if weight.grad is None] == []


@pytest.mark.parametrize("size", [16, 48, 100])
def test_other_sizes_are_refused(size: int) -> None:
    with pytest.raises(InputError, match=f"image_size is {size}"):
        dataclasses.replace(SMALL, image_size=size)


# --- boxes applied to maps


@pytest.mark.parametrize("size", [4, 16])
def test_maps_are_sampled_as_by_affine_grids(size: int) -> None:
    boxes, x = random_boxes(5).double(), torch.randn(5, 3, size, size, dtype=torch.float64)
    for inverse, points in ((False, points_inside), (True, points_around)):
        theta = torch.zeros(5, 2, 3, dtype=torch.float64)
        for row, (left, top, width, height) in enumerate(boxes.tolist()):
            for axis, (start, side) in enumerate(((left, width), (top, height))):
                shift = 2 * (start + side / 2 - 0.5)  # of the box's middle
                theta[row, axis, axis] = 1 / side if inverse else side
                theta[row, axis, 2] = -shift / side if inverse else shift
        grid = functional.affine_grid(theta, [5, 3, size, size], align_corners=True)
        expected = functional.grid_sample(x, grid, "bilinear", "zeros", align_corners=True)
        torch.testing.assert_close(resampled(x, points(boxes, size)), expected)


@pytest.mark.parametrize("points", [points_inside, points_around])
def test_the_whole_picture_as_a_box_changes_nothing(points: Any) -> None:
    x = torch.randn(2, 3, 8, 8)
    whole = torch.tensor([[0.0, 0.0, 1.0, 1.0]]).expand(2, 4)
    torch.testing.assert_close(resampled(x, points(whole, 8)), x)


def test_a_map_is_shrunk_into_its_box_with_x_to_the_right() -> None:
    """Brute force: the cells whose middle is in the box, of which -1 and 1 are at the edges."""
    size, box = 16, torch.tensor([BOX])
    inside = covered(points_around(box, size))[0, 0] >= 1
    middles = np.linspace(0, 1, size)
    x, y, width, height = BOX
    columns = (middles >= x) & (middles <= x + width)
    rows = (middles >= y) & (middles <= y + height)
    assert (inside.numpy() == rows[:, None] & columns).all()
    # and the crop of a map that is shrunk into the box is the map
    smooth = torch.linspace(0, 1, size) + torch.linspace(0, 2, size)[:, None] + 1
    shrunk = resampled(smooth.expand(1, 1, -1, -1), points_around(box, size))
    again = resampled(shrunk, points_inside(box, size))[0, 0]
    torch.testing.assert_close(again[4:-4, 4:-4], smooth[4:-4, 4:-4], atol=0.25, rtol=0)


def test_gradients_flow_through_maps_and_boxes() -> None:
    x = torch.randn(2, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    boxes = random_boxes(2).double()
    assert torch.autograd.gradcheck(lambda y: resampled(y, points_inside(boxes, 4)), x)
    assert torch.autograd.gradcheck(lambda y: resampled(y, points_around(boxes, 4)), x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_maps_are_sampled_in_float32(dtype: torch.dtype) -> None:
    x, points = torch.randn(2, 3, 8, 8), points_inside(random_boxes(2), 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = resampled(x.to(dtype), points)
    assert found.dtype == dtype
    assert torch.equal(found, resampled(x.to(dtype).float(), points).to(dtype))


def test_the_local_path_draws_only_in_the_box(model: Gawwn) -> None:
    """With the same place of the text, what the local path draws is 0 far from the box."""
    seen = {}
    model.G.joint.register_forward_pre_hook(lambda _, given: seen.update(x=given[0]))
    model.render(*inputs(model, BOX))
    whole, local = seen["x"].chunk(2, dim=1)
    assert whole.abs().sum() > 0
    middles = np.linspace(0, 1, 8)
    x, y, width, height = BOX
    apart = 1 / 7 * max(width, height) + 1e-6  # a cell of the shrunk map beside the box
    columns = (middles < x - apart) | (middles > x + width + apart)
    rows = (middles < y - apart) | (middles > y + height + apart)
    outside = torch.from_numpy(rows[:, None] | columns)
    assert (local[..., outside] == 0).all()
    assert local[..., ~outside].abs().sum() > 0


def inputs(model: Gawwn, *boxes: Any) -> tuple[Tensor, ...]:
    given = model.encode(["a red bird"] * len(boxes))
    return given.tokens, given.lengths, *model.noise(3, [0] * len(boxes), boxes=boxes)


def test_discriminators_see_what_is_in_the_box() -> None:
    """What changes far outside the box changes only what the global path says."""
    discriminator = GawwnBoxDiscriminator(dataclasses.replace(SMALL, image_size=128)).eval()
    local = []
    discriminator.local.register_forward_pre_hook(lambda _, given: local.append(given[0]))
    image, sentence, box = torch.randn(1, 3, 128, 128), torch.randn(1, 16), torch.tensor([BOX])
    changed = image.clone()
    changed[:, :, :40, 80:] = 0
    logits = [
        discriminator.conditional(discriminator(each), sentence, box) for each in (image, changed)
    ]
    assert torch.equal(*local)
    assert not torch.equal(*logits)
    other = torch.tensor([OTHER])
    assert not torch.equal(
        discriminator.conditional(discriminator(image), sentence, other), logits[0]
    )


# --- what an image depends on


def test_boxes_are_drawn_by_seed_and_index_among_the_kept_ones(model: Gawwn) -> None:
    z, boxes = model.noise(5, range(3_000))
    kept = {tuple(row) for row in model.boxes.tolist()}
    found = [tuple(row) for row in boxes.tolist()]
    assert set(found) == kept
    counts = np.array([found.count(box) for box in kept])
    assert counts.min() > 75 * 0.5
    assert counts.max() < 75 * 1.6
    assert torch.equal(model.noise([5, 6], [7, 8])[1][0], boxes[7])
    assert torch.equal(model.noise(5, range(10), psi=0.25)[0], 0.25 * z[:10])
    assert torch.equal(model.noise(5, range(10), psi=0.0)[1], boxes[:10])
    assert abs(np.corrcoef(z[:, 0].numpy(), boxes[:, 0].numpy())[0, 1]) < 0.1


def test_a_given_box_changes_nothing_but_the_box(model: Gawwn) -> None:
    z, drawn = model.noise(1, [0, 1, 2])
    same, boxes = model.noise(1, [0, 1, 2], boxes=[None, BOX, None])
    assert torch.equal(z, same)
    assert torch.equal(boxes[[0, 2]], drawn[[0, 2]])
    assert tuple(boxes[1].tolist()) == BOX
    assert torch.equal(model.noise(1, [1])[1][0], drawn[1])  # the kept ones stay as they are


@pytest.mark.parametrize("box", [(0.5, 0.5, 0.6, 0.1), (0, 0, 0, 1), (float("nan"), 0, 1, 1)])
def test_what_is_no_box_is_refused(model: Gawwn, box: Any) -> None:
    with pytest.raises(InputError, match=r"box: found \[.*expected \[x, y, width, height\]"):
        model.noise(0, [0], boxes=[box])
    arguments = inputs(model, BOX)
    arguments[3].copy_(torch.tensor(box))
    for render in (model.render, fuse(model).render):
        with pytest.raises(InputError, match="box: found "):
            render(*arguments)


def test_a_file_may_have_the_kept_boxes_in_float16(model: Gawwn, tmp_path: Path) -> None:
    model.boxes[:20] = torch.tensor([0.99, 0.3, 0.01, 0.7])  # at two edges
    model.save_pretrained(tmp_path, torch.float16)
    loaded = Gawwn.from_pretrained(tmp_path)
    for found, kept in zip(
        loaded.noise(5, range(90))[1], model.noise(5, range(90))[1], strict=True
    ):
        assert to_box(found.tolist()) == pytest.approx(kept.tolist(), abs=1e-3)
    fuse(loaded).sample(["a bird"] * 9, 5)


def test_there_is_a_box_for_each_image_or_none(model: Gawwn) -> None:
    for boxes in ([BOX], [None] * 3, []):
        with pytest.raises(InputError, match=f"{len(boxes)} boxes but 2 indices, expected one"):
            model.noise(0, [0, 1], boxes=boxes)


def test_a_damaged_kept_box_is_refused(model: Gawwn) -> None:
    model.boxes[7, 2] = 2.0
    with pytest.raises(InputError, match="weights boxes: row 7 is "):
        fuse(model)


def test_other_systems_take_no_box() -> None:
    config = GanIntClsConfig(image_size=16, generator_channels=2, **SIZES)
    other = GanIntCls(config, Vocabulary([END, *WORDS]))
    assert not config.places
    assert other.noise(0, [0], boxes=[None])[0].shape == (1, 6)
    request = Request(1, 0, "a red bird", 0, 0, BOX)
    with pytest.raises(InputError, match="a gan-int-cls model takes no box: it does not place"):
        next(Sampler(other).stream([request]))
    with pytest.raises(InputError, match="a gan-int-cls model takes no box"):
        walk(other, ["a bird"], 3, boxes=[BOX])


def images(sampler: Sampler, requests: list[Request], psi: float = 1.0) -> list[np.ndarray]:
    results = list(sampler.stream(requests, psi))
    assert all(isinstance(result, Result) for result in results)
    return [result.image for result in results]


def test_the_sampler_draws_where_requests_say(model: Gawwn) -> None:
    boxes = [None, BOX, OTHER, BOX]
    requests = [Request(n + 1, n, "a red bird", 2, n % 2, box) for n, box in enumerate(boxes)]
    found = images(Sampler(model, dtype=torch.float32), requests)
    expected = model.render(*inputs(model, *boxes)[:2], *model.noise(2, [0, 1, 0, 1], 1.0, boxes))
    for image, plain in zip(found, expected.numpy(), strict=True):
        assert np.abs(image.astype(int) - plain.astype(int)).max() <= 1
    assert (found[1] == found[3]).all()
    assert (found[0] != found[2]).any()
    alone = [images(Sampler(model, dtype=torch.float32), [each])[0] for each in requests]
    assert all((one == other).all() for one, other in zip(found, alone, strict=True))


def test_psi_moves_no_box(model: Gawwn) -> None:
    """With psi 0 there is no noise, and images with the same box are the same."""
    sampler = Sampler(model)
    requests = [Request(n + 1, n, "a red bird", 2, n, box) for n, box in enumerate((BOX, BOX))]
    first, second = images(sampler, requests, psi=0.0)
    assert (first == second).all()
    drawn = images(sampler, [dataclasses.replace(r, box=None) for r in requests], psi=0.0)
    assert (drawn[0] != drawn[1]).any()


# --- walks


def test_a_walk_goes_from_box_to_box(model: Gawwn) -> None:
    frames = walk(model, ["a red bird"], 5, seed=3, boxes=[BOX, OTHER])
    middle = tuple((np.array(BOX) + np.array(OTHER)) / 2)
    expected = model.render(*inputs(model, BOX, middle, OTHER)).numpy()
    for frame, image in zip(frames[[0, 2, 4]], expected, strict=True):
        assert np.abs(frame.astype(int) - image.astype(int)).max() <= 1
    assert (frames[0] != frames[4]).any()


def test_other_walks_stay_in_one_box(model: Gawwn) -> None:
    seen: list[Tensor] = []
    model.G.register_forward_pre_hook(lambda _, given: seen.append(given[1]))
    walk(model, ["a red bird"], 4, seed=3)
    walk(model, ["a red bird", "a blue bird"], 4, seed=3)
    walk(model, ["a red bird"], 4, seed=3, boxes=[BOX])
    drawn = model.noise(3, [0])[1]
    for box, expected in zip(seen, (drawn, drawn, torch.tensor([BOX])), strict=True):
        assert torch.equal(box, expected.expand(4, -1))
    with pytest.raises(InputError, match="between one or two boxes, found 3"):
        walk(model, ["a red bird"], 4, boxes=[BOX] * 3)
