"""Each loss against its formula, by probabilities and loops in float64, and what must not count."""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from mirrorgan_fast.models.config import MirrorGANConfig
from mirrorgan_fast.models.damsm import DAMSMImageEncoder
from mirrorgan_fast.models.discriminator import Discriminator, Logits
from mirrorgan_fast.models.glam import GLAM
from mirrorgan_fast.models.stem import STEM, word_mask
from mirrorgan_fast.models.stream import STREAM
from mirrorgan_fast.ops import word_similarity
from mirrorgan_fast.training.objectives import (
    WrongPairs,
    believed_loss,
    color_consistency_loss,
    damsm_loss,
    discriminator_loss,
    generator_loss,
    kl_loss,
    matching_discriminator_loss,
    r1_penalty,
    saturating_loss,
    stackgan_v2_discriminator_loss,
    stream_loss,
)

Match = Callable[[Tensor, Tensor], None]

CONFIG = MirrorGANConfig(
    image_size=16,
    stages=2,
    generator_channels=4,
    discriminator_channels=4,
    residual_blocks=1,
    noise_size=6,
    condition_size=5,
    embedding_size=8,
    word_embedding_size=7,
    caption_length=6,
    text_dropout=0.0,
    image_encoder="small",
    stream_encoder="small",
    stream_hidden_size=9,
)
VOCABULARY_SIZE = 11


class Judge:
    """A discriminator whose "images" (N, 2) are what it says of them, alone and with a sentence."""

    def __call__(self, image: Tensor) -> Tensor:
        return image

    def unconditional(self, features: Tensor) -> Tensor:
        return features[:, 0]

    def conditional(self, features: Tensor, sentence: Tensor) -> Tensor:
        return features[:, 1] * sentence[:, 0]

    def judge(self, features: Tensor, sentence: Tensor) -> Logits:
        return Logits(self.unconditional(features), self.conditional(features, sentence))


def surprise(logit: Tensor, *, real: bool) -> Tensor:
    """Return - log of the probability that the judgement gives to what is so."""
    probability = 1 / (1 + torch.exp(-logit.double()))
    return -torch.log(probability if real else 1 - probability)


def loss_of(
    judge: Any, real: Tensor, fake: Tensor, sentence: Tensor, labels: Tensor, form: str
) -> Tensor:
    """Return the discriminator's loss, as a training step has it."""
    features = judge(real)
    wrong = WrongPairs(
        judge.conditional(features, sentence.roll(1, dims=0)), labels != labels.roll(1)
    )
    return discriminator_loss(
        judge.judge(features, sentence),
        judge.judge(judge(fake), sentence),
        wrong if form == "authors" else None,
    )


@pytest.mark.parametrize(
    "labels", [[0, 1, 2, 3, 4], [7, 7, 1, 1, 7], [3, 3, 3, 3, 3], [5]], ids=str
)
@pytest.mark.parametrize("form", ["paper", "authors"])
def test_discriminator_loss(assert_matches: Match, labels: list[int], form: Any) -> None:
    torch.manual_seed(0)
    count = len(labels)
    real, fake, sentence = torch.randn(count, 2), torch.randn(count, 2), torch.randn(count, 1)
    actual = loss_of(Judge(), real, fake, sentence, torch.tensor(labels), form)

    alone_real, pair_real, alone_fake, pair_fake, wrong = ([] for _ in range(5))
    for n in range(count):
        alone_real.append(surprise(real[n, 0], real=True))
        alone_fake.append(surprise(fake[n, 0], real=False))
        pair_real.append(surprise(real[n, 1] * sentence[n, 0], real=True))
        pair_fake.append(surprise(fake[n, 1] * sentence[n, 0], real=False))
        if labels[n] != labels[n - 1]:  # a caption of another class
            wrong.append(surprise(real[n, 1] * sentence[n - 1, 0], real=False))
    means = [sum(terms) / count for terms in (alone_real, pair_real, alone_fake, pair_fake)]
    if form == "paper":
        expected = sum(means) / 2
    else:
        wrong_mean = sum(wrong) / len(wrong) if wrong else 0
        expected = (means[0] + means[1]) / 2 + (means[2] + means[3] + wrong_mean) / 3
    assert_matches(actual, expected)


def penalty_of(discriminator: Discriminator, real: Tensor, sentence: Tensor) -> Tensor:
    x = real.detach().requires_grad_()
    return r1_penalty(discriminator.judge(discriminator(x), sentence), x)


