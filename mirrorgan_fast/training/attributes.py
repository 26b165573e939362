"""Training of the judge of painted birds."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from mirrorgan_fast.data.examples import TrainingExamples
from mirrorgan_fast.data.image_folder import ImageFolder
from mirrorgan_fast.data.painted_birds.bird import ATTRIBUTES
from mirrorgan_fast.data.painted_birds.data_set import true_attributes
from mirrorgan_fast.data.prepared_pictures import check_pictures
from mirrorgan_fast.models.attribute_classifier import INPUT_SIZE, AttributeClassifier
from mirrorgan_fast.ops.wide import wide
from mirrorgan_fast.pictures import to_signed
from mirrorgan_fast.processes import Processes
from mirrorgan_fast.training.batches import Batch, Batches
from mirrorgan_fast.training.checkpoint import digest
from mirrorgan_fast.training.computation import Computation
from mirrorgan_fast.training.execution import Execution
from mirrorgan_fast.training.learner import Learner
from mirrorgan_fast.training.loop import Part, fit
from mirrorgan_fast.training.precision import COMPUTED, Precision, fastest_precision
from mirrorgan_fast.training.run import VERSION, Run, Unsaid
from mirrorgan_fast.vocabulary import Vocabulary


class AttributesTraining:
    """Every attribute of a painted bird is read from its picture.

    Pictures are never flipped or moved, because direction and size are attributes. They are only
    disturbed as far as every color keeps its name.

    Args:
        attributes: int64 (examples, attributes), the number of each picture's value.
        steps: of the run; the learning rate falls to 0 in a straight line.
        learning_rate: at the start.
        computation: how a step computes.
    """

    def __init__(
        self,
        attributes: Tensor,
        steps: int,
        learning_rate: float,
        computation: Computation,
    ) -> None:
        self.attributes, self.steps, self.computation = attributes, steps, computation
        self.classifier = AttributeClassifier(ATTRIBUTES).to(computation.device)
        computation.share(self.classifier)
        self.learner = Learner(
            self.classifier, learning_rate, weight_decay=0.01, computation=computation
        )

    def parts(self) -> dict[str, Part]:
        """Return what a checkpoint holds."""
        return {"model": self.classifier, "optimizer": self.learner.adam}

    def learners(self) -> dict[str, Learner]:
        """Return the learners by their networks."""
        return {"the classifier": self.learner}

    def step(self, step: int, epoch: int, batch: Batch) -> dict[str, Tensor]:
        """Lower the cross-entropy of every attribute, summed over the attributes."""
        device, processes = self.computation.device, self.computation.processes
        values = self.attributes[batch["index"]].to(device)
        with self.computation.autocast():
            logits = self.classifier(_disturb(to_signed(batch["image"], device), processes))
        losses = [
            functional.cross_entropy(wide(attribute), values[:, i])
            for i, attribute in enumerate(logits.values())
        ]
        loss = torch.stack(losses).sum()
        self.learner.lower(loss, pace=1 - step / self.steps)
        found = torch.stack([attribute.argmax(dim=1) for attribute in logits.values()])
        return {"loss": loss.detach(), "right": (values == found.T).float().mean()}


def train_attribute_classifier(
    images: ImageFolder,
    folder: Path,
    execution: Execution,
    *,
    steps: int = 1200,
    batch_size: int = 64,
    learning_rate: float = 3e-3,
    seed: int = 0,
    precision: Precision = "auto",
) -> AttributeClassifier:
    """Train the classifier on exported painted birds, and write it into ``folder``.

    Args:
        images: the training split of an exported folder, whose rows have "attributes"; see
            ``check_pictures`` for pictures that cannot be trained on.
        folder: gets checkpoints, curves and attributes.safetensors; resumes from its checkpoint.
        execution: where and how to train.
        steps: of the optimizer.
        batch_size: pictures a step.
        learning_rate: at the start.
        seed: of the weights, the order and the disturbances.
        precision: see ``autocast``.

    Raises:
        InputError: a row has no such attributes; see also ``check_pictures``, ``Run``, ``Batches``
            and ``fit``.
    """
    left, prepared = check_pictures(
        images,
        INPUT_SIZE,
        augment=False,
        cache=execution.cache,
        workers=execution.workers,
        strict=execution.strict,
        quiet=execution.quiet,
    )
    place = {images.name(index): index for index in range(len(images))}
    rows = [place[left.name(index)] for index in range(len(left))]
    attributes = _as_numbers(true_attributes(images, rows))
    vocabulary = Vocabulary.build(c for i in range(len(left)) for c in left.captions(i))
    examples = TrainingExamples(left, vocabulary, INPUT_SIZE, seed=seed, prepared=prepared)
    batches = Batches(examples, batch_size, seed, execution)
    settings: dict[str, Any] = {
        "version": VERSION,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "seed": seed,
        "data": examples.digest(),
        "attributes": digest(attributes),
        "precision": precision,
    }
    if precision == "auto":
        settings["precision"] = Unsaid(fastest_precision(execution.device), COMPUTED)
    processes = execution.processes
    with Run(folder, steps, settings, quiet=execution.quiet, processes=processes) as run:
        torch.manual_seed(seed)
        task = AttributesTraining(attributes, steps, learning_rate, run.computation(execution))
        fit(task, run, batches)
    execution.processes.once(lambda: task.classifier.save_pretrained(folder))
    return task.classifier.eval()


def _disturb(images: Tensor, processes: Processes) -> Tensor:
    """Change blur, brightness, tint and noise, each image by a random amount.

    A color moves by at most a fifth of the distance to the next one. The blur has a standard
    deviation of up to 0.8 pixels, and the noise of up to 8 gray levels.
    """

    def amount(*shape: int) -> Tensor:
        return processes.drawn(torch.rand, len(images), *shape, device=images.device)

    blurred = functional.avg_pool2d(images, 3, stride=1, padding=1, count_include_pad=False)
    images = torch.lerp(images, blurred, amount(1, 1, 1))
    gain = 1 + 0.08 * (2 * amount(1, 1, 1) - 1)
    shift = 0.06 * (2 * amount(1, 1, 1) - 1) + 0.03 * (2 * amount(3, 1, 1) - 1)
    strength = 0.06 * amount(1, 1, 1)
    noise = processes.drawn(torch.randn, *images.shape, device=images.device)
    return (images * gain + shift + strength * noise).clamp(-1, 1)


def _as_numbers(attributes: Sequence[Mapping[str, str]]) -> Tensor:
    """Return int64 (N, attributes), the number of each attribute's value."""
    return torch.tensor(
        [[values.index(of[name]) for name, values in ATTRIBUTES.items()] for of in attributes]
    )
