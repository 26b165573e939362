"""Training of CycleGAN's generators against its discriminators."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from mirrorgan_fast.data.prepared_pictures import check_pictures
from mirrorgan_fast.data.unpaired import Unpaired, UnpairedExamples, first_of
from mirrorgan_fast.errors import InputError
from mirrorgan_fast.files import whole_folder
from mirrorgan_fast.models.config import CycleGANConfig
from mirrorgan_fast.models.cyclegan import CycleGAN, PatchDiscriminator
from mirrorgan_fast.ops.wide import wide
from mirrorgan_fast.pictures import to_signed, to_uint8, write_sheet
from mirrorgan_fast.processes import Processes
from mirrorgan_fast.training.average import MovingAverage
from mirrorgan_fast.training.batches import Batch, Batches
from mirrorgan_fast.training.computation import Computation
from mirrorgan_fast.training.description import check_description
from mirrorgan_fast.training.execution import Execution
from mirrorgan_fast.training.fine_tuning import START
from mirrorgan_fast.training.learner import Learner
from mirrorgan_fast.training.loop import Part, fit
from mirrorgan_fast.training.objectives import (
    least_squares_loss,
    matching_discriminator_loss,
    saturating_loss,
)
from mirrorgan_fast.training.run import Unsaid, dependencies, open_run, started_from
from mirrorgan_fast.training.settings import CycleGANSettings, CycleGANTrainingSettings
from mirrorgan_fast.weights import CONFIG, save_description

_SHOWN = 8
"""Pictures of each domain on a sheet."""


class CycleGANTraining:
    """CycleGAN (Zhu et al., section 3): L_GAN both ways, + lambda L_cyc, + L_identity.

    - ``form="authors"``: least squares. A discriminator's loss is half of
      (D(y) - 1)^2 + D(G(x))^2, a generator's is (D(G(x)) - 1)^2.
    - ``form="paper"``: E log D(y) + E log(1 - D(G(x))), which D raises and G lowers.

    As in the authors' code for PyTorch, both generators take a step together, then both
    discriminators, who see generated images from a pool.

    Args:
        config: the sizes of the networks.
        settings: of this training.
        computation: how a step computes.
        compiled: whether ``torch.compile`` compiles the networks.
    """

    def __init__(
        self,
        config: CycleGANConfig,
        settings: CycleGANSettings,
        computation: Computation,
        *,
        compiled: bool,
    ) -> None:
        self.settings, self.computation = settings, computation
        self.model = CycleGAN(config)
        self.D_X, self.D_Y = PatchDiscriminator(config), PatchDiscriminator(config)
        self.D = nn.ModuleDict({"X": self.D_X, "Y": self.D_Y})
        for network in (self.model, self.D):
            network.to(computation.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = MovingAverage(self.model, settings.average_decay)
        size = settings.pool_size
        self.pools = nn.ModuleDict(
            {name: ImagePool(size, config.image_size, computation) for name in ("X", "Y")}
        )
        self.G_learner, self.D_learner = (
            Learner(network, learning_rate, settings.betas, computation=computation)
            for network, learning_rate in (
                (self.model, settings.learning_rate),
                (self.D, settings.discriminator_learning_rate),
            )
        )
        networks = (self.model.G, self.model.F, self.D_X, self.D_Y)
        self._G, self._F, self._D_X, self._D_Y = (
            torch.compile(network) if compiled else network for network in networks
        )

    def parts(self) -> dict[str, Part]:
        """Return what a checkpoint holds."""
        return {
            "generators": self.model,
            "D": self.D,
            "average": self.average.network,
            "pools": self.pools,
            "G_adam": self.G_learner.adam,
            "D_adam": self.D_learner.adam,
        }

    def learners(self) -> dict[str, Learner]:
        """Return the learners by their networks."""
        return {"D": self.D_learner, "G": self.G_learner}

    def step(self, step: int, epoch: int, batch: Batch) -> dict[str, Tensor]:
        """Lower the generators' loss, then the discriminators'; then average the generators."""
        settings, pace, device = self.settings, self.settings.pace(step), self.computation.device
        G, F, D_X, D_Y = self._G, self._F, self._D_X, self._D_Y
        x, y = to_signed(batch["x"], device), to_signed(batch["y"], device)
        with self.D_learner.frozen():
            with self.computation.autocast():
                if settings.identity_weight:  # an image of the domain is to stay as it is
                    fake_y, same_y = G(torch.cat([x, y])).chunk(2)
                    fake_x, same_x = F(torch.cat([y, x])).chunk(2)
                    identity = distance(same_x, x) + distance(same_y, y)
                else:
                    fake_y, fake_x, identity = G(x), F(y), x.new_zeros(())
                cycle = distance(F(fake_y), x) + distance(G(fake_x), y)
                adversarial = self.generator_loss(D_Y(fake_y)) + self.generator_loss(D_X(fake_x))
                loss_G = adversarial + settings.cycle_weight * (
                    cycle + settings.identity_weight * identity
                )
            lowered = self.G_learner.lower(loss_G, pace)

        seen_x, seen_y = self.pools["X"](fake_x.detach()), self.pools["Y"](fake_y.detach())
        with self.computation.autocast():
            loss_X = self.discriminator_loss(D_X(torch.cat([x, seen_x])))
            loss_Y = self.discriminator_loss(D_Y(torch.cat([y, seen_y])))
        self.D_learner.lower(loss_X + loss_Y, pace)
        if lowered:
            self.average.update(self.model, step)
        figures = {
            "D_X": loss_X,
            "D_Y": loss_Y,
            "G": adversarial,
            "cycle": cycle,
            "identity": identity,
        }
        return {name: value.detach() for name, value in figures.items()}

    def discriminator_loss(self, logits: Tensor) -> Tensor:
        """Return L_D of the logits (2N, 1, H, W) of N real and then N generated images."""
        real, fake = logits.chunk(2)
        if self.settings.form == "paper":
            return matching_discriminator_loss(real, fake)
        return (least_squares_loss(real, 1.0) + least_squares_loss(fake, 0.0)) / 2

    def generator_loss(self, logits: Tensor) -> Tensor:
        """Return what the generators' loss has of a discriminator's logits (N, 1, H, W)."""
        if self.settings.form == "paper":
            return saturating_loss(logits)
        return least_squares_loss(logits, 1.0)


class ImagePool(nn.Module):
    """Generated images that a discriminator sees again (Shrivastava et al., 2017).

    Until it is full, it stores each new image and returns it. Then it returns the new one or, with
    a probability of one half, a stored one, which the new one replaces. It is the same in all
    processes: each sees the images of the whole batch.

    Args:
        size: the number of images it holds; 0: it returns every image.
        image_size: of the images, in pixels a side.
        computation: the device and the processes.
    """

    images: Tensor
    stored: Tensor

    def __init__(self, size: int, image_size: int, computation: Computation) -> None:
        super().__init__()
        self._processes: Processes = computation.processes
        shape = (size, 3, image_size, image_size)
        self.register_buffer("images", torch.zeros(shape, device=computation.device))
        self.register_buffer("stored", torch.tensor(0))  # on the CPU: a GPU would have to wait

    def forward(self, new: Tensor) -> Tensor:
        """Store or return each of this process's images (N, 3, S, S), in float32 or wider."""
        size = len(self.images)
        if not size:
            return wide(new)
        whole = self._processes.gathered(wide(new))
        returned = whole.clone()
        keeps, places = torch.rand(len(whole)) < 0.5, torch.randint(size, (len(whole),))
        for i in range(len(whole)):
            if int(self.stored) < size:
                self.images[int(self.stored)] = whole[i]
                self.stored += 1
            elif not keeps[i]:
                returned[i] = self.images[places[i]]
                self.images[places[i]] = whole[i]
        return self._processes.own(returned)


