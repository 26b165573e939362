"""The losses, as functions of logits and features; with variants where code and paper differ.

If several processes share a batch, the mean of their losses is the loss of the whole batch. Losses
that are more than a mean over equal parts take the processes as an argument. Everything is computed
in float32 or wider, also under autocast.
"""

import itertools
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from mirrorgan_fast.metrics.r_precision import sentence_similarity
from mirrorgan_fast.metrics.unchanged import rest_change
from mirrorgan_fast.models.discriminator import Logits
from mirrorgan_fast.ops import word_similarity
from mirrorgan_fast.ops.wide import wide
from mirrorgan_fast.processes import ALONE, Processes

Form = Literal["paper", "authors"]


class WrongPairs(NamedTuple):
    """Images of the data set with captions of others."""

    logits: Tensor
    """(N,), D_i's conditional logits for them."""
    is_wrong: Tensor
    """bool (N,); pairs that are of one class after all are left out."""


def discriminator_loss(
    real: Logits,  # (N,) each
    fake: Logits,  # (N,) each
    wrong: WrongPairs | None = None,
    processes: Processes = ALONE,
) -> Tensor:
    """Return L_Di, the loss of a discriminator.

    Without wrong pairs, the paper's (eq. 9): half the binary cross-entropy of each of real, fake,
    real with its sentence and fake with its sentence. With them, that of the authors' code:
    (real + cond_real) / 2 + (fake + cond_fake + cond_wrong) / 3.

    Args:
        real: D_i's logits for images of the data set and for them with their captions.
        fake: those for I_i, detached from the generator.
        wrong: those for images of the data set with captions of others.
        processes: that share the batch.
    """
    real_loss, real_pair = _bce(real.unconditional, 1.0), _bce(real.conditional, 1.0)
    fake_loss, fake_pair = _bce(fake.unconditional, 0.0), _bce(fake.conditional, 0.0)
    if wrong is None:
        return (real_loss + real_pair + fake_loss + fake_pair) / 2
    wrong_pair = _wrong_pair_loss(wrong, processes)
    return (real_loss + real_pair) / 2 + (fake_loss + fake_pair + wrong_pair) / 3


def stackgan_v2_discriminator_loss(
    real: Logits,  # (N,) each
    fake: Logits,  # (N,) each
    wrong: WrongPairs | None = None,
    processes: Processes = ALONE,
) -> Tensor:
    """Return L_Di of StackGAN++, whose terms have no factors. The arguments are as above.

    Without wrong pairs, the paper's: real, fake, real with its sentence, fake with its sentence.
    With them, that of the authors' code, where the pairs are made of further images of the data
    set: those are to be found real, and wrong with their sentences. Here they are the same images
    with other sentences, so that the real images count twice.
    """
    real_loss, real_pair = _bce(real.unconditional, 1.0), _bce(real.conditional, 1.0)
    fake_loss, fake_pair = _bce(fake.unconditional, 0.0), _bce(fake.conditional, 0.0)
    loss = real_loss + real_pair + fake_loss + fake_pair
    return loss if wrong is None else loss + _wrong_pair_loss(wrong, processes) + real_loss


def hinge_discriminator_loss(
    real: Tensor,  # (N, K)
    fake: Tensor,  # (N, K)
    wrong: WrongPairs,
    processes: Processes = ALONE,
) -> Tensor:
    """Return the hinge loss of a discriminator that judges pairs of an image and a caption.

    max(0, 1 - real) + (max(0, 1 + fake) + max(0, 1 + wrong)) / 2, each in the mean over images and
    places (Lim and Ye, "Geometric GAN", 2017; Reed et al., 2016, for the wrong pairs).

    Args:
        real: logits for images of the data set with their captions.
        fake: those for generated images, detached from the generator.
        wrong: those for images of the data set with captions of others, (N, K).
        processes: that share the batch.
    """
    logits = functional.relu(1 + wide(wrong.logits)).mean(dim=1)
    wrong_pair = _mean_of_wrong(logits, wrong.is_wrong, processes)
    real_pair = functional.relu(1 - wide(real)).mean()
    return real_pair + (functional.relu(1 + wide(fake)).mean() + wrong_pair) / 2


