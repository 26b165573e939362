"""The settings of training, beside the sizes of the networks: a dataclass for each stage."""

from dataclasses import dataclass, field
from typing import Literal

from mirrorgan_fast.fields import bounded, check_fields
from mirrorgan_fast.training.objectives import Form
from mirrorgan_fast.training.precision import Precision

Stage = Literal["cnn", "stem", "stream", "gan", "stage1", "stage2"]
STAGES: tuple[Stage, ...] = ("cnn", "stem", "stream", "gan", "stage1", "stage2")
"""The stages of all chains, in their order; each system has some of them."""

GAN_STAGES: tuple[Stage, ...] = ("gan", "stage1", "stage2")
"""Those that train generators."""
SETTINGS = "settings.toml"
"""The file in a run's folder that has all settings."""
BestBy = Literal[
    "none", "r_precision", "redescription", "attributes", "diversity", "kernel_distance"
]
_MOST_STEPS = 1_000_000_000
_MOST_OF_A_BATCH = 65_536


class _Settings:
    """Checks the bounds of every field."""

    def __post_init__(self) -> None:
        check_fields(self, "training settings")


@dataclass(frozen=True)
class _StageSettings(_Settings):
    """What every stage has."""

    steps: int = bounded(1, 1, _MOST_STEPS)
    """Steps of the optimizer in the whole stage."""
    batch_size: int = bounded(2, 2, _MOST_OF_A_BATCH)
    """Images in a step, in all processes together; at least 2, because an image is compared with
    others."""
    learning_rate: float = bounded(1e-3, 0)
    """Of AdamW, at the start."""
    accumulate: int = bounded(1, 1, 1024)
    """The number of parts of a batch that are computed one after the other, with a single step of
    the optimizer for all, so that a large batch fits in memory. Batch statistics and the candidates
    of DAMSM are those of a part, and the generator learns against the discriminators of the step
    before."""


@dataclass(frozen=True)
class _MatchingSettings(_StageSettings):
    """What the stages have in common whose CNN may be frozen."""

    crops: int = bounded(0, 0, 1024)
    """With augmentation: how many fixed random crops each picture has, whose features of a frozen
    CNN are computed once, before the first step. 0: another crop in each epoch, which the CNN sees
    in that step."""


@dataclass(frozen=True)
class CNNSettings(_StageSettings):
    """Training of the small CNN on the phrases of captions, before DAMSM and STREAM use it.

    The large CNNs start from ImageNet's weights instead.
    """

    steps: int = bounded(3_000, 1, _MOST_STEPS)
    batch_size: int = bounded(64, 2, _MOST_OF_A_BATCH)
    learning_rate: float = bounded(3e-3, 0)
    phrases: int = bounded(1_024, 1, 1_000_000)
    """How many phrases: the most common ones of up to three words."""


@dataclass(frozen=True)
class STEMSettings(_MatchingSettings):
    """Pretraining of STEM with DAMSM; the defaults are AttnGAN's for birds."""

    steps: int = bounded(36_000, 1, _MOST_STEPS)
    batch_size: int = bounded(48, 2, _MOST_OF_A_BATCH)
    learning_rate: float = bounded(2e-3, 0)
    decay: float = bounded(0.98, 0, 1)
    """Factor on the learning rate after each epoch."""
    gradient_clip: float = bounded(0.25, 0)
    """The largest norm of all gradients together; 0: any."""


@dataclass(frozen=True)
class STREAMSettings(_MatchingSettings):
    """Pretraining of STREAM as a captioner."""

    steps: int = bounded(36_000, 1, _MOST_STEPS)
    batch_size: int = bounded(48, 2, _MOST_OF_A_BATCH)
    learning_rate: float = bounded(1e-3, 0)
    gradient_clip: float = bounded(5.0, 0)
    """The largest norm of all gradients together; 0: any."""
    ends: bool = True
    """Whether the end of a caption counts in L_stream, here and in the training of the generator.
    False is what the authors' code does; then descriptions do not end."""