def distance(images: Tensor, others: Tensor) -> Tensor:
    """Return the L1 distance of images, the mean over all numbers."""
    return functional.l1_loss(wide(images), wide(others))


def train_cyclegan(
    config: CycleGANConfig,
    settings: CycleGANTrainingSettings,
    unpaired: Unpaired,
    folder: Path,
    execution: Execution,
    *,
    init_from: CycleGAN | None = None,
    begin: Callable[[], None] = lambda: None,
) -> CycleGAN:
    """Train a CycleGAN, and write the model into the run's folder.

    The stage's own folder is ``gan`` in it, with checkpoints, curves and sheets of translations; a
    run resumes from its checkpoint.

    Args:
        config: the sizes of the networks.
        settings: of the training.
        unpaired: the pictures of both domains; see ``check_pictures`` for those that cannot be
            trained on.
        folder: of the run; created if it does not exist.
        execution: where and how to train.
        init_from: a trained model whose generators a new run starts from; the run keeps it in its
            folder ``start``.
        begin: called when everything has been checked, before the first step.

    Returns:
        the moving average of the generators.

    Raises:
        InputError: the folder holds a run of another model or on other pictures; see also
            ``check_pictures``, ``Run``, ``Batches`` and ``fit``.
    """
    options, device, processes = settings.gan, execution.device, execution.processes
    check_description(folder, config)
    start = _start(folder, config, init_from)
    parts = [
        check_pictures(
            images,
            config.image_size,
            settings.augment,
            captioned=False,
            cache=execution.cache,
            workers=execution.workers,
            strict=execution.strict,
            quiet=execution.quiet,
        )
        for images in (unpaired.x, unpaired.y)
    ]
    left = Unpaired(parts[0].images, parts[1].images, unpaired.names)
    examples = UnpairedExamples(left, (parts[0].prepared, parts[1].prepared), settings.seed)
    batches = Batches(
        examples, options.batch_size, settings.seed, execution, options.accumulate, least=1
    )

    def claim() -> None:
        if not os.path.lexists(folder / CONFIG):
            if start is not None and not os.path.lexists(folder / START):
                with whole_folder(folder / START) as unfinished:
                    start.save_pretrained(unfinished)
            save_description(folder, CycleGAN.SYSTEM, config)
        begin()

    processes.once(claim)
    needs = dependencies(config, settings, options, examples.digest(), device)
    compiled = execution.compiled
    weights = None if start is None else start.state_dict()
    needs |= started_from(weights)
    needs["compiled"] = Unsaid(False, (False, True)) if compiled is None else compiled
    with open_run(folder / "gan", options, settings, needs, execution) as run:
        torch.manual_seed(settings.seed)
        compiled = run.settings["compiled"]
        task = CycleGANTraining(config, options, run.computation(execution), compiled=compiled)
        if weights is not None:
            for network in (task.model, task.average.network):
                network.load_state_dict(weights)
        x, y = (to_signed(pictures, device) for pictures in first_of(examples, _SHOWN))
        model = task.average.network

        def draw(steps: int) -> None:
            if processes.rank > 0:
                return
            path = folder / "gan" / "samples" / f"{steps:07d}.png"
            with task.computation.autocast():
                write_translations(path, model, x, y)
            run.show_file(steps - 1, "samples", path)

        fit(task, run, batches, sheet=draw, sheet_every=settings.sheet_every)
    processes.once(lambda: model.save_pretrained(folder))
    return model


