"""The sampler: the same images as one at a time, in order, and smaller batches on little memory."""

import copy
import itertools
import logging
import pickle
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import Tensor

from mirrorgan_fast.errors import InputError, UnknownWordsWarning
from mirrorgan_fast.inference.renderer import fuse
from mirrorgan_fast.models.mirrorgan import MirrorGAN
from mirrorgan_fast.models.stem import word_mask
from mirrorgan_fast.sampling.captions import Refused, Request
from mirrorgan_fast.sampling.sampler import Result, Sampler


def one_by_one(model: MirrorGAN, texts: list[str], seed: int) -> list[np.ndarray]:
    fused = fuse(model)
    return [np.asarray(fused.sample([text], seed, [i])[0]) for i, text in enumerate(texts)]


@pytest.mark.parametrize("batch_size", [1, 2, 7, 64, "auto"])
def test_images_equal_those_made_one_at_a_time_in_order(
    batch_size: int, model: MirrorGAN, texts: list[str]
) -> None:
    results = list(Sampler(model, batch_size=batch_size)(texts, seed=9))
    assert [result.caption for result in results] == texts
    assert [(result.seed, result.index) for result in results] == [(9, i) for i in range(37)]
    expected = one_by_one(model, texts, 9)
    assert len({image.tobytes() for image in expected}) > 30
    for result, image in zip(results, expected, strict=True):
        assert np.array_equal(result.image, image)


def test_the_shipped_model_gives_bit_identical_images_in_any_order_and_batch() -> None:
    model = MirrorGAN.from_pretrained()
    texts = ["a bird", "this is a small red bird with a black crown, a long bill and grey wings"]
    requests = [Request(1, i, texts[i % 2], 4, i % 6) for i in range(12)]
    random.Random(0).shuffle(requests)
    for dtype in (torch.float32, torch.bfloat16):
        found: dict[tuple[str, int], bytes] = {}
        for batch_size in (1, 5, 12):
            for result in Sampler(model, dtype=dtype, batch_size=batch_size).stream(requests):
                assert isinstance(result, Result)
                bits = result.image.tobytes()
                assert found.setdefault((result.caption, result.index), bits) == bits
        assert len(set(found.values())) == 6


def test_several_images_of_each_caption(sampler: Sampler) -> None:
    results = list(sampler(["a red bird", "a blue bird"], per_caption=3))
    assert [result.index for result in results] == list(range(6))
    assert [result.caption for result in results] == ["a red bird"] * 3 + ["a blue bird"] * 3
    assert len({result.image.tobytes() for result in results}) == 6


def test_captions_are_read_only_a_few_batches_ahead(sampler: Sampler) -> None:
    read = 0

    def endless() -> Iterator[str]:
        nonlocal read
        while True:
            read += 1
            yield "a red bird"

    results = list(itertools.islice(sampler(endless()), 7))
    assert len(results) == 7
    assert read <= 5 + 4 * 5


def test_threads_may_share_a_sampler(sampler: Sampler, texts: list[str]) -> None:
    expected = [result.image.tobytes() for result in sampler(texts)]
    with ThreadPoolExecutor(4) as pool:
        runs = [pool.submit(lambda: list(sampler(texts))) for _ in range(12)]
    for run in runs:
        assert [result.image.tobytes() for result in run.result()] == expected


def test_results_name_known_and_unknown_words(sampler: Sampler) -> None:
    with pytest.warns(UnknownWordsWarning, match="skipped: purple") as told:  # one warning per call
        result, _ = sampler(["A purple bird, with red wings!", "a green bird"])
    assert [warning.filename for warning in told] == [__file__]
    assert result.words == ["a", "bird", "with", "red", "wings"]
    assert result.unknown == ["purple"]
    assert result.attention == []


def test_a_caption_without_a_known_word_raises_after_the_results_before_it(
    sampler: Sampler,
) -> None:
    results = sampler(["a bird", "zebra"])
    assert next(results).caption == "a bird"
    with pytest.raises(InputError, match=r"caption 2 has no word that the model knows \(zebra\)"):
        next(results)


def test_a_stream_continues_after_a_refusal_and_keeps_other_objects(sampler: Sampler) -> None:
    marker = object()
    asked = [Request(1, 0, "zebra", 0, 0), marker, Request(2, 1, "a bird", 0, 1), marker]
    refused, first_marker, result, second_marker = sampler.stream(asked)
    assert isinstance(refused, Refused)
    assert (refused.line, refused.text) == (1, "zebra")
    assert first_marker is second_marker is marker
    assert isinstance(result, Result)


