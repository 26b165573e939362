"""Calls of the inference ops with random inputs, each with the expected result in float64."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from mirrorgan_fast.ops import (
    conv_add,
    conv_glu,
    conv_relu,
    glam_attention_mix,
    glam_stage,
    image_head,
    pack,
)


class Call(NamedTuple):
    """An op and its arguments except ``out``. The first argument is a map (N, C, H, W)."""

    op: Callable[..., Tensor]
    arguments: tuple[Any, ...]
    expected: Tensor
    """float64; for images, the gray levels before rounding."""

    def run(self, **options: Any) -> Tensor:
        """Call the op."""
        return self.op(*self.arguments, **options)

    def tensors(self) -> list[Tensor]:
        """Return the tensors among the arguments."""
        flat = [
            part
            for argument in self.arguments
            for part in (argument if isinstance(argument, list) else [argument])
        ]
        return [tensor for tensor in flat if isinstance(tensor, Tensor)]

    def to(self, device: str) -> "Call":
        """Return the same call on another device; the expected result is not moved."""

        def moved(argument: Any) -> Any:
            if isinstance(argument, list):
                return [moved(part) for part in argument]
            return argument.to(device) if isinstance(argument, Tensor) else argument

        return self._replace(arguments=tuple(moved(argument) for argument in self.arguments))

    def for_sample(self, n: int) -> "Call":
        """Return the same call for only one of the samples."""
        batch = len(self.arguments[0])
        per_sample = {
            "conv_glu": (0,),
            "conv_add": (0, 3),
            "conv_relu": (0, 3),
            "image_head": (0,),
            "glam_attention_mix": (0, 1, 2, 3),
            "glam_stage": (0, 1, 2, 3),
        }[self.op.__name__]
        arguments = list(self.arguments)
        for i in per_sample:
            if arguments[i] is not None:
                assert len(arguments[i]) == batch
                arguments[i] = arguments[i][n : n + 1]
        return Call(self.op, tuple(arguments), self.expected[n : n + 1])


class Shapes(NamedTuple):
    """The sizes of a call. An op uses the sizes that it has."""

    batch: int = 2
    channels: int = 5
    height: int = 4
    width: int = 6
    out_channels: int = 3
    words: int = 3
    blocks: int = 1
    side: int = 3  # of the kernel
    upsample: bool = False
    form: str = "authors"
    head: bool = False
    layout: str = "tiles"  # of packed weights
    image_channels: int = 3


WGMMA_CALLS = [
    (op, Shapes(batch, 64, height, width, out_channels, upsample=upsample, layout="rows"))
    for op, upsample, out_channels in (
        ("conv_glu", False, 64),
        ("conv_glu", True, 32),
        ("conv_add", False, 64),
    )
    for batch, height, width in (
        (1, 8, 8),
        (2, 9, 17),
        (3, 5, 3),
        (1, 1, 1),
        (2, 50, 33),
        (0, 8, 8),
    )
]
"""Convolutions with 64 channels, for which Hopper has wgmma kernels."""


class _Random:
    def __init__(self, dtype: torch.dtype, seed: int) -> None:
        self.dtype = dtype
        self.rng = torch.Generator().manual_seed(seed)

    def __call__(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        values = torch.randn(shape, generator=self.rng, dtype=torch.float64)
        return values.to(self.dtype if dtype is None else dtype)

    def map(self, *shape: int) -> Tensor:
        return self(*shape).contiguous(memory_format=torch.channels_last)

    def conv(self, out_channels: int, channels: int, side: int) -> tuple[Tensor, Tensor]:
        """Return a weight that keeps the scale of its input, and a bias."""
        weight = self(out_channels, channels, side, side, dtype=torch.float32)
        bias = self(out_channels, dtype=torch.float32)
        return weight / (channels * side * side) ** 0.5, bias * 0.3


def call(op: str, shapes: Shapes, dtype: torch.dtype, seed: int = 0) -> Call:
    """Return a call of the op with this name, with random inputs."""
    return _CALLS[op](shapes, _Random(dtype, seed))


def _convolved(x: Tensor, weight: Tensor, bias: Tensor, *, upsample: bool = False) -> Tensor:
    if upsample:
        x = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    return functional.conv2d(x, weight.double(), bias.double(), padding=weight.shape[2] // 2)


def _gated(y: Tensor) -> Tensor:
    values, gates = y.chunk(2, dim=1)
    return values / (1 + torch.exp(-gates))


def _conv_glu(s: Shapes, random: _Random) -> Call:
    x = random.map(s.batch, s.channels, s.height, s.width)
    weight, bias = random.conv(2 * s.out_channels, s.channels, 3 if s.upsample else s.side)
    options = {"upsample": s.upsample, "dtype": random.dtype, "layout": s.layout}
    packed = pack(weight, glu=True, **options)
    expected = _gated(_convolved(x.double(), weight, bias, upsample=s.upsample))
    return Call(conv_glu, (x, packed, bias), expected)


def _conv_add(s: Shapes, random: _Random) -> Call:
    x = random.map(s.batch, s.channels, s.height, s.width)
    weight, bias = random.conv(s.out_channels, s.channels, 3 if s.upsample else s.side)
    scale = 2 if s.upsample else 1
    residual = random.map(s.batch, s.out_channels, s.height * scale, s.width * scale)
    options = {"upsample": s.upsample, "dtype": random.dtype, "layout": s.layout}
    expected = _convolved(x.double(), weight, bias, upsample=s.upsample) + residual.double()
    return Call(conv_add, (x, pack(weight, glu=False, **options), bias, residual), expected)


def _conv_relu(s: Shapes, random: _Random) -> Call:
    x = random.map(s.batch, s.channels, s.height, s.width)
    weight, bias = random.conv(s.out_channels, s.channels, 3 if s.upsample else s.side)
    scale = 2 if s.upsample else 1
    residual = random.map(s.batch, s.out_channels, s.height * scale, s.width * scale)
    options = {"upsample": s.upsample, "dtype": random.dtype, "layout": s.layout}
    expected = _convolved(x.double(), weight, bias, upsample=s.upsample) + residual.double()
    packed = pack(weight, glu=False, **options)
    return Call(conv_relu, (x, packed, bias, residual), expected.clamp(min=0))


def _levels(y: Tensor) -> Tensor:
    return (1 + y.tanh()).permute(0, 2, 3, 1) * 127.5


def _image_head(s: Shapes, random: _Random) -> Call:
    x = random.map(s.batch, s.channels, s.height, s.width)
    weight, bias = random.conv(min(s.out_channels, 16), s.channels, 3)
    packed = pack(weight, glu=False, upsample=False, dtype=random.dtype, layout=s.layout)
    return Call(image_head, (x, packed, bias), _levels(_convolved(x.double(), weight, bias)))


def _attention(s: Shapes, random: _Random) -> tuple[tuple[Any, ...], Tensor]:
    """Return arguments of glam_attention_mix and the result of its formulas."""
    batch, channels = s.batch, s.channels
    features = random.map(batch, channels, s.height, s.width)
    words = random(batch, s.words, channels)
    mask = torch.rand((batch, s.words), generator=random.rng) > 0.3
    sentence = None if s.form == "words" else random(batch, channels)
    weight = random(channels, channels) / channels**0.5 if s.form == "authors" else None
    parts = 2 if sentence is None else 3
    mix = random(s.out_channels, parts * channels) / (parts * channels) ** 0.5

    f = features.double().flatten(2)  # (N, C, P)
    contexts = [f, torch.zeros_like(f)]
    for n in range(batch):
        keys = words[n, mask[n]].double()  # (T', C)
        if len(keys):
            contexts[1][n] = keys.T @ (keys @ f[n]).softmax(dim=0)
    if sentence is not None:
        v = sentence.double()[:, :, None]
        gate = f * v if weight is None else weight.double() @ (f * v)
        contexts.append(v * gate.softmax(dim=1))
    mixed = mix.double() @ torch.cat(contexts, dim=1)
    expected = mixed.unflatten(2, (s.height, s.width))
    return (features, words, mask, sentence, weight, mix), expected


def _glam_attention_mix(s: Shapes, random: _Random) -> Call:
    return Call(glam_attention_mix, *_attention(s, random))


def _glam_stage(s: Shapes, random: _Random) -> Call:
    attention, x = _attention(s, random)
    weights, biases = [], []

    def layer(out_channels: int, channels: int, *, glu: bool, upsample: bool) -> Any:
        weight, bias = random.conv(out_channels, channels, 3)
        options = {"upsample": upsample, "dtype": random.dtype, "layout": s.layout}
        weights.append(pack(weight, glu=glu, **options))
        biases.append(bias)
        return weight, bias

    for _ in range(s.blocks):
        hidden = _gated(
            _convolved(x, *layer(2 * s.out_channels, s.out_channels, glu=True, upsample=False))
        )
        x = x + _convolved(
            hidden, *layer(s.out_channels, s.out_channels, glu=False, upsample=False)
        )
    channels = attention[0].shape[1]
    up = layer(2 * channels, s.out_channels, glu=True, upsample=True)
    f = _gated(_convolved(x, *up, upsample=True))
    if not s.head:
        return Call(glam_stage, (*attention, weights, biases, None, None), f)
    weight, bias = random.conv(s.image_channels, channels, 3)
    packed = pack(weight, glu=False, upsample=False, dtype=random.dtype, layout=s.layout)
    arguments = (*attention, weights, biases, packed, bias)
    return Call(glam_stage, arguments, _levels(_convolved(f, weight, bias)))


_CALLS = {
    "conv_add": _conv_add,
    "conv_glu": _conv_glu,
    "conv_relu": _conv_relu,
    "glam_attention_mix": _glam_attention_mix,
    "glam_stage": _glam_stage,
    "image_head": _image_head,
}
OPS = sorted(_CALLS)
