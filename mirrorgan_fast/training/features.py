"""The features that a CNN computes of the images of a batch, once for each image where it can."""

from collections.abc import Callable

import torch
from torch import Tensor
from tqdm import tqdm

from mirrorgan_fast.data.examples import TrainingExamples
from mirrorgan_fast.pictures import to_signed
from mirrorgan_fast.training.batches import Batch, load_batches
from mirrorgan_fast.training.computation import Computation
from mirrorgan_fast.training.execution import Execution

_BATCH_SIZE = 64


class ImageFeatures:
    """The features of the images of a batch.

    A frozen CNN computes the same features of the same image every time. If the images are not
    augmented, the features of every image can be computed once, before the first step, and a step
    takes a fraction of the time.

    Args:
        cnn: images (N, 3, S, S) in [-1, 1] to one or more tensors (N, ...).
        all_examples: the training examples.
        execution: where and how to compute.
        computation: how the CNN computes.
        once: whether to compute the features of every image once.
    """

    def __init__(
        self,
        cnn: Callable[[Tensor], tuple[Tensor, ...]],
        all_examples: TrainingExamples,
        execution: Execution,
        computation: Computation,
        *,
        once: bool,
    ) -> None:
        self._cnn, self._all_examples = cnn, all_examples
        self._execution, self._computation, self._once = execution, computation, once
        self._computed: list[Tensor] = []
        self.examples = all_examples.without_images() if once else all_examples
        """The examples to make ``Batches`` of; without images if ``once``."""

    def __call__(self, batch: Batch) -> tuple[Tensor, ...]:
        """Return the features of the batch's images."""
        if not self._once:
            return self._cnn(to_signed(batch["image"], self._execution.device))
        if not self._computed:
            self._compute_all()
        device, dtype = self._execution.device, torch.get_default_dtype()
        return tuple(part[batch["index"]].to(device).to(dtype) for part in self._computed)

    @torch.no_grad()
    def _compute_all(self) -> None:
        """Compute the features of all images; each process does a part of them."""
        execution, count = self._execution, len(self._all_examples)
        processes = execution.processes
        own = torch.arange(count).tensor_split(processes.count)[processes.rank]
        batches = [batch.tolist() for batch in own.split(_BATCH_SIZE)]
        loader = load_batches(
            self._all_examples,
            execution.workers,
            batch_sampler=batches,
            generator=torch.Generator(),  # leaves a step's random numbers as they are
        )
        quiet = execution.quiet or processes.rank > 0
        for batch in tqdm(loader, total=len(batches), desc="image features", disable=quiet):
            with self._computation.autocast():
                features = self._cnn(to_signed(batch["image"], execution.device))
            if not self._computed:
                # half of float32's memory: 0.7 GB for 20,000 images of the small CNN
                self._computed = [torch.zeros(count, *part.shape[1:]).half() for part in features]
            for whole, part in zip(self._computed, features, strict=True):
                whole[batch["index"]] = part.half().cpu()
        processes.add_up(self._computed)
