"""The chain from nothing to a model, in one run folder: CNN, STEM, STREAM and the GAN."""

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from torch import Tensor, nn

from mirrorgan_fast.data.captioned_images import CaptionedImages
from mirrorgan_fast.data.examples import TrainingExamples, boxes_of
from mirrorgan_fast.data.prepared_pictures import check_pictures
from mirrorgan_fast.errors import InputError
from mirrorgan_fast.files import whole_folder
from mirrorgan_fast.models.attngan import AttnGAN
from mirrorgan_fast.models.backbones.small import SmallImageEncoder
from mirrorgan_fast.models.config import (
    CascadeConfig,
    CycleGANConfig,
    MirrorGANConfig,
    StackGANConfig,
    SystemConfig,
    TextToImageConfig,
)
from mirrorgan_fast.models.gan_int_cls import GanIntCls
from mirrorgan_fast.models.gawwn import Gawwn
from mirrorgan_fast.models.mirrorgan import MirrorGAN
from mirrorgan_fast.models.stackgan import StackGAN, StackGANGenerator
from mirrorgan_fast.models.stackgan_v2 import StackGANv2
from mirrorgan_fast.models.systems import system_of
from mirrorgan_fast.models.text_to_image import TextToImage
from mirrorgan_fast.processes import Processes
from mirrorgan_fast.training.attngan import AttnGANTraining
from mirrorgan_fast.training.backbones import WITHOUT_FILE, BackboneWeights, check_backbone
from mirrorgan_fast.training.batches import check_batch
from mirrorgan_fast.training.best import BestModel
from mirrorgan_fast.training.captioner import train_stream
from mirrorgan_fast.training.cascade import check_cascade
from mirrorgan_fast.training.checkpoint import find_checkpoint, has_checkpoint, load_weights_of
from mirrorgan_fast.training.cnn import train_cnn
from mirrorgan_fast.training.description import check_description
from mirrorgan_fast.training.execution import Execution
from mirrorgan_fast.training.fine_tuning import START, check_sizes, starting_model
from mirrorgan_fast.training.gan import GANTraining, MoreOfGAN, train_gan
from mirrorgan_fast.training.gan_int_cls import GanIntClsTraining
from mirrorgan_fast.training.gawwn import GawwnTraining
from mirrorgan_fast.training.matcher import matching_networks, train_stem
from mirrorgan_fast.training.mirrorgan import train_mirrorgan
from mirrorgan_fast.training.settings import (
    GAN_STAGES,
    AttnGANTrainingSettings,
    CaptionedGANSettings,
    CascadeTrainingSettings,
    GanIntClsTrainingSettings,
    GawwnTrainingSettings,
    MirrorGANTrainingSettings,
    StackGANSettings,
    StackGANTrainingSettings,
    StackGANv2TrainingSettings,
    Stage,
    TrainingSettings,
)
from mirrorgan_fast.training.stackgan import first_stage_of, train_stackgan
from mirrorgan_fast.training.stackgan_v2 import StackGANv2Training
from mirrorgan_fast.vocabulary import Vocabulary
from mirrorgan_fast.weights import CONFIG, load_vocabulary, save_description


