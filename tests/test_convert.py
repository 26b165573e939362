"""Published weights give the same results in our networks as in the authors', restated here."""

import itertools
import re
import shlex
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from mirrorgan_fast.cli.main import main
from mirrorgan_fast.convert import stackgan_discriminator, stackgan_generator
from mirrorgan_fast.errors import InputError
from mirrorgan_fast.models.config import StackGANConfig
from mirrorgan_fast.models.discriminator import Discriminator
from mirrorgan_fast.models.stackgan import StackGANGenerator
from mirrorgan_fast.pictures import read_picture
from mirrorgan_fast.sampling.journal import read_manifest
from mirrorgan_fast.training.stackgan import first_stage_of

GF, DF, CONDITION, TEXT, NOISE, BLOCKS = 8, 6, 5, 12, 7, 2
CONFIG = StackGANConfig(
    generator_channels=GF,
    discriminator_channels=DF,
    condition_size=CONDITION,
    embedding_size=TEXT,
    noise_size=NOISE,
    residual_blocks=BLOCKS,
)
Shapes = dict[str, tuple[int, ...]]


def norm(name: str, channels: int) -> Shapes:
    kinds = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.{kind}": (channels,) for kind in kinds} | {f"{name}.num_batches_tracked": ()}


def stage_1() -> Shapes:
    shapes: Shapes = {
        "ca_net.fc.weight": (2 * CONDITION, TEXT),
        "ca_net.fc.bias": (2 * CONDITION,),
        "fc.0.weight": (8 * GF * 16, NOISE + CONDITION),
        **norm("fc.1", 8 * GF * 16),
    }
    for i in range(4):
        channels = 8 * GF >> i
        shapes[f"upsample{i + 1}.1.weight"] = (channels // 2, channels, 3, 3)
        shapes |= norm(f"upsample{i + 1}.2", channels // 2)
    return shapes | {"img.0.weight": (3, GF // 2, 3, 3)}


def stage_2() -> Shapes:
    shapes: Shapes = {
        **{f"STAGE1_G.{name}": shape for name, shape in stage_1().items()},
        "ca_net.fc.weight": (2 * CONDITION, TEXT),
        "ca_net.fc.bias": (2 * CONDITION,),
        "encoder.0.weight": (GF, 3, 3, 3),
        "encoder.2.weight": (2 * GF, GF, 4, 4),
        **norm("encoder.3", 2 * GF),
        "encoder.5.weight": (4 * GF, 2 * GF, 4, 4),
        **norm("encoder.6", 4 * GF),
        "hr_joint.0.weight": (4 * GF, 4 * GF + CONDITION, 3, 3),
        **norm("hr_joint.1", 4 * GF),
    }
    for r in range(BLOCKS):
        for conv in (0, 3):
            shapes[f"residual.{r}.block.{conv}.weight"] = (4 * GF, 4 * GF, 3, 3)
            shapes |= norm(f"residual.{r}.block.{conv + 1}", 4 * GF)
    for i in range(4):
        channels = 4 * GF >> i
        shapes[f"upsample{i + 1}.1.weight"] = (channels // 2, channels, 3, 3)
        shapes |= norm(f"upsample{i + 1}.2", channels // 2)
    return shapes | {"img.0.weight": (3, GF // 4, 3, 3)}


def discriminator(second: bool) -> Shapes:
    shapes: Shapes = {"encode_img.0.weight": (DF, 3, 4, 4)}
    widths = [1, 2, 4, 8, *([16, 32, 16, 8] if second else [])]
    for i, (before, after) in enumerate(itertools.pairwise(widths)):
        side = 4 if after > before else 3
        shapes[f"encode_img.{2 + 3 * i}.weight"] = (after * DF, before * DF, side, side)
        shapes |= norm(f"encode_img.{3 + 3 * i}", after * DF)
    shapes["get_cond_logits.outlogits.0.weight"] = (8 * DF, 8 * DF + CONDITION, 3, 3)
    shapes |= norm("get_cond_logits.outlogits.1", 8 * DF)
    for head in ("get_cond_logits.outlogits.3", *(["get_uncond_logits.outlogits.0"] * second)):
        shapes |= {f"{head}.weight": (1, 8 * DF, 4, 4), f"{head}.bias": (1,)}
    return shapes


def weights(shapes: Shapes) -> dict[str, Tensor]:
    """Return random weights that keep the scale of what goes through them."""
    rng = torch.Generator().manual_seed(0)
    state = {}
    for name, shape in shapes.items():
        if not shape:
            state[name] = torch.tensor(3)
        elif name.endswith("running_var"):
            state[name] = torch.rand(shape, generator=rng) + 0.5
        elif len(shape) > 1:
            state[name] = torch.randn(shape, generator=rng) / (prod(shape[1:]) / 2) ** 0.5
        else:
            values = torch.randn(shape, generator=rng) * 0.3
            state[name] = values + 1 if name.endswith("weight") else values
    return {name: tensor.double() for name, tensor in state.items()}


class Authors:
    """The authors' networks, computed from their weights."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        self.state = state

    def norm(self, name: str, x: Tensor) -> Tensor:
        s = self.state
        statistics = (s[f"{name}.running_mean"], s[f"{name}.running_var"])
        return functional.batch_norm(x, *statistics, s[f"{name}.weight"], s[f"{name}.bias"])

    def conv(self, name: str, x: Tensor, stride: int = 1, padding: int = 1) -> Tensor:
        bias = self.state.get(f"{name}.bias")
        return functional.conv2d(x, self.state[f"{name}.weight"], bias, stride, padding)

    def condition(self, prefix: str, text: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        fc = (self.state[f"{prefix}ca_net.fc.weight"], self.state[f"{prefix}ca_net.fc.bias"])
        mu, log_var = functional.linear(text, *fc).relu().chunk(2, dim=1)
        return mu + (log_var / 2).exp() * eps, mu

    def upsampled(self, prefix: str, x: Tensor) -> Tensor:
        for i in range(1, 5):
            x = functional.interpolate(x, scale_factor=2.0, mode="nearest")
            x = self.norm(f"{prefix}upsample{i}.2", self.conv(f"{prefix}upsample{i}.1", x)).relu()
        return self.conv(f"{prefix}img.0", x).tanh()

    def first(self, prefix: str, z: Tensor, eps: Tensor, text: Tensor) -> Tensor:
        c, _ = self.condition(prefix, text, eps)
        x = functional.linear(torch.cat([z, c], dim=1), self.state[f"{prefix}fc.0.weight"])
        return self.upsampled(prefix, self.norm(f"{prefix}fc.1", x).relu().view(-1, 8 * GF, 4, 4))

    def second(self, image: Tensor, eps: Tensor, text: Tensor) -> Tensor:
        c, _ = self.condition("", text, eps)
        x = self.conv("encoder.0", image).relu()
        x = self.norm("encoder.3", self.conv("encoder.2", x, 2)).relu()
        x = self.norm("encoder.6", self.conv("encoder.5", x, 2)).relu()
        x = torch.cat([x, c[:, :, None, None].expand(-1, -1, 16, 16)], dim=1)
        x = self.norm("hr_joint.1", self.conv("hr_joint.0", x)).relu()
        for r in range(BLOCKS):
            y = self.norm(f"residual.{r}.block.1", self.conv(f"residual.{r}.block.0", x)).relu()
            y = self.norm(f"residual.{r}.block.4", self.conv(f"residual.{r}.block.3", y))
            x = (x + y).relu()
        return self.upsampled("", x)

    def judged(self, image: Tensor, mu: Tensor, second: bool) -> list[Tensor]:
        x = functional.leaky_relu(self.conv("encode_img.0", image, 2), 0.2)
        for i in range(7 if second else 3):
            x = self.conv(f"encode_img.{2 + 3 * i}", x, 2 if i < (5 if second else 3) else 1)
            x = functional.leaky_relu(self.norm(f"encode_img.{3 + 3 * i}", x), 0.2)
        heads = "get_cond_logits.outlogits", "get_uncond_logits.outlogits"
        both = torch.cat([x, mu[:, :, None, None].expand(-1, -1, 4, 4)], dim=1)
        y = self.norm(f"{heads[0]}.1", self.conv(f"{heads[0]}.0", both))
        logits = [self.conv(f"{heads[0]}.3", functional.leaky_relu(y, 0.2), 4, 0)]
        return [*logits, self.conv(f"{heads[1]}.0", x, 4, 0)] if second else logits


@torch.no_grad()
@pytest.mark.parametrize("stages", [1, 2])
def test_the_generator_makes_the_authors_images(stages: int) -> None:
    torch.manual_seed(1)
    state = weights(stage_1() if stages == 1 else stage_2())
    config = CONFIG if stages == 2 else first_stage_of(CONFIG)
    ours = StackGANGenerator(config).double().eval()
    ours.load_state_dict(stackgan_generator(state))
    z, text = torch.randn(2, NOISE).double(), torch.randn(2, TEXT).double()
    eps = torch.randn(2, stages * CONDITION).double()
    theirs = Authors(state)
    prefix = "" if stages == 1 else "STAGE1_G."
    expected = [theirs.first(prefix, z, eps[:, :CONDITION], text)]
    if stages == 2:
        expected.append(theirs.second(expected[0], eps[:, CONDITION:], text))
    words, mask = torch.zeros(2, 1, TEXT).double(), torch.ones(2, 1, dtype=torch.bool)
    for image, wanted in zip(ours(z, eps, words, mask, text).images, expected, strict=True):
        assert wanted.std() > 0.1
        torch.testing.assert_close(image, wanted, rtol=0, atol=1e-10)


@torch.no_grad()
@pytest.mark.parametrize("second", [False, True])
def test_the_discriminator_judges_as_the_authors(second: bool) -> None:
    torch.manual_seed(2)
    state, size = weights(discriminator(second)), 256 if second else 64
    ours = Discriminator(CONFIG, size, unconditional=second).double().eval()
    ours.load_state_dict(stackgan_discriminator(state))
    image = torch.rand(2, 3, size, size).double() * 2 - 1
    mu = torch.randn(2, CONDITION).double().relu()
    expected = [logit.flatten() for logit in Authors(state).judged(image, mu, second)]
    seen = ours(image)
    found = [ours.conditional(seen, mu), *([ours.unconditional(seen)] if second else [])]
    for logit, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(logit, wanted, rtol=0, atol=1e-10)


@torch.no_grad()
def test_the_page_makes_a_model_that_samples_as_the_authors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The code and the command on the page, with smaller networks."""
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parent.parent / "docs" / "systems.md").read_text(encoding="utf-8")
    section = page.partition("## StackGAN with text vectors\n")[2].partition("\n## ")[0]
    code, command = re.findall(r"```(?:python|sh)\n(.*?)```", section, re.DOTALL)
    for name, size in {"generator_channels=192": GF, "embedding_size=1024": TEXT}.items():
        assert name in code
        code = code.replace(name, f"{name.partition('=')[0]}={size}")
    sizes = f"condition_size={CONDITION}, noise_size={NOISE}, text="
    state = weights(stage_2())
    old = {k: v.float() for k, v in state.items() if not k.endswith("num_batches_tracked")}
    torch.save(old, "netG_epoch_90.pth")
    vectors = torch.randn(3, TEXT, generator=torch.Generator().manual_seed(4))
    np.save("vectors.npy", vectors.numpy())
    made: dict[str, Any] = {}
    exec(code.replace("text=", sizes), made)
    program, *arguments = shlex.split(command)
    assert (program, main([*arguments, "--quiet", "--dtype", "float32"])) == ("mirrorgan-fast", 0)

    noises = made["model"].noise(0, range(12))
    z, eps = (part.double() for part in noises)
    theirs, text = Authors(state), vectors.double().repeat_interleave(4, dim=0)
    first = theirs.first("STAGE1_G.", z, eps[:, :CONDITION], text)
    expected = 127.5 * (theirs.second(first, eps[:, CONDITION:], text) + 1).permute(0, 2, 3, 1)
    assert expected.std() > 10
    for row, wanted in zip(read_manifest(Path("out"), 99), expected.numpy(), strict=True):
        image = np.asarray(read_picture(Path("out") / row["file"], "test")).astype(float)
        assert np.abs(image - wanted).max() < 0.6  # rounded to whole gray levels
    rows = vectors.repeat_interleave(4, dim=0)
    rendered = made["model"].eval().render(rows, *noises)
    assert (rendered - expected).abs().max() < 0.6


def test_another_name_is_refused() -> None:
    with pytest.raises(InputError, match=r"weights 'conv7\.weight': this name is not one of"):
        stackgan_generator({"conv7.weight": torch.zeros(1)})
