"""A learner: networks with their optimizer, and what every training step does with a loss."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Learner:
    """Networks that learn together with one AdamW optimizer.

    A training step only states its loss; ``lower`` does the rest: gradients, clipping, the learning
    rate of the step, and AdamW's step. A step whose gradients are not finite changes neither the
    parameters nor AdamW's state, and is counted, without the host waiting for a GPU.

    Args:
        module: the networks. Parameters that do not require gradients now are never changed.
        learning_rate: at the start.
        betas: of AdamW.
        clip: the largest norm that all gradients together may have; None or 0: any.
        weight_decay: of AdamW.
    """

    def __init__(
        self,
        module: nn.Module,
        learning_rate: float,
        betas: tuple[float, float] = (0.9, 0.999),
        *,
        clip: float | None = None,
        weight_decay: float = 0.0,
    ) -> None:
        self.module = module
        self.learning_rate = learning_rate
        self.clip = clip
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.adam = torch.optim.AdamW(
            self.parameters, learning_rate, betas, weight_decay=weight_decay, fused=True
        )
        self.skipped = torch.zeros((), dtype=torch.int64, device=self.parameters[0].device)
        """How many steps were skipped."""

    def lower(self, loss: Tensor, pace: float = 1.0) -> None:
        """Take one step of AdamW down the gradient of a loss.

        Args:
            loss: a scalar.
            pace: factor on the learning rate in this step.
        """
        for group in self.adam.param_groups:
            group["lr"] = self.learning_rate * pace
        self.adam.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.parameters, self.clip or torch.inf)
        skip = ~norm.isfinite()
        self.skipped += skip
        # A fused AdamW skips its step if found_inf is 1; GradScaler uses the same flag.
        self.adam.found_inf = skip.float()  # type: ignore[attr-defined]
        self.adam.step()

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