@pytest.mark.parametrize("batch", [1, 3])
def test_r1_is_the_slope_by_differences(batch: int) -> None:
    """In float64, and so is what it does to the discriminator's weights."""
    torch.manual_seed(0)
    config = dataclasses.replace(CONFIG, discriminator_norm="none")
    discriminator = Discriminator(config, 16).double()
    real = torch.rand(batch, 3, 16, 16, dtype=torch.float64) * 2 - 1
    sentence = torch.randn(batch, config.embedding_size, dtype=torch.float64)

    @torch.no_grad()
    def slope_by_differences() -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for index in itertools.product(range(batch), range(3), range(16), range(16)):
            logits = []
            for move in (1e-5, -1e-5):
                moved = real.clone()
                moved[index] += move
                features = discriminator(moved)
                logits.append(
                    discriminator.unconditional(features).sum()
                    + discriminator.conditional(features, sentence).sum()
                )
            total += ((logits[0] - logits[1]) / 2e-5) ** 2
        return total / batch / 2

    penalty = penalty_of(discriminator, real, sentence)
    torch.testing.assert_close(penalty, slope_by_differences(), rtol=1e-6, atol=0)
    assert not real.requires_grad

    penalty.backward()
    weight = discriminator.unconditional_logit.weight
    assert weight.grad is not None
    expected = weight.grad[0, 2, 1, 3].clone()
    penalties = []
    for move in (1e-4, -1e-4):
        with torch.no_grad():
            weight[0, 2, 1, 3] += move
        penalties.append(penalty_of(discriminator, real, sentence).detach())
        with torch.no_grad():
            weight[0, 2, 1, 3] -= move
    change = (penalties[0] - penalties[1]) / 2e-4
    torch.testing.assert_close(expected, change, rtol=1e-6, atol=0)


@pytest.mark.parametrize("labels", [[0, 1, 2, 3], [4, 4, 1, 1]], ids=str)
@pytest.mark.parametrize("form", ["paper", "authors"])
def test_stackgan_v2_discriminator_loss(
    assert_matches: Match, labels: list[int], form: Any
) -> None:
    torch.manual_seed(2)
    count, told = len(labels), torch.tensor(labels)
    real, fake = (Logits(torch.randn(count), torch.randn(count)) for _ in range(2))
    wrong = WrongPairs(torch.randn(count), told != told.roll(1))
    actual = stackgan_v2_discriminator_loss(real, fake, wrong if form == "authors" else None)

    def mean(logits: Tensor, *, real: bool) -> Tensor:
        return sum(surprise(logit, real=real) for logit in logits) / len(logits)

    expected = mean(real.unconditional, real=True) + mean(real.conditional, real=True)
    expected = expected + mean(fake.unconditional, real=False) + mean(fake.conditional, real=False)
    if form == "authors":  # the images of wrong pairs are real
        expected = expected + mean(wrong.logits[wrong.is_wrong], real=False)
        expected = expected + mean(real.unconditional, real=True)
    assert_matches(actual, expected)


@pytest.mark.parametrize("weight", [None, 0.0, 0.3, 0.5, 1.0])
def test_matching_discriminator_loss(assert_matches: Match, weight: float | None) -> None:
    torch.manual_seed(3)
    real, fake, other = torch.randn(3, 5)
    is_wrong = torch.tensor([True, False, True, True, False])
    terms = [
        [surprise(logit, real=True) for logit in real],
        [surprise(logit, real=False) for logit in fake],
        [surprise(other[n], real=False) for n in (0, 2, 3)],
    ]
    real_pair, fake_pair, wrong_pair = (sum(each) / len(each) for each in terms)
    if weight is None:
        actual, expected = matching_discriminator_loss(real, fake), real_pair + fake_pair
    else:
        actual = matching_discriminator_loss(real, fake, WrongPairs(other, is_wrong), weight)
        expected = real_pair + weight * wrong_pair + (1 - weight) * fake_pair
    assert_matches(actual, expected)


def test_losses_of_a_generator_that_is_judged_with_its_caption(assert_matches: Match) -> None:
    torch.manual_seed(4)
    fake = torch.randn(6)
    probability = 1 / (1 + torch.exp(-fake.double()))
    assert_matches(believed_loss(fake), -torch.log(probability).mean())
    assert_matches(saturating_loss(fake), torch.log(1 - probability).mean())


