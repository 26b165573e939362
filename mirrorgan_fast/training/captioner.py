"""Training of STREAM as a captioner of real images, before it describes generated ones."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from mirrorgan_fast.data.examples import TrainingExamples
from mirrorgan_fast.models.config import MirrorGANConfig
from mirrorgan_fast.models.stream import STREAM
from mirrorgan_fast.training.backbones import (
    BackboneWeights,
    check_backbone,
    file_of,
    freeze_backbone,
    load_trained_cnn,
    origin,
)
from mirrorgan_fast.training.batches import Batch, Batches
from mirrorgan_fast.training.computation import Computation
from mirrorgan_fast.training.execution import Execution
from mirrorgan_fast.training.features import ImageFeatures, fixed_crops
from mirrorgan_fast.training.learner import Learner
from mirrorgan_fast.training.loop import Part, fit
from mirrorgan_fast.training.objectives import stream_loss
from mirrorgan_fast.training.run import dependencies, open_run, started_from
from mirrorgan_fast.training.settings import MirrorGANTrainingSettings, STREAMSettings


class CaptionerTraining:
    """Each word of a caption is predicted from the image and the words before it.

    Args:
        settings: of this training.
        stream: the captioner; its CNN may be frozen.
        features: the pooled features of the images of a batch.
        computation: how a step computes.
    """

    def __init__(
        self,
        settings: STREAMSettings,
        stream: STREAM,
        features: ImageFeatures,
        computation: Computation,
    ) -> None:
        self.settings, self.computation = settings, computation
        self.stream, self.features = stream, features
        computation.share(stream)
        self.learner = Learner(
            stream,
            settings.learning_rate,
            clip=settings.gradient_clip,
            computation=computation,
        )

    def parts(self) -> dict[str, Part]:
        """Return what a checkpoint holds."""
        return {"model": self.stream, "optimizer": self.learner.adam}

    def learners(self) -> dict[str, Learner]:
        """Return the learners by their networks."""
        return {"STREAM": self.learner}

    def step(self, step: int, epoch: int, batch: Batch) -> dict[str, Tensor]:
        """Lower L_stream as a mean over words (and ends): the image is the LSTM's first input."""
        tokens, lengths, whole_lengths = self.computation.on_device(
            batch, "tokens", "length", "lengths"
        )
        options = (self.settings.ends, whole_lengths, self.computation.processes)
        with self.computation.autocast():
            (pooled,) = self.features(batch)
            logits = self.stream.predict(pooled, tokens)
            loss = stream_loss(logits, tokens, lengths, "authors", *options)
        # The learning rate falls linearly to zero: small final steps improve rare words.
        self.learner.lower(loss, pace=1 - step / self.settings.steps)
        return {"cross_entropy": loss.detach()}


def train_stream(
    config: MirrorGANConfig,
    settings: MirrorGANTrainingSettings,
    examples: TrainingExamples,
    vocabulary_size: int,
    folder: Path,
    execution: Execution,
    *,
    backbone_weights: BackboneWeights | None = None,
    trained_cnn: Mapping[str, Tensor] | None = None,
    start: Mapping[str, Tensor] | None = None,
) -> STREAM:
    """Train STREAM. Writes checkpoints and curves; resumes from the folder's checkpoint.

    Args:
        config: of the model that it is for.
        settings: of the whole chain.
        examples: what to train on.
        vocabulary_size: how many words there are.
        folder: of the run.
        execution: where and how to train.
        backbone_weights: what a large CNN starts from; the checkpoint remembers it.
        trained_cnn: weights of the CNN that stay as they are; None: see ``backbone_weights``.
        start: weights that STREAM starts from; None: random ones.

    Raises:
        InputError: the CNN is large and has no weights to start from, or the file of weights
            cannot be used; see also ``Run``, ``Batches`` and ``fit``.
    """
    options, device = settings.stream, execution.device
    if trained_cnn is None:
        check_backbone("stream", config.stream_encoder, backbone_weights, folder)
    torch.manual_seed(settings.seed)
    stream = STREAM(config, vocabulary_size, file_of(backbone_weights)).to(device)
    if start is not None:
        stream.load_state_dict(start)
    if trained_cnn is not None:
        load_trained_cnn(stream.cnn, trained_cnn)
    needs = dependencies(config, settings, options, examples.digest(), device, cnn=trained_cnn)
    needs |= started_from(start)
    needs |= origin(stream.cnn, backbone_weights)
    with open_run(folder, options, settings, needs, execution) as run:
        computation = run.computation(execution)
        freeze_backbone(stream.cnn, run)
        features = ImageFeatures(
            lambda image: (stream.see(image),),
            examples,
            execution,
            computation,
            crops=fixed_crops("stream", stream.cnn, options.crops, augment=settings.augment),
        )
        size, parts = options.batch_size, options.accumulate
        batches = Batches(features.examples, size, settings.seed, execution, parts)
        task = CaptionerTraining(options, stream, features, computation)
        fit(task, run, batches)
    return stream.eval()
