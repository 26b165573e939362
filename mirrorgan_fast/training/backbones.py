"""The CNN that a training starts with: ImageNet's weights, random ones, or a trained small CNN."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from mirrorgan_fast.errors import InputError
from mirrorgan_fast.models.backbones.efficientnet_lite import EfficientNetLite
from mirrorgan_fast.models.backbones.small import SmallImageEncoder
from mirrorgan_fast.training.checkpoint import CHECKPOINT, fingerprint
from mirrorgan_fast.training.run import Run, Unsaid
from mirrorgan_fast.training.settings import Stage

BackboneWeights = Path | Literal["random"]
"""A file of ImageNet weights for a large CNN, or "random" to train it from nothing."""
WITHOUT_FILE = ("efficientnet_lite0", "small")
"""The CNNs that start from no file: one comes with the package, the other is trained first."""
_ORIGIN = "weights that the CNN began with"


def check_backbone(
    stage: Stage, encoder: str, weights: BackboneWeights | None, folder: Path
) -> None:
    """Check that a large CNN has weights to start from.

    Args:
        stage: "stem" or "stream", whose CNN it is.
        encoder: its name; those in ``WITHOUT_FILE`` need none.
        weights: what was given for it.
        folder: of the stage's run; if it has a checkpoint, the CNN's weights are in there.

    Raises:
        InputError: there are none.
    """
    if encoder not in WITHOUT_FILE and weights is None and not os.path.lexists(folder / CHECKPOINT):
        raise InputError(
            f"train {stage}: {encoder} has no weights to begin with; give ImageNet's, as "
            f"torchvision has them (--{stage}-weights FILE), or train it from random ones on "
            f"purpose (--{stage}-weights random); the recipe photos has a CNN that needs no file"
        )


def file_of(weights: BackboneWeights | None) -> Path | None:
    """Return the file to load, if there is one."""
    return None if weights == "random" else weights


def origin(cnn: nn.Module, weights: BackboneWeights | None) -> dict[str, Any]:
    """Return the setting that says which weights a large CNN started from.

    Args:
        cnn: with these weights; one that starts from no file has no such setting.
        weights: what was given for it; None: the checkpoint says it.
    """
    if isinstance(cnn, SmallImageEncoder | EfficientNetLite):
        return {}
    if weights is None:
        return {_ORIGIN: Unsaid(None)}
    return {_ORIGIN: weights if weights == "random" else fingerprint(cnn.state_dict())}


def freeze_backbone(cnn: nn.Module, run: Run) -> None:
    """Freeze a CNN that started from ImageNet's weights, also when its run resumes.

    It is in evaluation mode, as it is when the generator is trained: its features of an image do
    not depend on the batch.
    """
    if run.settings.get(_ORIGIN, "random") != "random":
        cnn.eval().requires_grad_(False)


def load_trained_cnn(cnn: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load a CNN that was trained before, and freeze it as ImageNet's CNNs are.

    If the small CNN trains on beside parts that are still random, it unlearns: STREAM's
    cross-entropy on painted birds was 1.30 after 1,750 steps with it, and after 1,000 with a frozen
    CNN.
    """
    cnn.load_state_dict(weights)
    cnn.eval().requires_grad_(False)