@pytest.mark.parametrize("form", ["paper", "authors"])
def test_color_consistency(assert_matches: Match, form: Any) -> None:
    torch.manual_seed(5)
    images = [torch.rand(3, 3, size, size) * 2 - 1 for size in (4, 8, 16)]
    images = [image.requires_grad_() for image in images]
    exact = [image.detach().double().requires_grad_() for image in images]
    expected = torch.zeros((), dtype=torch.float64)
    for smaller, larger in itertools.pairwise(exact):
        for n in range(3):
            statistics = []
            for image in (smaller[n].detach(), larger[n]):
                pixels = image.flatten(1)
                statistics.append((pixels.mean(1), torch.cov(pixels, correction=0)))
            (mean, covariance), (other_mean, other_covariance) = statistics
            colors = ((mean - other_mean) ** 2).sum() / (1 if form == "paper" else 3)
            pairs = ((covariance - other_covariance) ** 2).sum() / (1 if form == "paper" else 9)
            expected = expected + (colors + 5 * pairs) / 3
    actual = color_consistency_loss(images, form)
    assert_matches(actual, expected)
    gradients = torch.autograd.grad(actual, images, allow_unused=True)
    assert gradients[0] is None  # the smallest is only compared with
    for ours, theirs in zip(gradients[1:], torch.autograd.grad(expected, exact[1:]), strict=True):
        assert_matches(ours, theirs)


@pytest.mark.parametrize("form", ["paper", "authors"])
def test_generator_loss(assert_matches: Match, form: Any) -> None:
    torch.manual_seed(1)
    fake, sentence = torch.randn(5, 2), torch.randn(5, 1)
    terms = [
        surprise(fake[n, 0], real=True) + surprise(fake[n, 1] * sentence[n, 0], real=True)
        for n in range(5)
    ]
    expected = sum(terms) / 5 / (2 if form == "paper" else 1)
    assert_matches(generator_loss(Judge().judge(fake, sentence), form), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_certain_discriminator_still_teaches(dtype: torch.dtype) -> None:
    """Where the probability underflows, the loss is the logit and its gradient is not 0."""
    fake = torch.full((2, 2), -300.0, dtype=dtype, requires_grad=True)
    loss = generator_loss(Judge().judge(fake, torch.ones(2, 1, dtype=dtype)), "authors")
    assert loss.item() == 600
    loss.backward()
    assert torch.equal(fake.grad, torch.full_like(fake, -0.5))


@pytest.mark.parametrize("width", [6, 9])
@pytest.mark.parametrize("form", ["paper", "authors"])
def test_stream_loss(assert_matches: Match, form: Any, width: int) -> None:
    torch.manual_seed(2)
    lengths = [2, 6, 1, 5]
    logits = torch.randn(4, width, VOCABULARY_SIZE) * 3
    tokens = torch.randint(1, VOCABULARY_SIZE, (4, width))
    for n, length in enumerate(lengths):
        tokens[n, length:] = 0
    actual = stream_loss(logits, tokens, torch.tensor(lengths), form)

    terms = []
    for n, length in enumerate(lengths):
        for t in range(min(length + 1, width)):  # the words and the end, where there is room for it
            p = logits[n, t].double().exp()
            terms.append(-(p[tokens[n, t]] / p.sum()).log())
    assert_matches(actual, sum(terms) / (4 if form == "paper" else len(terms)))


@pytest.mark.parametrize("form", ["paper", "authors"])
def test_stream_loss_ignores_what_is_behind_the_end(form: Any) -> None:
    torch.manual_seed(3)
    lengths = torch.tensor([2, 4, 1])
    logits = torch.randn(3, 6, VOCABULARY_SIZE)
    tokens = torch.randint(1, VOCABULARY_SIZE, (3, 6)) * word_mask(lengths, 6)
    loss = stream_loss(logits, tokens, lengths, form)

    behind = ~word_mask(lengths + 1, 6)
    changed = logits.masked_fill(behind[:, :, None], 50.0)
    torch.testing.assert_close(stream_loss(changed, tokens, lengths, form), loss)
    wider = [nn.functional.pad(logits, (0, 0, 0, 3), value=5.0), nn.functional.pad(tokens, (0, 3))]
    torch.testing.assert_close(stream_loss(*wider, lengths, form), loss)


@pytest.mark.parametrize("form", ["paper", "authors"])
def test_the_end_counts_only_if_it_is_asked_for(form: Any) -> None:
    torch.manual_seed(2)
    lengths = [3, 1, 5]
    logits, tokens = torch.randn(3, 5, 7), torch.zeros(3, 5, dtype=torch.int64)
    for n, length in enumerate(lengths):
        tokens[n, :length] = torch.randint(1, 7, (length,))
    terms = -logits.double().log_softmax(dim=2).gather(2, tokens[..., None])[..., 0]
    for ends in (False, True):
        counted = [min(5, length + ends) for length in lengths]
        total = sum(terms[n, :count].sum() for n, count in enumerate(counted))
        expected = total / (3 if form == "paper" else sum(counted))
        found = stream_loss(logits, tokens, torch.tensor(lengths), form, ends)
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=0)