@dataclass(frozen=True)
class GANSettings(_StageSettings):
    """Training of a generator against discriminators."""

    def pace(self, step: int) -> float:
        """Return the factor on both learning rates in a step, counted from 0."""
        decay_steps = max(1, min(self.decay_steps, self.steps))
        halvings = step // self.halve_every if self.halve_every else 0
        return min(1.0, (self.steps - step) / decay_steps) * 0.5**halvings

    learning_rate: float = bounded(2e-4, 0)
    """Of the generator, at the start."""
    discriminator_learning_rate: float = bounded(2e-4, 0)
    """Of the discriminators' AdamW, at the start."""
    betas: tuple[float, float] = bounded((0.5, 0.999), 0, below=1)
    """Of AdamW, for both."""
    decay_steps: int = bounded(0, 0, _MOST_STEPS)
    """The last steps, in which both learning rates fall linearly to zero, as in CycleGAN; at most
    ``steps``."""
    halve_every: int = bounded(0, 0, _MOST_STEPS)
    """Steps after which both learning rates are halved, again and again; 0: never."""
    average_decay: float = bounded(0.999, 0, 1)
    """Of the moving average of the generator, which is the result of the training."""


@dataclass(frozen=True)
class CaptionedGANSettings(GANSettings):
    """Training of a generator that captions are given to."""

    captions: int = bounded(1, 1, 64)
    """Captions of an image, drawn in each step, whose sentence features are averaged; words are
    those of the first one."""
    sentence_gain: float = bounded(1.0, 0)
    """Factor on the initial weights of the generator's layer that reads the sentence, and on those
    of GAWWN's discriminator. DAMSM compares directions, so STEM's sentences may be of any size.
    Those of painted birds have a standard deviation of 0.09, and beside noise of standard deviation
    1 a generator hardly sees them."""
    r1_weight: float = bounded(0.0, 0)
    """gamma of the R1 penalty (``r1_penalty``)."""
    r1_every: int = bounded(16, 1, 1024)
    """The steps from one R1 penalty to the next, by which it is multiplied ("lazy regularization",
    Karras et al., "Analyzing and Improving the Image Quality of StyleGAN", sec. 3.1). 16 measured
    no worse than 4: 42.6, 45.6 and 44.5 % of the attributes of 200 held-out captions were right
    with seeds 0, 1 and 2, against 43.6, 40.3 and 43.6 % (AttnGAN at 32 px, 600 steps)."""


@dataclass(frozen=True)
class StackGANSettings(CaptionedGANSettings):
    """Training of one stage of StackGAN; the defaults are those of the authors' code for birds."""

    steps: int = bounded(83_000, 1, _MOST_STEPS)
    batch_size: int = bounded(64, 2, _MOST_OF_A_BATCH)
    form: Form = "authors"
    """Form of the losses: those of the paper's equations, or of the authors' code."""
    kl_weight: float = bounded(2.0, 0)
    """lambda: the weight of the KL divergence of the conditioning augmentation, which is a sum over
    its dimensions in the paper, and a mean in the authors' code."""


@dataclass(frozen=True)
class GanIntClsSettings(CaptionedGANSettings):
    """Training of GAN-INT-CLS; the defaults are those of the authors' code for birds."""

    steps: int = bounded(83_000, 1, _MOST_STEPS)
    batch_size: int = bounded(64, 4, _MOST_OF_A_BATCH)
    halve_every: int = bounded(13_800, 0, _MOST_STEPS)
    """As the authors: after each 100 of 600 epochs; 0: never."""
    captions: int = bounded(4, 1, 64)
    """Captions of an image, drawn in each step, whose sentence features are averaged; the paper has
    one."""
    wrong_weight: float = bounded(0.5, 0, 1)
    """Of real images with wrong captions in the discriminator's loss (CLS), against generated ones;
    0: the loss of a plain GAN."""
    interpolation_weight: float = bounded(1.0, 0)
    """Of images of mixed sentences in the generator's loss (INT); 0: there are none."""
    beta: float = bounded(0.5, 0, 1)
    """The share of the first of two mixed sentences."""


@dataclass(frozen=True)
class CycleGANSettings(GANSettings):
    """Training of CycleGAN; the defaults are those of the authors' code."""

    steps: int = bounded(270_000, 1, _MOST_STEPS)
    batch_size: int = bounded(1, 1, _MOST_OF_A_BATCH)
    """Images of each domain in a step, in all processes together."""
    decay_steps: int = bounded(135_000, 0, _MOST_STEPS)
    form: Form = "authors"
    """``paper``: the objective of the paper's equation 1, E log D(y) + E log(1 - D(G(x))), which
    the generators lower as it is; ``authors``: least squares, halved for the discriminators."""
    cycle_weight: float = bounded(10.0, 0)
    """lambda."""
    identity_weight: float = bounded(0.5, 0)
    """Of the identity loss, in units of ``cycle_weight``; 0: there is none."""
    pool_size: int = bounded(50, 0, 10_000)
    """Generated images of each domain that the discriminators may see again; 0: they see the
    newest."""


