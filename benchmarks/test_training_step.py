"""Training steps on the CPU, with the parts apart: G and D forward and backward, R1, Adam, EMA."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.harness import Comparison, PartedCall, Work
from benchmarks.shapes import TRAINING_STEPS, StepShape
from benchmarks.training_step import CPU, Ours, Plain
from mirrorgan_fast.recipes import find_recipe
from mirrorgan_fast.training.precision import Precision, fastest_precision


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("shape", TRAINING_STEPS, ids=lambda shape: f"{shape.recipe}x{shape.batch}")
def test_training_step(comparison: Comparison, shape: StepShape, precision: Precision) -> None:
    if precision == "bf16" and fastest_precision(CPU) != "bf16":
        pytest.skip("this processor computes in float32, and would emulate bfloat16")
    recipe, batch = find_recipe(shape.recipe), shape.batch
    alternatives: dict[str, PartedCall] = {"eager": Plain(recipe, batch, "fp32")}
    if precision == "bf16":
        alternatives["eager_bf16"] = Plain(recipe, batch, "bf16")
        alternatives["compiled"] = Plain(recipe, batch, "bf16", compiled=True)
    else:
        alternatives["compiled_fp32"] = Plain(recipe, batch, "fp32", compiled=True)
    with torch.enable_grad():
        work = least_work(Plain(recipe, batch, "fp32"), precision)
        comparison.run_parts(Ours(recipe, batch, precision), alternatives, work)


def least_work(step: Plain, precision: Precision) -> Work:
    """Return the products of a plain step, and the bytes of its parameters, moments and average.

    The counter does not take second derivatives, so R1 is left out, a tenth of the whole.
    """
    counter = FlopCounterMode(display=False)
    with counter:
        step(penalized=False)
    sizes = sum(parameter.nbytes for parameter in step.parameters())
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    # Weights and both moments are read and written, gradients at least read
    return Work(counter.get_total_flops(), 7 * sizes, dtype)
