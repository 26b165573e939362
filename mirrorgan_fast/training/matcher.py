"""Training of STEM with DAMSM's image encoder: which caption belongs to which image?"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from mirrorgan_fast.data.examples import TrainingExamples
from mirrorgan_fast.metrics.r_precision import sentence_similarity
from mirrorgan_fast.models.config import TextToImageConfig
from mirrorgan_fast.models.damsm import DAMSMImageEncoder
from mirrorgan_fast.models.stem import STEM, word_mask
from mirrorgan_fast.models.text_to_image import TextToImage
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
from mirrorgan_fast.training.objectives import damsm_loss
from mirrorgan_fast.training.run import dependencies, open_run, started_from
from mirrorgan_fast.training.settings import STEMSettings, TrainingSettings


class MatcherTraining:
    """DAMSM (AttnGAN, section 3.2): each caption is to find its image in the batch, and back.

    Args:
        settings: of this training.
        stem: the text encoder.
        image_encoder: the image encoder; its CNN may be frozen.
        features: what its CNN makes of the images of a batch.
        computation: how a step computes.
    """

    def __init__(
        self,
        settings: STEMSettings,
        stem: STEM,
        image_encoder: DAMSMImageEncoder,
        features: ImageFeatures,
        computation: Computation,
    ) -> None:
        self.settings, self.computation = settings, computation
        self.stem, self.image_encoder, self.features = stem, image_encoder, features
        both = nn.ModuleDict({"stem": stem, "image_encoder": image_encoder})
        computation.share(both)
        self.learner = Learner(
            both,
            settings.learning_rate,
            (0.5, 0.999),
            clip=settings.gradient_clip,
            computation=computation,
        )

    def parts(self) -> dict[str, Part]:
        """Return what a checkpoint holds."""
        return {"model": self.learner.module, "optimizer": self.learner.adam}

    def learners(self) -> dict[str, Learner]:
        """Return the learners by their networks."""
        return {"STEM and DAMSM": self.learner}

    def step(self, step: int, epoch: int, batch: Batch) -> dict[str, Tensor]:
        """Lower L_DAMSM: match images and captions by words and by sentence, in both directions.

        Images of the same class (``label``) do not compete. ``retrieval`` is the share of images
        for which the best sentence of the batch is of their class.
        """
        tokens, lengths, labels = self.computation.on_device(batch, "tokens", "length", "label")
        processes = self.computation.processes
        with self.computation.autocast():
            words, sentences = self.stem(tokens, batch["length"])
            mask = word_mask(lengths, words.shape[1])
            regions, codes = self.image_encoder.embed(*self.features(batch))
            loss = damsm_loss(words, mask, sentences, regions, codes, labels, processes=processes)
        self.learner.lower(loss, pace=self.settings.decay**epoch)
        with torch.no_grad():
            found = sentence_similarity(processes.gathered(sentences), codes).argmax(dim=1)
        retrieval = (processes.gathered(labels)[found] == labels).float().mean()
        return {"damsm": loss.detach(), "retrieval": retrieval}


def matching_networks(model: TextToImage) -> nn.ModuleDict:
    """Return STEM and DAMSM's image encoder, which learn together."""
    return nn.ModuleDict({"stem": model.stem, "image_encoder": model.image_encoder})


def train_stem(
    config: TextToImageConfig,
    settings: TrainingSettings,
    examples: TrainingExamples,
    vocabulary_size: int,
    folder: Path,
    execution: Execution,
    *,
    backbone_weights: BackboneWeights | None = None,
    trained_cnn: Mapping[str, Tensor] | None = None,
    start: Mapping[str, Tensor] | None = None,
) -> tuple[STEM, DAMSMImageEncoder]:
    """Train STEM and DAMSM's image encoder.

    Writes checkpoints and curves; resumes from the folder's checkpoint.

    Args:
        config: of the model that they are for.
        settings: of the whole chain.
        examples: what to train on.
        vocabulary_size: how many words there are.
        folder: of the run.
        execution: where and how to train.
        backbone_weights: what a large CNN starts from; the checkpoint remembers it.
        trained_cnn: weights of the CNN that stay as they are; None: see ``backbone_weights``.
        start: weights that both networks start from; None: random ones.

    Raises:
        InputError: the CNN is large and has no weights to start from, or the file of weights
            cannot be used; see also ``Run``, ``Batches`` and ``fit``.
    """
    options, device = settings.stem, execution.device
    if trained_cnn is None:
        check_backbone("stem", config.image_encoder, backbone_weights, folder)
    torch.manual_seed(settings.seed)
    stem = STEM(config, vocabulary_size).to(device)
    image_encoder = DAMSMImageEncoder(config, file_of(backbone_weights)).to(device)
    cnn = image_encoder.cnn
    if start is not None:
        nn.ModuleDict({"stem": stem, "image_encoder": image_encoder}).load_state_dict(start)
    if trained_cnn is not None:
        load_trained_cnn(cnn, trained_cnn)
    needs = dependencies(config, settings, options, examples.digest(), device, cnn=trained_cnn)
    needs |= started_from(start)
    needs |= origin(cnn, backbone_weights)
    with open_run(folder, options, settings, needs, execution) as run:
        computation = run.computation(execution)
        freeze_backbone(cnn, run)
        features = ImageFeatures(
            cnn,
            examples,
            execution,
            computation,
            crops=fixed_crops("stem", cnn, options.crops, augment=settings.augment),
        )
        size, parts = options.batch_size, options.accumulate
        batches = Batches(features.examples, size, settings.seed, execution, parts)
        task = MatcherTraining(options, stem, image_encoder, features, computation)
        fit(task, run, batches)
    return stem.eval(), image_encoder.eval()