def train(
    stages: Sequence[Stage],
    config: TextToImageConfig,
    settings: TrainingSettings,
    images: CaptionedImages,
    folder: Path,
    execution: Execution,
    *,
    backbone_weights: Mapping[Stage, BackboneWeights] | None = None,
    init_from: TextToImage | None = None,
    begin: Callable[[], None] = lambda: None,
    validate: Callable[[TextToImage], Mapping[str, float]] | None = None,
) -> None:
    """Train stages of the chain. Each resumes from its checkpoint if there is one.

    Each stage has a folder of its name in ``folder``. After the GAN, ``folder`` itself is a model
    that ``mirrorgan_fast.load`` loads.

    A run that starts from a trained model keeps it, with the words of the data added, in its folder
    ``start``. There is no stage ``cnn`` then, and the GAN can do with the model's STEM and STREAM.

    Args:
        stages: of ``stages_of(config)``, in that order. The GAN needs STEM and, if the system has
            it, STREAM, trained now or before, and these need the CNN if theirs is the small one.
            With large CNNs there is no such stage.
        config: the sizes of the networks; its class is that of the system.
        settings: the recipes.
        images: what to train on; see ``check_pictures`` for pictures that cannot be trained on.
        folder: of the run; created if it does not exist.
        execution: where and how to train.
        backbone_weights: ImageNet weights of DAMSM's (``stem``) and STREAM's (``stream``) CNN, if
            these are large; "random" trains one from nothing. A stage that has begun remembers its.
        init_from: a trained model that the run starts from (see ``fine_tuning``); a run that has
            begun has its own copy.
        validate: measures a model; the figures go to the curves of the GAN, and the best model by
            ``settings.best_by`` is kept in ``best``.
        begin: called when everything has been checked, before the first stage.

    Raises:
        InputError: the folder holds a run with another model or data set; a stage that is needed
            has not been trained, or has been trained further since; the data cannot be trained on
            with these settings; the model reads text vectors; see also ``Run``, ``Batches`` and
            ``fit``.
    """
    config.check_text(None)
    backbone_weights = backbone_weights or {}
    check_description(folder, config)
    start = _start(folder, config, init_from)
    stages = _usable(stages, config, backbone_weights, starts_from_model=start is not None)
    _check(stages, config, settings, images, execution.processes)
    if start is None:
        _check_what_is_needed(stages, config, backbone_weights, folder)
    images, prepared = check_pictures(
        images,
        config.image_size,
        settings.augment,
        cache=execution.cache,
        workers=execution.workers,
        strict=execution.strict,
        quiet=execution.quiet,
    )
    _check(stages, config, settings, images, execution.processes)  # of those that are left
    captions = (caption for index in range(len(images)) for caption in images.captions(index))
    if start is None:
        vocabulary = Vocabulary.build(captions)
    else:
        start = starting_model(start, config, captions)
        vocabulary = start.vocabulary

    def claim() -> None:
        _claim(folder, config, vocabulary, start)
        begin()

    execution.processes.once(claim)
    if start is not None:
        start = system_of(config).from_pretrained(folder / START)
    examples = TrainingExamples(
        images,
        vocabulary,
        config.image_size,
        config.caption_length,
        augment=settings.augment,
        seed=settings.seed,
        prepared=prepared,
        boxes=config.places,
    )
    if "cnn" in stages:
        train_cnn(config, settings, examples, folder / "cnn", execution)
    if "stem" in stages:
        train_stem(
            config,
            settings,
            examples,
            len(vocabulary),
            folder / "stem",
            execution,
            backbone_weights=backbone_weights.get("stem"),
            trained_cnn=_trained_cnn(config.image_encoder, folder, start, "image_encoder.cnn."),
            start=None if start is None else matching_networks(start).state_dict(),
        )
    if "stream" in stages and isinstance(config, MirrorGANConfig):
        assert isinstance(settings, MirrorGANTrainingSettings)
        train_stream(
            config,
            settings,
            examples,
            len(vocabulary),
            folder / "stream",
            execution,
            backbone_weights=backbone_weights.get("stream"),
            trained_cnn=_trained_cnn(config.stream_encoder, folder, start, "stream.cnn."),
            start=_part(start, "stream."),
        )
    for stage in GAN_STAGES:
        if stage in stages:
            model = _train_gan(
                stage, config, settings, examples, folder, vocabulary, execution, start, validate
            )
            if stage == stages_of(config)[-1]:
                execution.processes.once(partial(model.save_pretrained, folder))


def stages_of(config: SystemConfig) -> tuple[Stage, ...]:
    """Return the stages of a system's training, in their order."""
    match config:
        case CycleGANConfig():
            return ("gan",)
        case MirrorGANConfig():
            return "cnn", "stem", "stream", "gan"
        case StackGANConfig():
            return "cnn", "stem", "stage1", "stage2"
    return "cnn", "stem", "gan"


