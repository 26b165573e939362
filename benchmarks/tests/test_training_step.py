"""The training step that is measured runs, ours and in plain PyTorch, with the same parts."""

from dataclasses import replace

import torch

from benchmarks.test_training_step import least_work
from benchmarks.training_step import Ours, Plain
from mirrorgan_fast.recipes import Recipe, find_recipe
from tests.small import SMALL

BIRDS = find_recipe("birds-painted")


def test_the_steps_have_the_same_parts() -> None:
    recipe = Recipe(replace(SMALL, discriminator_norm="none"), BIRDS.settings)
    ours, plain = Ours(recipe, 2, "fp32"), Plain(recipe, 2, "fp32")
    before = [parameter.detach().clone() for parameter in plain.parameters()]

    parts, plain_parts = ours(), plain()

    assert parts.keys() == plain_parts.keys() >= {"step", "R1", "Adam", "EMA"}
    assert min(parts.values()) > 0
    changed = [not torch.equal(*pair) for pair in zip(before, plain.parameters(), strict=True)]
    assert all(changed)


def test_only_a_share_of_r1_is_counted() -> None:
    settings = replace(BIRDS.settings, gan=replace(BIRDS.settings.gan, r1_every=4))
    recipe = Recipe(replace(SMALL, discriminator_norm="none"), settings)
    step = Plain(recipe, 2, "fp32")
    assert least_work(step, "fp32").operations > 0
    parts = step()
    whole = sum(seconds for part, seconds in parts.items() if part != "step")
    assert abs(parts["step"] - (whole - parts["R1"] * 3 / 4)) < 1e-9
