"""Training of the judge of painted birds."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from mirrorgan_fast.data.examples import TrainingExamples
from mirrorgan_fast.data.image_folder import ImageFolder
from mirrorgan_fast.data.painted_birds.bird import ATTRIBUTES
from mirrorgan_fast.data.painted_birds.data_set import true_attributes
from mirrorgan_fast.models.attribute_classifier import INPUT_SIZE, AttributeClassifier
from mirrorgan_fast.pictures import to_signed
from mirrorgan_fast.training.precision import autocast
from mirrorgan_fast.training.run import Run
from mirrorgan_fast.vocabulary import Vocabulary


def train_attribute_classifier(
    images: ImageFolder,
    folder: Path,
    *,
    steps: int = 1200,
    batch_size: int = 64,
    learning_rate: float = 3e-3,
    seed: int = 0,
    precision: Literal["auto", "bf16", "fp32"] = "auto",
    device: torch.device,
    workers: int = 1,
    quiet: bool = False,
) -> AttributeClassifier:
    """Train the classifier on exported painted birds, and write it into ``folder``.

    Pictures are never flipped or moved, because direction and size are attributes, and only
    disturbed as far as every color keeps its name.

    Args:
        images: the training split of an exported folder, whose rows have "attributes".
        folder: gets checkpoints, curves and attributes.safetensors; goes on from the checkpoint
            there is.
        steps: of the optimizer.
        batch_size: pictures a step.
        learning_rate: at the start; falls to 0 in a straight line.
        seed: of the weights, the order and the disturbances.
        precision: see ``autocast``.
        device: to train on.
        workers: processes that read pictures.
        quiet: no progress bar.

    Raises:
        InputError: a row has no such attributes, or see ``Run``.
    """
    vocabulary = Vocabulary.build(c for i in range(len(images)) for c in images.captions(i))
    examples = TrainingExamples(images, vocabulary, INPUT_SIZE, seed=seed)
    settings = {
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "seed": seed,
        "data": examples.digest(),
    }
    run = Run(folder, steps, settings, quiet=quiet)
    truth = _as_numbers(true_attributes(images, range(len(images))))
    torch.manual_seed(seed)
    classifier = AttributeClassifier(ATTRIBUTES).to(device)
    optimizer = torch.optim.AdamW(classifier.parameters(), learning_rate)
    run.restore({"model": classifier, "optimizer": optimizer})
    with run:
        for step, _, batch in run.batches(examples, batch_size, seed, workers):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * (1 - step / steps)
            values = truth[batch["index"]].to(device)
            with autocast(device, precision):
                logits = classifier(_disturb(to_signed(batch["image"], device)))
            losses = [
                functional.cross_entropy(of_attribute.float(), values[:, i])
                for i, of_attribute in enumerate(logits.values())
            ]
            loss = torch.stack(losses).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found = torch.stack([of_attribute.argmax(dim=1) for of_attribute in logits.values()])
            run.log(step, {"loss": loss.detach(), "right": (values == found.T).float().mean()})
            if run.saving(step):
                state = {"model": classifier.state_dict(), "optimizer": optimizer.state_dict()}
                run.save(step, state)
    classifier.save_pretrained(folder)
    return classifier.eval()


def _disturb(images: Tensor) -> Tensor:
    """Blur, light, tint and noise, each image by its own amount.

    A color moves by a fifth of the way to the next one at most; the blur has a standard deviation
    of up to 0.8 pixels and the noise of up to 8 grey levels.
    """

    def amount(*shape: int) -> Tensor:
        return torch.rand(len(images), *shape, device=images.device)

    blurred = functional.avg_pool2d(images, 3, stride=1, padding=1, count_include_pad=False)
    images = torch.lerp(images, blurred, amount(1, 1, 1))
    gain = 1 + 0.08 * (2 * amount(1, 1, 1) - 1)
    shift = 0.06 * (2 * amount(1, 1, 1) - 1) + 0.03 * (2 * amount(3, 1, 1) - 1)
    noise = 0.06 * amount(1, 1, 1) * torch.randn_like(images)
    return (images * gain + shift + noise).clamp(-1, 1)


def _as_numbers(attributes: Sequence[Mapping[str, str]]) -> Tensor:
    """Return int64 (N, attributes): which of its values each attribute has."""
    return torch.tensor(
        [[values.index(of[name]) for name, values in ATTRIBUTES.items()] for of in attributes]
    )