def _train_gan(
    stage: Stage,
    config: TextToImageConfig,
    settings: TrainingSettings,
    examples: TrainingExamples,
    folder: Path,
    vocabulary: Vocabulary,
    execution: Execution,
    start: TextToImage | None,
    validate: Callable[[TextToImage], Mapping[str, float]] | None,
) -> TextToImage:
    """Train a generator of the system, whose other networks are trained; return the model."""
    if stage == "stage1" and isinstance(config, StackGANConfig):
        config = first_stage_of(config)
    model = system_of(config)(config, vocabulary)
    # what the other stages trained, or else what the run starts from
    trained: dict[str, nn.Module] = {"stem": matching_networks(model)}
    if isinstance(model, MirrorGAN):
        trained["stream"] = model.stream
    if isinstance(model, Gawwn):
        model.boxes.copy_(examples.boxes(len(model.boxes)))
    if start is not None:
        kept = dict(model.named_buffers(recurse=False))  # the boxes of the new pictures
        known = {**start.state_dict(), **kept}
        model.load_state_dict({name: known[name] for name in model.state_dict()})
    for name, module in trained.items():
        if start is None or has_checkpoint(folder / name):
            load_weights_of(folder / name, module)
    best = BestModel(folder / "best", settings.best_by)

    def measure(generator: nn.Module, steps: int) -> Mapping[str, float]:
        """Measure the model with a generator in training, and keep the best."""
        assert validate is not None
        model.add_module(model.GENERATOR, generator)
        figures = validate(model)
        if stage != "stage1":
            best.keep(model, steps, figures)
        return figures

    generator = _trained_generator(
        stage,
        model,
        settings,
        examples,
        folder,
        execution,
        MoreOfGAN(
            start=None if start is None else model.generator.state_dict(),
            validate=None if validate is None else measure,
        ),
    )
    model.add_module(model.GENERATOR, generator)
    return model


def _trained_generator(
    stage: Stage,
    model: TextToImage,
    settings: TrainingSettings,
    examples: TrainingExamples,
    folder: Path,
    execution: Execution,
    more: MoreOfGAN,
) -> nn.Module:
    """Train the generator of a model whose other networks are trained (see ``train_gan``)."""
    where = (folder / stage, execution)
    training: type[GANTraining]
    options: CaptionedGANSettings
    networks: dict[str, nn.Module] = {"stem": model.stem}
    match model, settings:
        case MirrorGAN(), MirrorGANTrainingSettings():
            encoders = (model.stem, model.image_encoder, model.stream)
            return train_mirrorgan(model.config, settings, examples, *encoders, *where, **more)
        case StackGAN(), StackGANTrainingSettings():
            first = None
            if stage == "stage2":
                first = StackGANGenerator(first_stage_of(model.config))
                load_weights_of(folder / "stage1", first, part="average")
            of_stage: StackGANSettings = getattr(settings, stage)
            text = (examples, model.stem, first)
            return train_stackgan(model.config, of_stage, settings, *text, *where, **more)
        case AttnGAN(), AttnGANTrainingSettings():
            training, options = AttnGANTraining, settings.gan
            networks["image_encoder"] = model.image_encoder
        case StackGANv2(), StackGANv2TrainingSettings():
            training, options = StackGANv2Training, settings.gan
        case GanIntCls(), GanIntClsTrainingSettings():
            training, options = GanIntClsTraining, settings.gan
        case Gawwn(), GawwnTrainingSettings():
            training, options = GawwnTraining, settings.gan
        case _:
            raise TypeError(f"{model.SYSTEM} cannot be trained with {type(settings).__name__}")
    return train_gan(training, model.config, options, settings, examples, networks, *where, **more)


def _encoders(config: TextToImageConfig) -> dict[Stage, str]:
    """Return the name of the CNN of each stage that has one."""
    encoders: dict[Stage, str] = {"stem": config.image_encoder}
    if isinstance(config, MirrorGANConfig):
        encoders["stream"] = config.stream_encoder
    return encoders


def _usable(
    stages: Sequence[Stage],
    config: TextToImageConfig,
    backbone_weights: Mapping[Stage, BackboneWeights],
    *,
    starts_from_model: bool,
) -> list[Stage]:
    """Return the stages that there are to train of those that are asked for.

    Raises:
        InputError: the system has no such stage, or weights are given that it cannot use.
    """
    there, encoders = stages_of(config), _encoders(config)
    for stage in stages:
        if stage not in there:
            raise InputError(
                f"train {stage}: this system has no such part; there are: {', '.join(there)}"
            )
    if starts_from_model and backbone_weights:
        raise InputError(
            f"{next(iter(backbone_weights.values()))}: the CNNs are those of the model that the "
            f"run starts from; leave this file out"
        )
    for stage, path in backbone_weights.items():
        if stage not in there:
            raise InputError(f"{path}: this system has no part {stage}")
        if encoders.get(stage) in WITHOUT_FILE:
            raise InputError(
                f"{path}: the CNN of this model's {stage} is {encoders[stage]}, which does not "
                f"start from a file; leave this file out"
            )
    if "small" in encoders.values() and not starts_from_model:
        return list(stages)
    if set(stages) == {"cnn"}:
        why = "this model has no small CNN"
        if starts_from_model:
            why = "the CNN of the model that the run starts from stays as it is"
        raise InputError(f"train cnn: {why}; go on with train stem")
    return [stage for stage in stages if stage != "cnn"]