def test_a_smaller_psi_reduces_the_noise(sampler: Sampler) -> None:
    texts = ["a red bird"] * 4
    images = {
        psi: np.stack([result.image for result in sampler(texts, psi=psi)]).astype(np.float64)
        for psi in (0.0, 0.3, 1.0)
    }
    spread = {psi: of_psi.std(axis=0).mean() for psi, of_psi in images.items()}
    assert spread[0.0] == 0 < spread[0.3] < spread[1.0]
    assert np.array_equal(images[1.0], [result.image for result in sampler(texts)])
    for psi in (-0.1, 1.1, float("nan")):
        with pytest.raises(InputError, match="expected 0 to 1"):
            next(sampler(texts, psi=psi))


def test_attention_matches_the_generator(model: MirrorGAN, sampler: Sampler) -> None:
    texts = ["a bird", "a red bird with blue wings"]
    results = list(sampler(texts, seed=2, attention=True))
    encoded = model.encode(texts)
    words, sentence = model.stem(encoded.tokens, encoded.lengths)
    mask = word_mask(encoded.lengths, encoded.tokens.shape[1])
    expected = model.glam.attention_maps(*model.noise(2, range(2)), words, mask, sentence)
    for i, result in enumerate(results):
        assert len(result.attention) == len(expected) == 1
        (found,) = result.attention
        assert found.shape == (len(result.words), 16, 16)
        np.testing.assert_allclose(found.sum(0), 1, rtol=1e-5)
        wanted = expected[0][i, : len(result.words)].detach().numpy()
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)


# --- short memory ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: not enough memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        RuntimeError("std::bad_alloc"),
    ],
)
def test_out_of_memory_halves_the_batch_and_says_so(
    error: Exception,
    model: MirrorGAN,
    texts: list[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    sampler = Sampler(model, batch_size=16)
    render = sampler.renderer.render

    def short(tokens: Tensor, *others: Tensor) -> Tensor:
        if len(tokens) > 3:
            raise error
        return render(tokens, *others)

    monkeypatch.setattr(sampler.renderer, "render", short)
    with caplog.at_level(logging.WARNING):
        results = list(sampler(texts))
    assert sampler.batch_size == 2
    for result, image in zip(results, one_by_one(model, texts, 0), strict=True):
        assert np.array_equal(result.image, image)
    assert [record.getMessage() for record in caplog.records] == [
        f"out of memory: continuing with batches of {size}" for size in (8, 4, 2)
    ]


@pytest.mark.parametrize(
    ("message", "raised", "told"),
    [
        ("CUDA out of memory", InputError, "out of memory with a single image"),
        ("a defect", RuntimeError, "a defect"),
    ],
)
def test_errors_that_a_smaller_batch_does_not_fix_are_raised(
    message: str,
    raised: type[Exception],
    told: str,
    sampler: Sampler,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(*inputs: Tensor) -> Tensor:
        error = torch.OutOfMemoryError if "memory" in message else RuntimeError
        raise error(message)

    monkeypatch.setattr(sampler.renderer, "render", fails)
    with pytest.raises(raised, match=told):
        next(sampler(["a bird"]))


@pytest.mark.parametrize(
    "arguments", [{"batch_size": 0}, {"batch_size": 2**63}, {"dtype": torch.float64}]
)
def test_bad_arguments_are_refused(arguments: dict[str, object], model: MirrorGAN) -> None:
    with pytest.raises(InputError, match=r"expected|wanted"):
        Sampler(model, **arguments)


def test_zero_images_per_caption_are_refused(sampler: Sampler) -> None:
    with pytest.raises(InputError, match="per_caption is 0"):
        next(sampler(["a bird"], per_caption=0))


def test_training_mode_does_not_change_the_attention(
    model: MirrorGAN,
) -> None:
    trained = copy.deepcopy(model)
    sampler = Sampler(trained)
    expected = next(sampler(["a bird"], attention=True)).attention
    trained.train()
    before = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    found = next(sampler(["a bird"], attention=True)).attention
    assert all(map(np.array_equal, found, expected))
    assert all(torch.equal(before[name], now) for name, now in trained.state_dict().items())
    assert trained.training


def test_a_copy_and_a_pickle_give_the_same_images(sampler: Sampler) -> None:
    expected = next(sampler(["a bird"])).image
    for other in (copy.deepcopy(sampler), pickle.loads(pickle.dumps(sampler))):
        assert np.array_equal(next(other(["a bird"])).image, expected)


@pytest.mark.parametrize("wrong", [5, ["a bird"], None])
def test_a_caption_of_another_type_is_named_by_its_position(
    sampler: Sampler, wrong: object
) -> None:
    kind = type(wrong).__name__
    with pytest.raises(InputError, match=f"caption 21 must be a string, found {kind}"):
        list(sampler(["a bird"] * 21 + [wrong]))


def test_a_string_is_not_read_as_a_list_of_letters(sampler: Sampler) -> None:
    with pytest.raises(InputError, match="one string"):
        next(sampler("a bird"))
