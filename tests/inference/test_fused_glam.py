"""The fused generator: its images against the original generator, and its memory."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.reduction import ForkingPickler
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from mirrorgan_fast.errors import InputError
from mirrorgan_fast.inference.fused_glam import FusedGLAM
from mirrorgan_fast.inference.packing import fastest_dtype
from mirrorgan_fast.models.config import MirrorGANConfig
from mirrorgan_fast.models.glam import GLAM
from mirrorgan_fast.models.layers import BatchNormActivation
from mirrorgan_fast.ops import build_info, use
from mirrorgan_fast.pictures import to_uint8

SIZES: dict[str, dict[str, Any]] = {
    "whole tiles": {"generator_channels": 32, "residual_blocks": 2},
    "odd": {"generator_channels": 6, "residual_blocks": 1},
    "paper": {"generator_channels": 32, "sentence_attention": "paper"},
    "no sentence": {"generator_channels": 32, "sentence_attention": "none"},
    "one stage": {"generator_channels": 8, "stages": 1, "image_size": 16},
    "three stages": {"generator_channels": 32, "stages": 3, "image_size": 128},
}


def glam_of(sizes: dict[str, Any]) -> GLAM:
    torch.manual_seed(0)
    defaults = {"image_size": 64, "stages": 2, "condition_size": 10, "noise_size": 7}
    glam = GLAM(MirrorGANConfig(**defaults | {"embedding_size": 12} | sizes)).eval()
    for module in glam.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | BatchNormActivation):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
            module.bias.data.normal_(0, 0.3)
    return glam


def inputs_of(batch: int, words: int = 5, seed: int = 1) -> tuple[Tensor, ...]:
    rng = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=rng)

    mask = torch.arange(words) < torch.randint(1, words + 1, (batch, 1), generator=rng)
    return normal(batch, 7), normal(batch, 10), normal(batch, words, 12), mask, normal(batch, 12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("implementation", ["reference", "cpu"])
def test_images_match_the_original_generator(implementation, sizes, dtype):
    glam, inputs = glam_of(SIZES[sizes]), inputs_of(3)
    with torch.no_grad():
        images = glam(*inputs).images[-1]
        exact = (
            1
            + glam.double()(*(t.double() if t.is_floating_point() else t for t in inputs)).images[
                -1
            ]
        ) * 127.5
    fused = FusedGLAM(glam.float(), dtype)
    with use(implementation):
        actual = fused(*inputs)
    assert actual.shape == (3, *images.shape[2:], 3)
    assert actual.dtype == torch.uint8
    difference = (actual - exact.permute(0, 2, 3, 1)).abs()
    assert exact.std() > 20, "nearly gray images would match too easily"
    if dtype == torch.float32:
        assert difference.max() <= 0.51
    else:
        assert (actual.float() - to_uint8(images).float()).abs().mean() < 1
        assert difference.max() < 24


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_image_is_bit_identical_in_any_batch_with_any_threads(dtype):
    fused = FusedGLAM(glam_of(SIZES["three stages"]), dtype)
    inputs = inputs_of(19)
    together = fused(*inputs)
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            assert torch.equal(fused(*inputs), together)
    finally:
        torch.set_num_threads(before)
    for n in (0, 7, 18):
        assert torch.equal(fused(*(t[n : n + 1] for t in inputs)), together[n : n + 1])
    some = [18, 2, 3]
    assert torch.equal(fused(*(t[some] for t in inputs)), together[some])


def test_an_empty_batch_gives_no_images():
    fused = FusedGLAM(glam_of(SIZES["whole tiles"]))
    assert fused(*inputs_of(0)).shape == (0, 64, 64, 3)


def test_the_generator_is_not_changed_and_not_used_later():
    glam, inputs = glam_of(SIZES["whole tiles"]), inputs_of(2)
    before = copy.deepcopy(glam.state_dict())
    fused = FusedGLAM(glam)
    images = fused(*inputs)
    assert all(torch.equal(value, before[name]) for name, value in glam.state_dict().items())
    with torch.no_grad():
        for parameter in glam.parameters():
            parameter.zero_()
    assert torch.equal(fused(*inputs), images)


def test_one_can_train_on_the_images():
    """Tensors that are made in inference mode cannot be saved for a backward pass."""
    images = FusedGLAM(glam_of(SIZES["whole tiles"]))(*inputs_of(2))
    conv = torch.nn.Conv2d(3, 1, 3)
    conv(images.permute(0, 3, 1, 2).float()).sum().backward()
    assert conv.weight.grad.abs().sum() > 0


def test_memory_is_reused_and_does_not_grow():
    fused = FusedGLAM(glam_of(SIZES["three stages"]), torch.float32)  # its ops run one by one
    fused(*inputs_of(1))
    kept = fused.packed.memory.bytes()
    assert kept > 0
    for batch in (40, 3, 17):
        fused(*inputs_of(batch))
    assert fused.packed.memory.bytes() == kept


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_second_call_allocates_no_feature_map(batch, dtype):
    fused = FusedGLAM(glam_of(SIZES["three stages"]), dtype)
    inputs = inputs_of(batch)
    out = fused(*inputs)
    with torch.profiler.profile(profile_memory=True) as profile:
        fused(*inputs, out=out)
    allocated = [event.self_cpu_memory_usage for event in profile.events()]
    assert max(allocated) < 32 * 32 * 32 * dtype.itemsize


def test_threads_do_not_disturb_each_other():
    fused = FusedGLAM(glam_of(SIZES["three stages"]), torch.float32)  # its ops run one by one
    inputs = [inputs_of(batch, seed=batch) for batch in (1, 2, 3, 4)]
    expected = [fused(*given) for given in inputs]
    with ThreadPoolExecutor(len(inputs)) as pool:
        for _ in range(5):
            for images, wanted in zip(
                pool.map(lambda given: fused(*given), inputs), expected, strict=True
            ):
                assert torch.equal(images, wanted)


def test_tracing_with_fake_tensors_keeps_no_memory():
    fused = FusedGLAM(glam_of(SIZES["three stages"]), torch.float32)
    inputs = inputs_of(2)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fused(*(mode.from_tensor(given) for given in inputs))
    assert fused.packed.memory.bytes() == 0
    assert torch.equal(fused(*inputs), copy.deepcopy(fused)(*inputs))


def test_another_process_has_its_own_memory():
    fused = FusedGLAM(glam_of(SIZES["three stages"]), torch.float32)
    expected = fused(*inputs_of(2))
    sent = pickle.loads(ForkingPickler.dumps(fused))  # puts tensors in shared memory
    assert sent.packed.memory.bytes() == 0
    assert torch.equal(sent(*inputs_of(2)), expected)


def test_other_data_types_are_refused():
    with pytest.raises(InputError, match=r"dtype: found torch.float16, wanted torch.float32 or"):
        FusedGLAM(glam_of(SIZES["odd"]), torch.float16)


def test_bfloat16_is_the_default_where_the_processor_multiplies_it():
    built = build_info()
    fast = built is not None and built.instruction_set in ("amx", "avx512_bf16")
    assert fastest_dtype() == (torch.bfloat16 if fast else torch.float32)
    assert fastest_dtype("cuda") == torch.bfloat16
