"""The renderer: it is remade when the model's weights change, and never changes them."""

import copy
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from mirrorgan_fast.errors import InputError
from mirrorgan_fast.inference.renderer import Renderer, fuse
from mirrorgan_fast.models.mirrorgan import MirrorGAN
from tests.small import small_model

CAPTIONS = ["a red bird", "a blue bird with green wings"]


def other_model(model: MirrorGAN) -> MirrorGAN:
    """Return a model of the same sizes, with other weights and running variances."""
    torch.manual_seed(7)
    other = MirrorGAN(model.config, model.vocabulary)
    with torch.no_grad():
        for name, buffer in other.named_buffers():
            if name.endswith("running_var"):
                buffer.uniform_(0.5, 2)
    return other.eval()


def other_weights(model: MirrorGAN) -> dict[str, torch.Tensor]:
    return other_model(model).state_dict()


def assign(model: MirrorGAN) -> None:
    state = other_weights(model)
    model.load_state_dict({name: tensor.clone() for name, tensor in state.items()}, assign=True)


def write_in_place(model: MirrorGAN) -> None:
    with torch.no_grad():
        for name, tensor in other_weights(model).items():
            model.state_dict()[name].copy_(tensor)


def train_a_step(model: MirrorGAN) -> None:
    optimizer = torch.optim.SGD(model.glam.parameters(), 0.1)
    encoded, (z, eps) = model.encode(CAPTIONS), model.noise(0, [0, 1])
    model.glam.train()
    model(encoded.tokens, encoded.lengths, z, eps).images[-1].square().sum().backward()
    optimizer.step()
    model.glam.eval()


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.load_state_dict(other_weights(model)),
        assign,
        write_in_place,
        train_a_step,
        lambda model: model.half().float(),
        lambda model: setattr(model, "glam", other_model(model).glam),
        lambda model: setattr(model.glam, "F", other_model(model).glam.F),
    ],
    ids=["load_state_dict", "assign", "in place", "step", "half", "generator", "transformers"],
)
def test_it_uses_the_changed_weights_of_its_model(change: Callable[[MirrorGAN], object]) -> None:
    model = small_model()
    renderer = fuse(model, torch.float32)
    before = renderer.sample(CAPTIONS)
    change(model)
    expected = fuse(model, torch.float32).sample(CAPTIONS)
    assert renderer.sample(CAPTIONS) == expected
    assert before != expected


def test_it_is_not_remade_without_need(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model()
    renderer = fuse(model)
    expected = renderer.sample(CAPTIONS)

    def fail(self: Renderer) -> None:
        raise AssertionError("remade")

    monkeypatch.setattr(Renderer, "_make", fail)
    model.train()
    model.sample(CAPTIONS)
    assert renderer.sample(CAPTIONS) == expected


def test_weights_that_became_nan_are_refused() -> None:
    model = small_model()
    renderer = fuse(model)
    with torch.no_grad():
        model.glam.G[0][0].weight[0, 0, 0, 0] = torch.nan
    with pytest.raises(InputError, match=r"weights glam\.G\.0\.0\.weight: found NaN"):
        renderer.sample(CAPTIONS)


def test_rendering_does_not_change_the_model(tmp_path: Path) -> None:
    """A fused model was once a module that shared parameters: its half() changed the model."""
    model = small_model()
    before = copy.deepcopy(model.state_dict())
    fuse(model, torch.bfloat16).sample(CAPTIONS)
    model.save_pretrained(tmp_path)
    for state in (model.state_dict(), MirrorGAN.from_pretrained(tmp_path).state_dict()):
        for name, tensor in before.items():
            assert state[name].dtype == tensor.dtype, name
            assert torch.equal(state[name], tensor), name


def test_four_threads_sample_from_a_model_in_training() -> None:
    model = small_model()
    expected = [np.asarray(image) for image in model.sample(CAPTIONS)]
    model.train()
    before = copy.deepcopy(model.state_dict())
    wrong: list[str] = []

    def work() -> None:
        for _ in range(20):
            images = [np.asarray(image) for image in model.sample(CAPTIONS)]
            if not all(map(np.array_equal, images, expected)):
                wrong.append("image")
            if not all(module.training for module in model.modules()):
                wrong.append("mode")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
