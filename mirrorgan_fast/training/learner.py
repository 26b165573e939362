"""A learner: networks with their optimizer, and what every training step does with a loss."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mirrorgan_fast.training.computation import FP32, Computation


class LossScale(nn.Module):
    """The factor on a loss in fp16, without which small gradients would be rounded to zero.

    A step whose gradients overflow halves it, and 2,000 steps in a row without one double it, as in
    ``torch.amp.GradScaler``, whose count is not on the device. It is part of the checkpoint.
    """

    scale: Tensor
    good: Tensor
    overflows: Tensor
    failed: Tensor

    _DOUBLED_AFTER = 2_000
    _MOST_OVERFLOWS = 10

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(2.0**16, device=device))
        for name in ("good", "overflows", "failed"):  # good steps and overflows in a row
            self.register_buffer(name, torch.tensor(0, device=device))

    def update(self, overflow: Tensor) -> None:
        """Adapt the scale after a step, without waiting for a GPU.

        Args:
            overflow: bool, whether the step's gradients were not finite.
        """
        self.overflows = torch.where(overflow, self.overflows + 1, 0)
        at_lowest = overflow & (self.scale <= 1)
        self.failed = self.failed | at_lowest | (self.overflows >= self._MOST_OVERFLOWS)
        self.good = torch.where(overflow, 0, self.good + 1)
        doubles = self.good == self._DOUBLED_AFTER
        self.good = torch.where(doubles, 0, self.good)
        halved = (self.scale / 2).clamp(min=1)
        self.scale = torch.where(overflow, halved, torch.where(doubles, 2 * self.scale, self.scale))


class Learner:
    """Networks that learn together with one AdamW optimizer.

    A training step only states its loss; ``lower`` does the rest: gradients, their mean over
    processes, clipping, the learning rate of the step, and AdamW's step. A step whose gradients are
    not finite changes neither the parameters nor AdamW's state, and is counted, without the host
    waiting for a GPU.

    Args:
        module: the networks. Parameters that do not require gradients now are never changed.
        learning_rate: at the start.
        betas: of AdamW.
        clip: the largest norm that all gradients together may have; None or 0: any.
        weight_decay: of AdamW.
        computation: the precision, the processes that share a batch, and the number of parts that a
            batch is accumulated from.
    """

    def __init__(
        self,
        module: nn.Module,
        learning_rate: float,
        betas: tuple[float, float] = (0.9, 0.999),
        *,
        clip: float | None = None,
        weight_decay: float = 0.0,
        computation: Computation = FP32,
    ) -> None:
        self.module = module
        self.learning_rate = learning_rate
        self.clip = clip
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.adam = torch.optim.AdamW(
            self.parameters, learning_rate, betas, weight_decay=weight_decay, fused=True
        )
        device = self.parameters[0].device
        self.loss_scale = LossScale(device) if computation.precision == "fp16" else None
        """The factor on the loss; None: in a precision that needs none."""
        self.norm = torch.zeros((), device=device)
        """The norm of all gradients of the last step, before clipping; 0 if it was not finite."""
        self._processes, self._parts = computation.processes, computation.accumulate
        self._statistics: list[Tensor] = []
        if self.loss_scale is not None:
            self._statistics = [b for b in module.buffers() if b.is_floating_point()]
        self._finite: list[Tensor] = []  # the last statistics that were
        self._lowered = 0
        self._skipped = torch.zeros((), dtype=torch.int64, device=device)
        self._processes.copy_first([*module.parameters(), *module.buffers()])

    def lower(self, loss: Tensor, pace: float = 1.0) -> bool:
        """Take one step of AdamW down the gradient of a loss.

        If a batch is accumulated from several parts, only the call for its last part takes the
        step, down the mean of their gradients.

        Args:
            loss: a scalar.
            pace: factor on the learning rate in this step.

        Returns:
            whether this call took the step.
        """
        if self._lowered == 0:
            self.adam.zero_grad()
        scale = self.loss_scale
        (loss if scale is None else loss * scale.scale).backward()
        self._lowered += 1
        if self._lowered < self._parts:
            return False
        self._lowered = 0
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        self._processes.add_up(gradients)
        shares = self._processes.count * self._parts
        if scale is not None:
            torch._foreach_mul_(gradients, 1 / (scale.scale * shares))
        elif shares > 1:
            torch._foreach_mul_(gradients, 1 / shares)
        norm = nn.utils.clip_grad_norm_(self.parameters, self.clip or torch.inf)
        skip = ~norm.isfinite()
        self.norm = torch.where(skip, 0, norm)
        self._skipped += skip
        if scale is not None:
            scale.update(skip)
        for group in self.adam.param_groups:
            group["lr"] = self.learning_rate * pace
        # A fused AdamW skips its step if found_inf is 1; GradScaler uses the same flag.
        self.adam.found_inf = skip.float()  # type: ignore[attr-defined]
        self.adam.step()
        self.mend_statistics()
        return True

    @torch.no_grad()
    def mend_statistics(self) -> None:
        """In fp16, set statistics of batch norms that are not finite back to what they were.

        An overflow in a forward pass changes no weight, but it leaves NaN or infinity in them.
        """
        if not self._finite:
            self._finite = [torch.zeros_like(tensor) for tensor in self._statistics]
        for tensor, finite in zip(self._statistics, self._finite, strict=True):
            finite.copy_(torch.where(tensor.isfinite(), tensor, finite))
            tensor.copy_(finite)

    def failure(self) -> str | None:
        """Return why the training cannot go on, if it cannot. On a GPU, this waits for all steps.

        In fp16, a skipped step lowers the scale of the loss and is no failure, but ten in a row
        are, or one at the lowest scale.
        """
        skipped = int(self._skipped)
        if self.loss_scale is None:
            return f"were not finite in {skipped} steps" if skipped else None
        if int(self.loss_scale.failed):
            return f"overflowed in fp16 at every scale of the loss ({skipped} steps were skipped)"
        return None

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Inside the block, gradients flow through these networks, but not to their parameters."""
        for parameter in self.parameters:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in self.parameters:
                parameter.requires_grad_(True)
