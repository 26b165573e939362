"""Training of the judge: a CNN that reads attributes of pictures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from mirrorgan_fast.data.examples import TrainingExamples
from mirrorgan_fast.data.image_folder import ImageFolder, text_attributes
from mirrorgan_fast.data.painted_birds.bird import ATTRIBUTES
from mirrorgan_fast.data.painted_birds.data_set import is_painted, true_attributes
from mirrorgan_fast.data.prepared_pictures import check_pictures
from mirrorgan_fast.errors import InputError, listed
from mirrorgan_fast.models.attribute_classifier import (
    INPUT_SIZE,
    LONGEST,
    MOST_ATTRIBUTES,
    MOST_VALUES,
    AttributeClassifier,
)
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

_UNKNOWN = -1


class AttributesTraining:
    """Attributes are read from pictures, which are disturbed as far as colors keep their names.

    Args:
        values: of each attribute.
        attributes: int64 (examples, attributes), the number of each picture's value; -1: it is not
            known, and nothing is learned of it.
        steps: of the run; the learning rate falls to 0 in a straight line.
        learning_rate: at the start.
        computation: how a step computes.
    """

    def __init__(
        self,
        values: Mapping[str, Sequence[str]],
        attributes: Tensor,
        steps: int,
        learning_rate: float,
        computation: Computation,
    ) -> None:
        self.attributes, self.steps, self.computation = attributes, steps, computation
        self.classifier = AttributeClassifier(values).to(computation.device)
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
        """Lower the cross-entropy of every known attribute, summed over the attributes."""
        device, processes = self.computation.device, self.computation.processes
        values = self.attributes[batch["index"]].to(device)
        with self.computation.autocast():
            logits = self.classifier(_disturb(to_signed(batch["image"], device), processes))
        known = values != _UNKNOWN
        losses = torch.stack(
            [
                functional.cross_entropy(
                    wide(attribute), values[:, i], ignore_index=_UNKNOWN, reduction="sum"
                )
                for i, attribute in enumerate(logits.values())
            ]
        )
        # a mean over what the whole batch knows; the processes' gradients are averaged
        counts = processes.summed(known.sum(dim=0).float()).clamp(min=1) / processes.count
        loss = (losses / counts).sum()
        self.learner.lower(loss, pace=1 - step / self.steps)
        found = torch.stack([attribute.argmax(dim=1) for attribute in logits.values()])
        right = (values == found.T).sum() / known.sum().clamp(min=1)
        return {"loss": loss.detach(), "right": right}


def train_attribute_classifier(
    images: ImageFolder,
    folder: Path,
    execution: Execution,
    *,
    attributes: Sequence[str] = (),
    steps: int = 1200,
    batch_size: int = 64,
    learning_rate: float = 3e-3,
    seed: int = 0,
    precision: Precision = "auto",
) -> AttributeClassifier:
    """Train a classifier of the attributes in the rows of an image folder, and write it.

    Painted birds are not moved or flipped, because size and direction are attributes. Of other
    pictures each step has a random crop, half of them flipped (see ``TrainingExamples``).

    Args:
        images: the training split, whose rows have "attributes"; see ``check_pictures`` for
            pictures that cannot be trained on.
        attributes: the names of those to learn; none: all whose values are texts.
        folder: gets checkpoints, curves and attributes.safetensors; resumes from its checkpoint.
        execution: where and how to train.
        steps: of the optimizer.
        batch_size: pictures a step.
        learning_rate: at the start.
        seed: of the weights, the order and the disturbances.
        precision: see ``autocast``.

    Raises:
        InputError: rows do not have such attributes; see also ``check_pictures``, ``Run``,
            ``Batches`` and ``fit``.
    """
    augment = not is_painted(images.record(0))
    left, prepared = check_pictures(
        images,
        INPUT_SIZE,
        augment=augment,
        cache=execution.cache,
        workers=execution.workers,
        strict=execution.strict,
        quiet=execution.quiet,
    )
    place = {images.name(index): index for index in range(len(images))}
    rows = [place[left.name(index)] for index in range(len(left))]
    there: Mapping[str, Sequence[str]] = ATTRIBUTES
    if augment:
        of_pictures = [text_attributes(images, row) for row in rows]
        there = _values_in(of_pictures)
    else:
        of_pictures = true_attributes(images, rows)
    values = _chosen(there, attributes)
    numbers = _as_numbers(of_pictures, values)
    vocabulary = Vocabulary.build(c for i in range(len(left)) for c in left.captions(i))
    examples = TrainingExamples(
        left, vocabulary, INPUT_SIZE, augment=augment, seed=seed, prepared=prepared
    )
    batches = Batches(examples, batch_size, seed, execution)
    settings: dict[str, Any] = {
        "version": VERSION,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "seed": seed,
        "data": examples.digest(),
        "values": digest(values),
        "attributes": digest(numbers),
        "precision": precision,
    }
    if precision == "auto":
        settings["precision"] = Unsaid(fastest_precision(execution.device), COMPUTED)
    processes = execution.processes
    with Run(folder, steps, settings, quiet=execution.quiet, processes=processes) as run:
        torch.manual_seed(seed)
        task = AttributesTraining(values, numbers, steps, learning_rate, run.computation(execution))
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


def _values_in(of_pictures: Sequence[Mapping[str, str]]) -> dict[str, list[str]]:
    """Return the values that each attribute has in pictures, in alphabetical order."""
    found: dict[str, set[str]] = {}
    for attributes in of_pictures:
        for name, value in attributes.items():
            found.setdefault(name, set()).add(value)
    return {name: sorted(found[name]) for name in sorted(found)}


def _chosen(there: Mapping[str, Sequence[str]], wanted: Sequence[str]) -> dict[str, list[str]]:
    """Return the values of wanted attributes, or of all, if a classifier can read them."""
    names = listed([name[:LONGEST] for name in there], 20) or "none whose values are texts"
    chosen = {}
    for name in dict.fromkeys(wanted or there):
        values = list(there.get(name, ()))
        if not 2 <= len(values) <= MOST_VALUES or max(map(len, (name, *values))) > LONGEST:
            raise InputError(
                f"attribute {name!r:.{LONGEST}}: has {len(values):,} values, expected 2 to "
                f"{MOST_VALUES:,} of at most {LONGEST} characters; there are: {names}; choose with "
                f"--attributes"
            )
        chosen[name] = values
    if not 0 < len(chosen) <= MOST_ATTRIBUTES:
        raise InputError(
            f"there are {len(chosen)} attributes to learn, expected 1 to {MOST_ATTRIBUTES}; "
            f"choose with --attributes"
        )
    return chosen


def _as_numbers(
    of_pictures: Sequence[Mapping[str, str]], values: Mapping[str, Sequence[str]]
) -> Tensor:
    """Return int64 (N, attributes), the number of each attribute's value; -1: it is not known."""
    places = {name: {value: i for i, value in enumerate(of)} for name, of in values.items()}
    return torch.tensor(
        [
            [place.get(attributes.get(name, ""), _UNKNOWN) for name, place in places.items()]
            for attributes in of_pictures
        ]
    )