def stages_alike_loss(images: Sequence[Tensor]) -> Tensor:
    """Return the squared distance of each stage's images to the last stage's, scaled down.

    It is the mean over pixels, summed over stages. Both images learn. 0 if there is one stage.

    Args:
        images: I_i of each stage, (N, 3, S_i, S_i).
    """
    total = torch.zeros((), device=images[0].device)
    for image in images[:-1]:
        scaled = functional.adaptive_avg_pool2d(wide(images[-1]), image.shape[2])
        total = total + (wide(image) - scaled).square().mean()
    return total


def edit_loss(images: Sequence[Tensor]) -> Tensor:
    """Return how much changes in images, besides what one word describes, if that word changes.

    It is the mean over stages and pairs of ``rest_change``, in units of [-1, 1]. Which pixels are
    the rest is decided for each pair and stage alone: those that change least.

    Args:
        images: I_i of each stage, (N, 3, S_i, S_i), where each two, 2k and 2k + 1, are of the same
            noise, and of captions that differ in one word.
    """
    losses = [rest_change(image[::2], image[1::2]).mean() for image in images]
    return torch.stack(losses).mean()


def difference_loss(
    fake: Sequence[Tensor],
    real: Sequence[Tensor],
    least: float,
    processes: Processes = ALONE,
) -> Tensor:
    """Return how much images of the same caption differ less than images of the data set.

    Without it, generators make the same image for all noises. It is max(0, least - d / d_real) in
    the mean over pairs, summed over maps, where d is the mean distance of the two images' maps of
    features, and d_real that of pairs of images of the data set.

    Args:
        fake: maps (N, C, H, W) of generated images, where each two, 2k and 2k + 1, are of one
            caption.
        real: maps of images of the data set, whatever their captions are.
        least: the least share of the distance of real images that is not punished.
        processes: that share the batch.
    """
    total = torch.zeros((), device=fake[0].device)
    for generated, wanted in zip(fake, real, strict=True):
        usual = processes.summed(_distance_of_pairs(wanted).mean()) / processes.count
        total = total + functional.relu(least - _distance_of_pairs(generated) / usual).mean()
    return total


def _distance_of_pairs(maps: Tensor) -> Tensor:
    """Return the mean absolute difference of each two maps, 2k and 2k + 1: (N, ...) to (N / 2,)."""
    pairs = wide(maps)
    distances: Tensor = (pairs[::2] - pairs[1::2]).abs().flatten(1).mean(dim=1)
    return distances


def matching_discriminator_loss(
    real: Tensor,  # (N,)
    fake: Tensor,  # (N,)
    wrong: WrongPairs | None = None,
    wrong_weight: float = 0.5,
    processes: Processes = ALONE,
) -> Tensor:
    """Return the loss of a matching-aware discriminator, which judges pairs alone.

    That is bce(real, 1) + c bce(wrong, 0) + (1 - c) bce(fake, 0), where c is ``wrong_weight``: that
    of GAN-INT-CLS (Reed et al., 2016, algorithm 1) and of StackGAN's first stage in the authors'
    code. Without wrong pairs c is 0: the equations 3 and 5 of StackGAN.

    Args:
        real: logits for images of the data set with their captions.
        fake: those for generated images, detached from the generator.
        wrong: those for images of the data set with captions of others.
        wrong_weight: from 0 to 1.
        processes: that share the batch.
    """
    loss = _bce(real, 1.0)
    if wrong is None:
        return loss + _bce(fake, 0.0)
    wrong_pair = _wrong_pair_loss(wrong, processes)
    return loss + wrong_weight * wrong_pair + (1 - wrong_weight) * _bce(fake, 0.0)