def _start(folder: Path, config: CycleGANConfig, init_from: CycleGAN | None) -> CycleGAN | None:
    """Return the model that a run started from, or that a new run is to start from.

    Raises:
        InputError: the run did not start from a model, or the model's generators have other sizes.
    """
    if os.path.lexists(folder / START):
        return CycleGAN.from_pretrained(folder / START)
    if init_from is None:
        return None
    if os.path.lexists(folder / CONFIG):
        raise InputError(
            f"{folder}: holds a run that did not start from a trained model; choose another folder"
        )
    for name in ("generator_channels", "residual_blocks"):
        before, now = getattr(init_from.config, name), getattr(config, name)
        if before != now:
            raise InputError(
                f"the model that the run starts from has {name} {before}, the run has {now}"
            )
    return init_from


@torch.no_grad()
def write_translations(path: Path, model: CycleGAN, x: Tensor, y: Tensor) -> None:
    """Write a sheet with a column for each picture, as a PNG file.

    Its rows are x, G(x), F(G(x)), then y, F(y) and G(F(y)).

    Args:
        path: of the file.
        model: the generators.
        x: pictures of X, (N, 3, S, S) in [-1, 1].
        y: of Y, as many.

    Raises:
        InputError: it cannot be written.
    """
    rows = []
    for images, there, back in ((x, model.G, model.F), (y, model.F, model.G)):
        translated = there(images)
        rows += [images, translated, back(translated)]
    write_sheet(path, list(np.concatenate([to_uint8(row).cpu() for row in rows])), columns=len(x))
