"""The model that is measured, its inputs, and its generator in plain PyTorch."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from mirrorgan_fast.models.layers import BatchNormActivation
from mirrorgan_fast.models.mirrorgan import MirrorGAN
from mirrorgan_fast.ops import use
from mirrorgan_fast.recipes import find_recipe
from mirrorgan_fast.vocabulary import END, Vocabulary


def model_of_cub() -> MirrorGAN:
    """Return the paper's MirrorGAN for birds, with batch norm statistics as after some training."""
    torch.manual_seed(0)
    # The image encoders are not measured, and the full ones take hundreds of megabytes
    config = replace(find_recipe("cub-paper").config, image_encoder="small", stream_encoder="small")
    model = MirrorGAN(config, Vocabulary([END, *(f"word{i}" for i in range(5449))])).eval()
    for module in model.glam.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | BatchNormActivation):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    return model


Inputs = tuple[Tensor, Tensor, Tensor, Tensor]
"""Tokens (N, T), lengths (N,), and the noises (N, noise) and (N, condition)."""


def inputs_of(model: MirrorGAN, batch: int, words: int) -> Inputs:
    """Return tokens, lengths and both noise tensors."""
    rng = torch.Generator().manual_seed(0)
    return (
        torch.randint(1, len(model.vocabulary), (batch, words), generator=rng),
        torch.full((batch,), words),
        torch.randn(batch, model.config.noise_size, generator=rng),
        torch.randn(batch, model.config.condition_size, generator=rng),
    )


def plain_call(batch: int, words: int) -> Callable[[], object]:
    """Return a call from tokens to gray levels, in float32, without any op of this package."""
    model = model_of_cub()
    inputs = inputs_of(model, batch, words)

    def call() -> object:
        with torch.no_grad(), use("reference"):
            return model.render(*inputs)

    return call