def _check_what_is_needed(
    stages: Sequence[Stage],
    config: TextToImageConfig,
    backbone_weights: Mapping[Stage, BackboneWeights],
    folder: Path,
) -> None:
    """Raise InputError if a stage needs another that is not trained, or weights of a CNN."""
    encoders = _encoders(config)
    for stage, encoder in encoders.items():
        if stage in stages:
            check_backbone(stage, encoder, backbone_weights.get(stage), folder / stage)
    before: dict[Stage, set[Stage]] = {"gan": {*encoders}, "stage1": {"stem"}}
    before["stage2"] = {"stem", "stage1"}
    before |= {stage: {"cnn"} for stage, encoder in encoders.items() if encoder == "small"}
    for stage in stages:
        for needed in sorted(before.get(stage, set()) - set(stages)):
            find_checkpoint(folder / needed)


def _check(
    stages: Sequence[Stage],
    config: TextToImageConfig,
    settings: TrainingSettings,
    images: CaptionedImages,
    processes: Processes,
) -> None:
    """Raise InputError now for anything that a later stage would refuse after hours."""
    count = len(images)
    if config.places:
        boxes_of(images)
    for stage in stages:
        options = getattr(settings, stage)
        check_batch(
            count,
            options.batch_size,
            processes.count,
            options.accumulate,
            setting=f"--set {stage}.batch_size",
        )
    if "gan" in stages and isinstance(config, CascadeConfig):
        assert isinstance(settings, CascadeTrainingSettings)
        check_cascade(config, settings.gan, processes.count * settings.gan.accumulate)
    apart = {"stem", *GAN_STAGES}.intersection(stages)  # which use other pictures' captions
    if apart and count > 1 and len({images.label(i) for i in range(count)}) == 1:
        raise InputError(
            f"all {count} pictures are of class {images.label(0)}: nothing tells them apart; leave "
            f"the classes out, and each is one of its own"
        )


def _start(
    folder: Path, config: TextToImageConfig, init_from: TextToImage | None
) -> TextToImage | None:
    """Return the model that a run started from, or that a new run is to start from."""
    system = system_of(config)
    if os.path.lexists(folder / START):
        return system.from_pretrained(folder / START)
    if init_from is None:
        return None
    if os.path.lexists(folder / CONFIG):
        raise InputError(
            f"{folder}: holds a run that did not start from a trained model; choose another folder"
        )
    if not isinstance(init_from, system):
        raise InputError(
            f"the model to start from is of the system {init_from.SYSTEM!r}, the run is of "
            f"{system.SYSTEM!r}"
        )
    check_sizes(init_from.config, config)
    return init_from


def _part(model: TextToImage | None, prefix: str) -> dict[str, Tensor] | None:
    """Return the weights of a part of a model, if there is a model."""
    if model is None:
        return None
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in model.state_dict().items()
        if name.startswith(prefix)
    }


def _trained_cnn(
    encoder: str, folder: Path, start: TextToImage | None, prefix: str
) -> dict[str, Tensor] | None:
    """Return the weights of DAMSM's or STREAM's CNN, if it was trained before.

    It was if it is the small one, or if the run starts from a trained model, where the names of its
    weights begin with ``prefix``.
    """
    if start is not None:
        return _part(start, prefix)
    if encoder != "small":
        return None
    cnn = SmallImageEncoder()
    load_weights_of(folder / "cnn", cnn, prefix="cnn.")
    return cnn.state_dict()


def _claim(
    folder: Path, config: TextToImageConfig, vocabulary: Vocabulary, start: TextToImage | None
) -> None:
    """Write the model's description, and what it starts from, into a new run's folder.

    If there is a run already, it is compared.
    """
    if not os.path.lexists(folder / CONFIG):
        if start is not None and not os.path.lexists(folder / START):
            with whole_folder(folder / START) as unfinished:
                start.save_pretrained(unfinished)
        save_description(folder, system_of(config).SYSTEM, config, vocabulary)
        return
    check_description(folder, config)
    words = load_vocabulary(folder)
    if words.words != vocabulary.words:
        raise InputError(
            f"{folder}: holds a run on other captions ({len(words)} words, now {len(vocabulary)}); "
            f"go on with the same data, or in another folder"
        )
