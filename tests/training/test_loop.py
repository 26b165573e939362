"""The loop: when it validates, draws and saves, and what a checkpoint gets."""

from pathlib import Path

import torch
from torch import Tensor, nn

from mirrorgan_fast.data.examples import TrainingExamples
from mirrorgan_fast.training.batches import Batch, Batches
from mirrorgan_fast.training.checkpoint import load_checkpoint
from mirrorgan_fast.training.learner import Learner
from mirrorgan_fast.training.loop import Part, fit
from mirrorgan_fast.training.run import Run

from .runs import HERE


class Line:
    """Learns one number."""

    def __init__(self) -> None:
        self.learner = Learner(nn.Linear(1, 1), 0.1)

    def parts(self) -> dict[str, Part]:
        return {"model": self.learner.module, "adam": self.learner.adam}

    def learners(self) -> dict[str, Learner]:
        return {"line": self.learner}

    def step(self, step: int, epoch: int, batch: Batch) -> dict[str, Tensor]:
        loss = self.learner.module(torch.ones(1, 1)).square().mean()
        self.learner.lower(loss)
        return {"loss": loss.detach()}


def test_what_is_called_when(tmp_path: Path, examples: TrainingExamples) -> None:
    validated: list[int] = []
    drawn: list[int] = []

    def validate(steps: int) -> dict[str, float]:
        validated.append(steps)
        return {"held_out": float(steps)}

    for steps, expected in ((7, ([3, 6, 7], [2, 4, 6, 7])), (9, ([9], [8, 9]))):
        validated.clear()
        drawn.clear()
        task = Line()
        with Run(tmp_path, steps, {}, log_every=5, save_every=4, quiet=True) as run:
            fit(
                task,
                run,
                Batches(examples, 5, 0, HERE),
                validate=validate,
                validate_every=3,
                sheet=drawn.append,
                sheet_every=2,
            )
        assert (validated, drawn) == expected
        checkpoint = load_checkpoint(tmp_path)
        assert checkpoint["step"] == steps
        for name, tensor in task.learner.module.state_dict().items():
            assert torch.equal(checkpoint["model"][name], tensor)
    curves = (tmp_path / "curves.jsonl").read_text()
    assert '{"step": 3, "held_out": 3.0}' in curves