def test_kl_loss(assert_matches: Match) -> None:
    torch.manual_seed(4)
    mu, log_var = torch.randn(5, 7) * 2, torch.randn(5, 7) * 2
    sigma = (log_var.double() / 2).exp()
    divergence = kl_divergence(Normal(mu.double(), sigma), Normal(0.0, 1.0))
    assert_matches(kl_loss(mu, log_var), divergence.mean())
    assert kl_loss(torch.zeros(2, 3), torch.zeros(2, 3)) == 0


def matching_inputs(count: int, width: int) -> dict[str, Tensor]:
    lengths = torch.randint(1, width + 1, (count,))
    mask = word_mask(lengths, width)
    return {
        "words": torch.randn(count, width, 8) * mask[:, :, None],
        "mask": mask,
        "sentences": torch.randn(count, 8),
        "regions": torch.randn(count, 10, 8),
        "codes": torch.randn(count, 8),
    }


@pytest.mark.parametrize("gammas", [(4.0, 5.0, 10.0), (2.0, 1.5, 3.0)], ids=str)
@pytest.mark.parametrize("labels", [[0, 1, 2, 3], [6, 6, 1, 6], [8, 8, 8, 8], [4]], ids=str)
def test_damsm_loss(
    assert_matches: Match, labels: list[int], gammas: tuple[float, float, float]
) -> None:
    """AttnGAN, eq. 11 to 13; the word similarities have a test of their own."""
    torch.manual_seed(5)
    gamma1, gamma2, gamma3 = gammas
    count = len(labels)
    given = matching_inputs(count, 5)
    actual = damsm_loss(
        **given, labels=torch.tensor(labels), gamma1=gamma1, gamma2=gamma2, gamma3=gamma3
    )

    by_words = word_similarity(
        given["words"], given["mask"], given["regions"], gamma1=gamma1, gamma2=gamma2
    ).double()
    by_sentence = torch.empty(count, count, dtype=torch.float64)
    for n, m in itertools.product(range(count), repeat=2):
        a, b = given["codes"][n].double(), given["sentences"][m].double()
        by_sentence[n, m] = (a @ b) / (a @ a).sqrt() / (b @ b).sqrt()
    expected = torch.zeros((), dtype=torch.float64)
    for R in (by_words, by_sentence):
        for i in range(count):
            candidates = [j for j in range(count) if j == i or labels[j] != labels[i]]
            own = (gamma3 * R[i, i]).exp()
            of_caption = own / sum((gamma3 * R[i, j]).exp() for j in candidates)
            of_image = own / sum((gamma3 * R[j, i]).exp() for j in candidates)
            expected -= (of_caption.log() + of_image.log()) / count
    torch.testing.assert_close(actual.double(), expected, rtol=1e-4, atol=1e-5)


def test_the_usual_gammas() -> None:
    torch.manual_seed(6)
    given = matching_inputs(3, 5) | {"labels": torch.arange(3)}
    assert damsm_loss(**given) == damsm_loss(**given, gamma1=4.0, gamma2=5.0, gamma3=10.0)


def test_same_class_pairs_do_not_count() -> None:
    """An image's own caption is all it is asked to find among those of its class."""
    torch.manual_seed(7)
    given = matching_inputs(4, 5)
    assert damsm_loss(**given, labels=torch.zeros(4, dtype=torch.int64)) == pytest.approx(0)
    apart = damsm_loss(**given, labels=torch.arange(4))
    paired = damsm_loss(**given, labels=torch.tensor([0, 0, 1, 2]))
    assert paired < apart


def test_damsm_loss_ignores_padding() -> None:
    torch.manual_seed(8)
    given = matching_inputs(4, 5) | {"labels": torch.arange(4)}
    loss = damsm_loss(**given)
    wider = given | {
        "words": nn.functional.pad(given["words"], (0, 0, 0, 4), value=3.0),
        "mask": nn.functional.pad(given["mask"], (0, 4)),
    }
    torch.testing.assert_close(damsm_loss(**wider), loss)