@dataclass(frozen=True)
class GawwnSettings(CaptionedGANSettings):
    """Training of GAWWN; the defaults are those of the authors' code for birds."""

    steps: int = bounded(442_000, 1, _MOST_STEPS)
    """600 epochs of 11,788 birds."""
    batch_size: int = bounded(16, 2, _MOST_OF_A_BATCH)
    halve_every: int = bounded(73_600, 0, _MOST_STEPS)
    """As the authors: after each 100 of 600 epochs; 0: never."""
    captions: int = bounded(4, 1, 64)
    """Captions of an image, drawn in each step, whose sentence features are averaged."""
    wrong_weight: float = bounded(0.5, 0, 1)
    """Of real images with wrong captions in the discriminator's loss, against generated ones."""


@dataclass(frozen=True)
class CascadeSettings(CaptionedGANSettings):
    """Training of a generator cascade against its discriminators.

    The defaults are AttnGAN's for birds.
    """

    steps: int = bounded(265_000, 1, _MOST_STEPS)
    batch_size: int = bounded(20, 2, _MOST_OF_A_BATCH)
    form: Form = "authors"
    """Form of the losses: the paper's, or those of the authors' code. Those of AttnGAN's authors
    are those of MirrorGAN's."""
    kl_weight: float = bounded(1.0, 0)
    """Of the KL divergence of the conditioning augmentation."""
    last_stage_from: int = bounded(0, 0, _MOST_STEPS)
    """The step from which the last stage trains too. Until then only the other stages train, and a
    step takes 0.4 of the time: what captions mean is learned at half the size."""
    generator_from: int = bounded(0, 0, _MOST_STEPS)
    """The step from which the generator trains; until then only the discriminators do. It may help
    a trained generator against new discriminators, but measured worse: after 50 steps on 200 birds
    with unknown words, ``birds-painted`` had 93.8 % of the attributes right, a redescription of
    84.9 % and a diversity of 27.7 gray levels if both trained from the start, and 93.8 %, 81.9 %
    and 24.7 if the discriminators trained alone for 200 steps before."""

    augment: bool = False
    """Whether all images that the projected discriminator sees are shifted, and have a gray square
    (``training.augmentation``)."""
    stages_weight: float = bounded(1.0, 0)
    """With the projected discriminator: of the distance of the other stages' images to those of the
    last one (``stages_alike_loss``), which alone are judged."""
    difference_weight: float = bounded(0.0, 0)
    """With the projected discriminator: of the loss that keeps images of one caption different
    (``difference_loss``). If it is above 0, each two images of a batch are of the same caption."""
    least_difference: float = bounded(0.6, 0, 4)
    """The least difference of two images of one caption that is not punished, as a share of the
    difference of two images of the data set."""
    edit_weight: float = bounded(0.0, 0)
    """Of the loss that keeps the rest of an image as it is when one word of its caption changes
    (``edit_loss``). If it is above 0, each two images of a batch are of the same noise, and of
    captions that differ in one of ``edit_words``; with ``difference_weight`` too, in every second
    step."""
    edit_words: tuple[str, ...] = ()
    """Words that may take each other's places in captions, such as those of colors."""


@dataclass(frozen=True)
class AttnGANSettings(CascadeSettings):
    """Training of AttnGAN's generator; the defaults are the authors' for birds."""

    damsm_weight: float = bounded(5.0, 0)
    """lambda."""


@dataclass(frozen=True)
class StackGANv2Settings(CascadeSettings):
    """Training of StackGAN++'s generator; the defaults are the authors' for birds."""

    steps: int = bounded(221_000, 1, _MOST_STEPS)
    batch_size: int = bounded(24, 2, _MOST_OF_A_BATCH)
    kl_weight: float = bounded(2.0, 0)
    color_weight: float = bounded(0.0, 0)
    """alpha of the color consistency (``color_consistency_loss``). The authors have 0 with
    captions, and 50 without."""
    detach_mu: bool = False
    """Whether mu, where the generator's loss tells it to discriminators, is left as it is. In the
    authors' code it also learns to be what they believe, besides what the images need. The first
    stage alone at 16 px, after 300 steps of 32 images, has 29.9 % of the attributes of 200 held-out
    captions with it, and 25.6 % without (``stackgan2-birds-painted``, seed 0; chance is 16 %)."""


