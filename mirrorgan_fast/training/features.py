"""The features that a CNN computes of the images of a batch, once for each image where it can."""

import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from mirrorgan_fast.data.examples import TrainingExamples
from mirrorgan_fast.errors import InputError
from mirrorgan_fast.files import reason
from mirrorgan_fast.pictures import to_signed
from mirrorgan_fast.training.batches import Batch, load_batches
from mirrorgan_fast.training.computation import Computation
from mirrorgan_fast.training.execution import Execution

_BATCH_SIZE = 64
_MOST_IN_MEMORY = 2**31  # bytes; 3 times the features of 20,000 images of the small CNN


def fixed_crops(stage: str, cnn: nn.Module, crops: int, *, augment: bool) -> int:
    """Return how many fixed crops of each picture a CNN computes features of; 0: of none.

    Args:
        stage: that the CNN belongs to, for errors.
        cnn: frozen or not.
        crops: what the settings ask for.
        augment: whether pictures are augmented. Otherwise, all crops of a picture are the same.

    Raises:
        InputError: crops are asked for, and the CNN is not frozen.
    """
    if any(parameter.requires_grad for parameter in cnn.parameters()):
        if crops:
            raise InputError(
                f"{stage}.crops is {crops}, but the CNN is trained too, so its features change; "
                f"set it to 0"
            )
        return 0
    return crops if augment else 1


class ImageFeatures:
    """The features of the images of a batch.

    A frozen CNN computes the same features of the same image every time. If the images are not
    augmented, or each has a fixed number of crops, the features of every image can be computed
    once, before the first step, and a step takes a fraction of the time. They are in memory or, if
    they take more than 2 GB, in a file without a name in the folder of the cache, which is gone
    when the process ends.

    Args:
        cnn: images (N, 3, S, S) in [-1, 1] to one or more tensors (N, ...).
        all_examples: the training examples.
        execution: where and how to compute.
        computation: how the CNN computes.
        crops: of each picture, to compute the features of once. In each epoch, a picture has the
            next of them. 0: features are computed in each step.

    Raises:
        InputError: the features need more space than the disk has.
    """

    def __init__(
        self,
        cnn: Callable[[Tensor], tuple[Tensor, ...]],
        all_examples: TrainingExamples,
        execution: Execution,
        computation: Computation,
        *,
        crops: int,
    ) -> None:
        self._cnn, self._all_examples, self._crops = cnn, all_examples, crops
        self._execution, self._computation = execution, computation
        self._computed: list[Tensor] = []
        self.examples = all_examples.without_images() if crops else all_examples
        """The examples to make ``Batches`` of; without images if there are ``crops``."""

    def __call__(self, batch: Batch) -> tuple[Tensor, ...]:
        """Return the features of the batch's images."""
        if not self._crops:
            return self._cnn(to_signed(batch["image"], self._execution.device))
        if not self._computed:
            self._compute_all()
        device, dtype = self._execution.device, torch.get_default_dtype()
        crop = (self.examples.epoch + batch["index"]) % self._crops
        return tuple(part[crop, batch["index"]].to(device).to(dtype) for part in self._computed)

    @torch.no_grad()
    def _compute_all(self) -> None:
        """Compute the features of all crops of all images; each process does a part of them."""
        execution, count = self._execution, len(self._all_examples)
        processes = execution.processes
        own = torch.arange(count).tensor_split(processes.count)[processes.rank]
        batches = [batch.tolist() for batch in own.split(_BATCH_SIZE)]
        quiet = execution.quiet or processes.rank > 0
        with tqdm(total=len(batches) * self._crops, desc="image features", disable=quiet) as bar:
            for crop in range(self._crops):
                loader = load_batches(
                    self._all_examples.of_crop(crop),
                    execution.workers,
                    batch_sampler=batches,
                    generator=torch.Generator(),  # leaves a step's random numbers as they are
                )
                for batch in loader:
                    with self._computation.autocast():
                        features = self._cnn(to_signed(batch["image"], execution.device))
                    if not self._computed:
                        sizes = [(self._crops, count, *part.shape[1:]) for part in features]
                        self._computed = _half_tensors(sizes, execution.cache)
                    for whole, part in zip(self._computed, features, strict=True):
                        whole[crop, batch["index"]] = part.half().cpu()
                    bar.update()
        processes.add_up(self._computed)


def _half_tensors(sizes: Sequence[tuple[int, ...]], folder: Path | None) -> list[Tensor]:
    """Return tensors of zeros in float16, which takes half of float32's memory.

    Args:
        sizes: of each.
        folder: for a file that they are in if they are large; None: they are in memory.

    Raises:
        InputError: the disk is too small for them.
    """
    total = 2 * sum(int(np.prod(size)) for size in sizes)
    if folder is None or total <= _MOST_IN_MEMORY:
        return [torch.zeros(size, dtype=torch.float16) for size in sizes]
    try:
        os.makedirs(folder, exist_ok=True)
        if shutil.disk_usage(folder).free < 2 * total:
            raise InputError(
                f"{folder}: the features of the images take {total / 2**30:.1f} GB, and the disk "
                f"has less than twice that; use another folder (--cache FOLDER) or fewer crops "
                f"(stem.crops, stream.crops)"
            )
        tensors = []
        for size in sizes:
            with tempfile.TemporaryFile(dir=folder) as file:  # the mapping keeps it
                tensors.append(torch.from_numpy(np.memmap(file, np.float16, "w+", shape=size)))
        return tensors
    except OSError as error:
        raise InputError(
            f"{folder}: the features of the images cannot be written ({reason(error)}); use "
            f"another folder (--cache FOLDER)"
        ) from error