def r1_penalty(
    logits: Sequence[Tensor],  # (N,) each
    real: Tensor,  # (N, 3, S, S)
) -> Tensor:
    """Return R1: half the squared gradient of a discriminator's logits, averaged over real images.

    It keeps a discriminator from becoming too strong for a generator that is still learning
    (Mescheder et al., "Which Training Methods for GANs do actually Converge?", eq. 9, without its
    gamma). With batch norm, the gradient includes an image's effect on the logits of other images.

    Args:
        logits: computed from ``real``.
        real: images of the data set, which require a gradient.
    """
    (slope,) = torch.autograd.grad(torch.stack([*logits]).sum(), real, create_graph=True)
    return slope.square().sum(dim=(1, 2, 3)).mean() / 2


def generator_loss(
    fake: Logits,  # (N,) each
    form: Form = "paper",
) -> Tensor:
    """Return L_Gi: the cross-entropy of D_i taking generated images for real ones.

    ``paper`` (eq. 8): half of each term; ``authors``: their sum.
    """
    loss = _bce(fake.unconditional, 1.0) + _bce(fake.conditional, 1.0)
    return loss / 2 if form == "paper" else loss


def believed_loss(fake: Tensor) -> Tensor:
    """Return - E log D: the cross-entropy of taking images with these logits (N,) for real ones."""
    return _bce(fake, 1.0)


def saturating_loss(fake: Tensor) -> Tensor:
    """Return E log(1 - D) for the logits of generated images (StackGAN, eq. 4 and 6).

    It has the same minimum as ``believed_loss``, but nearly no gradient while D is sure.
    """
    return -functional.softplus(wide(fake)).mean()


def least_squares_loss(logits: Tensor, target: float) -> Tensor:
    """Return the mean of (logits - target)^2, with which CycleGAN's authors train (LSGAN).

    Args:
        logits: of any shape.
        target: 1 for images that are to be found real, 0 for others.
    """
    return (wide(logits) - target).square().mean()


def color_consistency_loss(images: Sequence[Tensor], form: Form = "paper") -> Tensor:
    """Return L_C: how much the colors of each stage's images differ from those of the stage before.

    StackGAN++, section 4.3: the squared distance of the mean colors, and five times that of the
    covariances of the colors, in the mean over images. Only the larger image of a pair learns.

    Args:
        images: I_i of each stage, (N, 3, S_i, S_i).
        form: ``paper``: the sums over colors and over pairs of colors; ``authors``: their means.
    """
    reduced = torch.sum if form == "paper" else torch.mean
    total = torch.zeros((), device=images[0].device)
    for smaller, larger in itertools.pairwise(images):
        mean, covariance = _color_statistics(larger)
        wanted_mean, wanted_covariance = _color_statistics(smaller.detach())
        total = total + reduced((mean - wanted_mean).square(), dim=1).mean()
        distance = reduced((covariance - wanted_covariance).square(), dim=(1, 2)).mean()
        total = total + 5 * distance
    return total


def _color_statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean color (N, 3) and the colors' covariance (N, 3, 3) of each image."""
    pixels = wide(images).flatten(2)
    mean = pixels.mean(dim=2, keepdim=True)
    centered = pixels - mean
    return mean[:, :, 0], centered @ centered.transpose(1, 2) / pixels.shape[2]


