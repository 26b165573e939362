"""Where and how a training computes."""

from dataclasses import dataclass
from pathlib import Path

import torch

from mirrorgan_fast.processes import ALONE, Processes


@dataclass(frozen=True)
class Execution:
    """Where and how a training computes; a resumed run may choose anew, except ``compiled``."""

    device: torch.device
    """Where to train."""
    workers: int = 1
    """Processes that read images; 0: this process reads them."""
    compiled: bool | None = None
    """Whether ``torch.compile`` compiles the generator of a GAN, which takes a minute or two at the
    start. None: as in the checkpoint; a new run does not compile."""
    real_row: bool = True
    """Whether the sheets of samples have a row of real pictures."""
    quiet: bool = False
    """Whether to show no progress bars."""
    processes: Processes = ALONE
    """The processes that train together. A resumed run may have another number."""
    changes: frozenset[str] = frozenset()
    """Settings that may differ from those of a checkpoint, such as "gan.learning_rate". They take
    effect from its step on, which changes.jsonl in the stage's folder records."""
    cache: Path | None = None
    """The folder for prepared pictures; None: pictures are decoded each time they are used."""
    strict: bool = False
    """Whether a picture that cannot be trained on stops the training, instead of being left out."""
