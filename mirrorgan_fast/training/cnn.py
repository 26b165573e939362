"""Training of the small CNN: which phrases do the captions of an image have?"""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from mirrorgan_fast.data.examples import TrainingExamples
from mirrorgan_fast.models.backbones.small import SmallImageEncoder
from mirrorgan_fast.models.config import TextToImageConfig
from mirrorgan_fast.ops.wide import wide
from mirrorgan_fast.pictures import to_signed
from mirrorgan_fast.training.batches import Batch, Batches
from mirrorgan_fast.training.computation import Computation
from mirrorgan_fast.training.execution import Execution
from mirrorgan_fast.training.learner import Learner
from mirrorgan_fast.training.loop import Part, fit
from mirrorgan_fast.training.run import dependencies, open_run
from mirrorgan_fast.training.settings import CNNSettings, TrainingSettings


class CNNTraining:
    """The visual n-grams of Li et al. (2017), which pretrain the small CNN as ImageNet does others.

    A phrase is one to three words in a row that some pictures' captions have and others' do not.
    Neither a captioner nor a matcher of whole captions teaches a new CNN to see in reasonable time,
    because one caption says little about its image. All phrases of all its captions say nearly
    everything that is known about it.

    Args:
        settings: of this training.
        phrases: bool (examples, P), which phrases each image has.
        computation: how a step computes.
    """

    def __init__(self, settings: CNNSettings, phrases: Tensor, computation: Computation) -> None:
        self.settings, self.computation, self.phrases = settings, computation, phrases
        self.cnn = SmallImageEncoder().to(computation.device)
        # The feature grid gets a loss too: with one on the last layer only, the CNN learns less.
        self.heads = nn.ModuleDict(
            {
                "grid": nn.Linear(self.cnn.grid_size, phrases.shape[1]),
                "pooled": nn.Linear(self.cnn.pooled_size, phrases.shape[1]),
            }
        ).to(computation.device)
        both = nn.ModuleDict({"cnn": self.cnn, "heads": self.heads})
        computation.share(both)
        self.learner = Learner(both, settings.learning_rate, computation=computation)

    def parts(self) -> dict[str, Part]:
        """Return what a checkpoint holds."""
        return {"model": self.learner.module, "optimizer": self.learner.adam}

    def learners(self) -> dict[str, Learner]:
        """Return the learners by their networks."""
        return {"the CNN": self.learner}

    def step(self, step: int, epoch: int, batch: Batch) -> dict[str, Tensor]:
        """Lower the binary cross-entropy of every phrase, summed over phrases and over both heads.

        ``found`` is the share of the phrases of the images that the last layer predicts.
        """
        device, processes = self.computation.device, self.computation.processes
        target = self.phrases[batch["index"]].to(device, torch.get_default_dtype())
        with self.computation.autocast():
            grid = self.cnn.grid(self.cnn.regions(to_signed(batch["image"], device)))
            early, logits = self.heads["grid"](grid), self.heads["pooled"](self.cnn.pooled(grid))
        early_loss, loss = (
            functional.binary_cross_entropy_with_logits(wide(each), target, reduction="sum")
            / len(target)
            for each in (early, logits)
        )
        self.learner.lower(early_loss + loss, pace=1 - step / self.settings.steps)
        right, there = ((logits > 0) * target).sum(), target.sum()
        found = processes.summed(right) / processes.summed(there).clamp(min=1)
        return {"cross_entropy": loss.detach(), "found": found}


def train_cnn(
    config: TextToImageConfig,
    settings: TrainingSettings,
    examples: TrainingExamples,
    folder: Path,
    execution: Execution,
) -> SmallImageEncoder:
    """Train the small CNN. Writes checkpoints and curves; resumes from the folder's checkpoint.

    Args:
        config: of the model that it is for.
        settings: of the whole chain.
        examples: what to train on.
        folder: of the run.
        execution: where and how to train.

    Raises:
        InputError: the captions of all pictures say the same; see also ``Run``, ``Batches`` and
            ``fit``.
    """
    options = settings.cnn
    batches = Batches(examples, options.batch_size, settings.seed, execution, options.accumulate)
    needs = dependencies(config, settings, options, examples.digest(), execution.device)
    with open_run(folder, options, settings, needs, execution) as run:
        torch.manual_seed(settings.seed)
        task = CNNTraining(options, examples.phrases(options.phrases), run.computation(execution))
        fit(task, run, batches)
    return task.cnn.eval()
