"""Names of published weights in the networks of this package."""

import re
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from mirrorgan_fast.errors import InputError

_Rule = tuple[str, str | Callable[[re.Match[str]], str]]


def _up_block(match: re.Match[str]) -> str:
    # upsample2.1 is a convolution and upsample2.2 its batch norm
    return f"upsample.{int(match[1]) - 1}.{int(match[2]) - 1}."


def _of_d(match: re.Match[str]) -> str:
    # after the first convolution: convolution, batch norm and activation in turns, from 2 on
    place = int(match[1]) - 2
    return f"features.{2 + place // 3}.{place % 3}."


_STAGE_1: tuple[_Rule, ...] = (
    (r"ca_net\.fc\.", "augment.linear."),
    (r"fc\.0\.", "linear."),
    (r"fc\.1\.", "norm."),
    (r"upsample(\d)\.([12])\.", _up_block),
    (r"img\.0\.", "image.0."),
)
_ENCODER = {"0": 0, "2": 2, "3": 3, "5": 4, "6": 5}
_STAGE_2: tuple[_Rule, ...] = (
    (r"ca_net\.fc\.", "augment.linear."),
    (r"encoder\.([02356])\.", lambda match: f"encoder.{_ENCODER[match[1]]}."),
    (r"hr_joint\.([01])\.", lambda match: f"join.{match[1]}."),
    (
        r"residual\.(\d+)\.block\.([0134])\.",
        lambda match: f"residual.{match[1]}.block.{'0134'.index(match[2])}.",
    ),
    (r"upsample(\d)\.([12])\.", _up_block),
    (r"img\.0\.", "image.0."),
)
_D: tuple[_Rule, ...] = (
    (r"encode_img\.0\.", "features.0."),
    (r"encode_img\.(\d+)\.", _of_d),
    (r"get_cond_logits\.outlogits\.([01])\.", lambda match: f"joint.{match[1]}."),
    (r"get_cond_logits\.outlogits\.3\.", "conditional_logit."),
    (r"get_uncond_logits\.outlogits\.0\.", "unconditional_logit."),
)


def stackgan_generator(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return published weights of StackGAN's generator with the names of ``StackGANGenerator``.

    Args:
        state: a state dict of hanzhanggit/StackGAN-Pytorch, of the first stage, or of the second
            with the first inside (``STAGE1_G``). Batch norms may lack ``num_batches_tracked``.

    Raises:
        InputError: a name is unknown.
    """
    state = _with_counters(state)
    if not any(name.startswith("STAGE1_G.") for name in state):
        return {f"stage1.{_renamed(name, _STAGE_1)}": state[name] for name in state}
    renamed = {}
    for name, tensor in state.items():
        inner = name.removeprefix("STAGE1_G.")
        stage, rules = ("stage2", _STAGE_2) if inner == name else ("stage1", _STAGE_1)
        renamed[f"{stage}.{_renamed(inner, rules)}"] = tensor
    return renamed


def stackgan_discriminator(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return published weights of a discriminator of StackGAN with the names of ``Discriminator``.

    Args:
        state: a state dict of hanzhanggit/StackGAN-Pytorch, of either stage. Batch norms may lack
            ``num_batches_tracked``.

    Raises:
        InputError: a name is unknown.
    """
    return {_renamed(name, _D): tensor for name, tensor in _with_counters(state).items()}


def _with_counters(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict with a counter for each batch norm.

    Before version 0.4.1, PyTorch wrote none. Only batch norms without momentum use it.
    """
    counters = {
        name.removesuffix("running_mean") + "num_batches_tracked": torch.tensor(0)
        for name in state
        if name.endswith(".running_mean")
    }
    return {**counters, **state}


_RESNET: tuple[_Rule, ...] = (
    (r"model\.1\.", "first."),
    (r"model\.([47])\.", lambda match: f"down.{'47'.index(match[1])}."),
    (r"model\.(1\d)\.conv_block\.1\.", lambda match: f"blocks.{int(match[1]) - 10}.first."),
    (  # 6 if there is a dropout
        r"model\.(1\d)\.conv_block\.[56]\.",
        lambda match: f"blocks.{int(match[1]) - 10}.second.",
    ),
)
_PATCHES: tuple[_Rule, ...] = (
    (r"model\.0\.", "first."),
    (r"model\.([258])\.", lambda match: f"convolutions.{'258'.index(match[1])}."),
    (r"model\.11\.", "logit."),
)
_STATISTICS = (".running_mean", ".running_var", ".num_batches_tracked")


def cyclegan_generator(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return published weights of a generator of CycleGAN with the names of ``ResNetGenerator``.

    Args:
        state: a state dict of junyanz/pytorch-CycleGAN-and-pix2pix, of any number of residual
            blocks. Statistics of instance norms, which files from before PyTorch 0.4 have, are left
            out.

    Raises:
        InputError: a name is unknown.
    """
    blocks = {name.split(".")[1] for name in state if ".conv_block." in name}
    after = 10 + len(blocks)
    ends: tuple[_Rule, ...] = (
        (rf"model\.{after}\.", "up.0."),
        (rf"model\.{after + 3}\.", "up.1."),
        (rf"model\.{after + 7}\.", "last."),
    )
    return {
        _renamed(name, (*_RESNET, *ends), "CycleGAN"): tensor
        for name, tensor in state.items()
        if not name.endswith(_STATISTICS)
    }


def cyclegan_discriminator(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return published weights of CycleGAN's PatchGAN with the names of ``PatchDiscriminator``.

    Args:
        state: as for ``cyclegan_generator``.

    Raises:
        InputError: a name is unknown.
    """
    return {
        _renamed(name, _PATCHES, "CycleGAN"): tensor
        for name, tensor in state.items()
        if not name.endswith(_STATISTICS)
    }


def _renamed(name: str, rules: Sequence[_Rule], system: str = "StackGAN") -> str:
    """Return a name with its beginning replaced by the first rule that fits.

    Raises:
        InputError: none fits.
    """
    for pattern, replacement in rules:
        if re.match(pattern, name):
            return re.sub(f"^{pattern}", replacement, name)
    raise InputError(f"weights {name!r:.80}: this name is not one of {system}'s")