@dataclass(frozen=True)
class MirrorGANSettings(CascadeSettings):
    """Training of MirrorGAN's generator; the defaults are the paper's for birds."""

    form: Form = "paper"
    """Form of the losses: the paper's, or those of the authors' code."""
    damsm_weight: float = bounded(0.0, 0)
    """lambda of AttnGAN's L_DAMSM."""
    stream_weight: float = bounded(20.0, 0)
    """lambda."""


StageSettings = CNNSettings | STEMSettings | STREAMSettings | GANSettings


@dataclass(frozen=True)
class CommonSettings(_Settings):
    """What the trainings of all systems have in common."""

    precision: Precision = "auto"
    """``auto`` is the checkpoint's. Without a checkpoint, it is bf16 autocast if the processor has
    bf16 instructions, else fp32. ``fp16`` scales the loss; it is for GPUs without bf16."""
    sync_batch_norm: bool = False
    """Whether batch norms take the statistics of the batch of all processes, so that several
    processes train as one does, apart from rounding. Otherwise each process takes those of its own
    part of the batch, which is faster."""
    augment: bool = True
    """Random crops and flips. A picture whose caption mentions left or right is not flipped."""
    seed: int = bounded(0, 0, 2**40 - 1)
    """Together with a step, it is a seed of PyTorch's random numbers."""
    save_every: int = bounded(500, 1, _MOST_STEPS)
    """Steps between two checkpoints; it may change when a run resumes."""
    log_every: int = bounded(50, 1, _MOST_STEPS)
    """Steps between two points of the curves; it may change when a run resumes."""
    sheet_every: int = bounded(1000, 1, _MOST_STEPS)
    """Steps of the GAN between two sheets of samples; it may change when a run resumes."""


@dataclass(frozen=True)
class TrainingSettings(CommonSettings):
    """What the chains of all text-to-image systems have in common."""

    cnn: CNNSettings = field(default_factory=CNNSettings)
    stem: STEMSettings = field(default_factory=STEMSettings)
    validate_every: int = bounded(1000, 1, _MOST_STEPS)
    """Steps of the GAN between two validations on held-out pictures; it may change when a run
    resumes."""
    best_by: BestBy = "r_precision"
    """The figure of the validation by which the best model is kept in ``best`` in the run's folder;
    it may change when a run resumes."""


@dataclass(frozen=True)
class CascadeTrainingSettings(TrainingSettings):
    """The chain of a system whose generator is a cascade."""

    gan: CascadeSettings = field(default_factory=CascadeSettings)


@dataclass(frozen=True)
class AttnGANTrainingSettings(CascadeTrainingSettings):
    """The whole chain of AttnGAN."""

    gan: AttnGANSettings = field(default_factory=AttnGANSettings)


@dataclass(frozen=True)
class StackGANv2TrainingSettings(CascadeTrainingSettings):
    """The whole chain of StackGAN++."""

    gan: StackGANv2Settings = field(default_factory=StackGANv2Settings)


@dataclass(frozen=True)
class GanIntClsTrainingSettings(TrainingSettings):
    """The whole chain of GAN-INT-CLS."""

    gan: GanIntClsSettings = field(default_factory=GanIntClsSettings)


@dataclass(frozen=True)
class GawwnTrainingSettings(TrainingSettings):
    """The whole chain of GAWWN."""

    gan: GawwnSettings = field(default_factory=GawwnSettings)


@dataclass(frozen=True)
class StackGANTrainingSettings(TrainingSettings):
    """The whole chain of StackGAN."""

    stage1: StackGANSettings = field(default_factory=StackGANSettings)
    stage2: StackGANSettings = field(default_factory=StackGANSettings)


@dataclass(frozen=True)
class MirrorGANTrainingSettings(CascadeTrainingSettings):
    """The whole chain of MirrorGAN."""

    stream: STREAMSettings = field(default_factory=STREAMSettings)
    gan: MirrorGANSettings = field(default_factory=MirrorGANSettings)


@dataclass(frozen=True)
class CycleGANTrainingSettings(CommonSettings):
    """The training of CycleGAN."""

    gan: CycleGANSettings = field(default_factory=CycleGANSettings)