def stream_loss(
    logits: Tensor,  # (N, T, V)
    tokens: Tensor,  # (N, T)
    lengths: Tensor,  # (N,)
    form: Form = "paper",
    ends: bool = True,
    whole_lengths: Tensor | None = None,  # (M,)
    processes: Processes = ALONE,
) -> Tensor:
    """Return L_stream = - sum_t log p_t(T_t) over a caption's words and its end (eq. 7).

    ``paper``: the sum over a caption, averaged over the batch; ``authors``: the mean over all
    words of the batch.

    Args:
        logits: STREAM's predictions for each position.
        tokens: int64, padded with 0 (the end).
        lengths: int64, the words of each caption.
        form: the paper's loss or the authors'.
        ends: whether the end token after the words counts too, if it fits in T. In the authors'
            code it does not. Without it, a captioner does not learn where to stop.
        whole_lengths: the words of all captions of the batch, if these captions are one of several
            equal parts of it. The mean of the parts' losses is then the batch's loss.
        processes: that share the batch.
    """
    terms = functional.cross_entropy(wide(logits).flatten(0, 1), tokens.flatten(), reduction="none")
    places = torch.arange(tokens.shape[1], device=tokens.device)
    counted = (places < lengths[:, None] + ends).to(terms.dtype)
    total = (terms.view_as(counted) * counted).sum()
    if form == "paper":
        return total / len(tokens)
    whole_lengths = lengths if whole_lengths is None else whole_lengths
    count = processes.summed((whole_lengths + ends).clamp(max=len(places)).sum().to(terms.dtype))
    return total / count * processes.count * (len(whole_lengths) / len(lengths))


def kl_loss(mu: Tensor, log_var: Tensor) -> Tensor:
    """Return the mean of KL(N(mu, sigma^2) || N(0, 1)) over all elements (StackGAN, eq. 2)."""
    mu, log_var = wide(mu), wide(log_var)
    return 0.5 * (mu**2 + log_var.exp() - 1 - log_var).mean()


def damsm_loss(
    words: Tensor,  # (N, T, D)
    mask: Tensor,  # (N, T)
    sentences: Tensor,  # (N, D)
    regions: Tensor,  # (N, R, D)
    codes: Tensor,  # (N, D)
    labels: Tensor,  # (N,)
    *,
    gamma1: float = 4.0,
    gamma2: float = 5.0,
    gamma3: float = 10.0,
    processes: Processes = ALONE,
) -> Tensor:
    """Return L_DAMSM = L^w_1 + L^w_2 + L^s_1 + L^s_2 (AttnGAN, eq. 11 to 13).

    Each image must be matched with its caption among the captions of the batch, and each caption
    with its image, by words and by sentence. Other images of the same class (equal ``labels``) are
    not candidates. The candidates are those of the whole batch, also if processes share it.
    """
    words, mask = processes.gathered(words), processes.gathered(mask.int()).bool()
    sentences, labels = processes.gathered(sentences), processes.gathered(labels)
    same_class = labels[:, None] == labels
    excluded = same_class & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    target = torch.arange(len(labels), device=labels.device)
    own_target = processes.own(target)
    total = torch.zeros((), device=labels.device)
    for similarity in (
        word_similarity(words, mask, regions, gamma1=gamma1, gamma2=gamma2),
        sentence_similarity(sentences, codes),
    ):
        # of this process's images and all captions: what the other images have is gathered
        whole = processes.gathered(gamma3 * similarity).masked_fill(excluded, -torch.inf)
        total = total + functional.cross_entropy(processes.own(whole), own_target)
        total = total + functional.cross_entropy(processes.own(whole.T), own_target)
    return total


def _wrong_pair_loss(wrong: WrongPairs, processes: Processes) -> Tensor:
    """Return the cross-entropy of taking wrong pairs for wrong, in the mean over those that are."""
    return _mean_of_wrong(functional.softplus(wide(wrong.logits)), wrong.is_wrong, processes)


def _mean_of_wrong(losses: Tensor, is_wrong: Tensor, processes: Processes) -> Tensor:
    """Return the mean of losses (N,) over the pairs of the whole batch that are wrong."""
    weights = is_wrong.to(losses.dtype)
    count = processes.summed(weights.sum()).clamp(min=1)
    return (losses * weights).sum() / count * processes.count


def _bce(logits: Tensor, target: float) -> Tensor:
    # In softplus form: autocast forbids the cross-entropy of probabilities, which also underflows.
    return functional.softplus(wide(logits) * (1 - 2 * target)).mean()