@pytest.mark.parametrize("perfect", [True, False])
def test_damsm_loss_is_low_where_pairs_match(perfect: bool) -> None:
    torch.manual_seed(9)
    words = torch.randn(6, 4, 8) * 3
    given = {
        "words": words,
        "mask": torch.ones(6, 4, dtype=torch.bool),
        "sentences": torch.eye(6, 8),
        "regions": words if perfect else words.roll(1, dims=0),
        "codes": torch.eye(6, 8) if perfect else torch.eye(6, 8).roll(1, dims=0),
    }
    loss = damsm_loss(**given, labels=torch.arange(6))
    assert loss < 0.1 if perfect else loss > 10


# --- gradients ------------------------------------------------------------------------------------


def assert_all_learn(network: nn.Module) -> None:
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def batch(count: int = 4) -> tuple[Tensor, Tensor]:
    lengths = torch.tensor([6, 2, 1, 4])[:count]
    return torch.randint(1, VOCABULARY_SIZE, (count, 6)) * word_mask(lengths, 6), lengths


@pytest.mark.parametrize("form", ["paper", "authors"])
@pytest.mark.parametrize("image_size", [16, 64, 128])
def test_all_of_a_discriminator_learns(image_size: int, form: Any) -> None:
    torch.manual_seed(10)
    discriminator = Discriminator(CONFIG, image_size)
    real, fake = torch.rand(2, 4, 3, image_size, image_size) * 2 - 1
    loss = loss_of(discriminator, real, fake, torch.randn(4, 8), torch.tensor([0, 1, 1, 2]), form)
    loss.backward()
    assert_all_learn(discriminator)


def judged(config: MirrorGANConfig, size: int, image: Tensor) -> Logits:
    D = Discriminator(config, size)
    return D.judge(D(image), torch.randn(4, 8))


@pytest.mark.parametrize("attention", ["paper", "authors", "none"])
def test_all_of_glam_learns(attention: Any) -> None:
    torch.manual_seed(11)
    config = dataclasses.replace(CONFIG, sentence_attention=attention)
    glam = GLAM(config)
    _, lengths = batch()
    images, mu, log_var = glam(
        torch.randn(4, 6),
        torch.randn(4, 5),
        torch.randn(4, 6, 8),
        word_mask(lengths, 6),
        torch.randn(4, 8),
    )
    loss = kl_loss(mu, log_var)
    for image, size in zip(images, config.stage_sizes, strict=True):
        loss = loss + generator_loss(judged(config, size, image))
    loss.backward()
    assert_all_learn(glam)


def test_all_of_stem_and_the_image_encoder_learn() -> None:
    torch.manual_seed(12)
    stem, encoder = STEM(CONFIG, VOCABULARY_SIZE), DAMSMImageEncoder(CONFIG)
    tokens, lengths = batch()
    words, sentences = stem(tokens, lengths)
    regions, codes = encoder(torch.rand(4, 3, 16, 16) * 2 - 1)
    damsm_loss(words, word_mask(lengths, 6), sentences, regions, codes, torch.arange(4)).backward()
    assert_all_learn(stem)
    assert_all_learn(encoder)
    used = torch.zeros(VOCABULARY_SIZE, dtype=torch.bool)
    used[tokens[tokens > 0]] = True  # the end, which pads, is no word
    assert torch.equal(stem.embedding.weight.grad.any(dim=1), used)


@pytest.mark.parametrize("form", ["paper", "authors"])
def test_all_of_stream_learns(form: Any) -> None:
    torch.manual_seed(13)
    # In training the batch norm takes away what the bias before it adds.
    stream = STREAM(CONFIG, VOCABULARY_SIZE).eval()
    tokens, lengths = batch()
    logits = stream(torch.rand(4, 3, 16, 16) * 2 - 1, tokens)
    stream_loss(logits, tokens, lengths, form).backward()
    assert_all_learn(stream)


def test_frozen_networks_pass_gradients_to_the_image() -> None:
    torch.manual_seed(14)
    stream = STREAM(CONFIG, VOCABULARY_SIZE).eval().requires_grad_(False)
    encoder = DAMSMImageEncoder(CONFIG).eval().requires_grad_(False)
    tokens, lengths = batch()
    words, sentences = torch.randn(4, 6, 8), torch.randn(4, 8)
    image = (torch.rand(4, 3, 16, 16) * 2 - 1).requires_grad_()
    losses = (
        stream_loss(stream(image, tokens), tokens, lengths),
        damsm_loss(words, word_mask(lengths, 6), sentences, *encoder(image), torch.arange(4)),
    )
    for loss in losses:
        (gradient,) = torch.autograd.grad(loss, image)
        assert gradient.isfinite().all()
        assert gradient.flatten(1).any(dim=1).all()
