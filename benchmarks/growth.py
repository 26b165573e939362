"""The cost of larger batches and longer captions, for the generator of `cub`, measured in turns.

python -m benchmarks.growth [SECONDS]
"""

import statistics
import sys
import time

import torch

from benchmarks.cub_model import inputs_of, model_of_cub
from mirrorgan_fast.inference.renderer import fuse
from mirrorgan_fast.memory import keep_memory

FEW, MANY = 8, 64
SHORT, LONG = 18, 128


def main(seconds: float) -> None:
    """Print the medians."""
    keep_memory()
    model = model_of_cub()
    fused = fuse(model)
    cases = [(FEW, SHORT), (MANY, SHORT), (FEW, LONG)]
    inputs = [inputs_of(model, *case) for case in cases]

    def of_an_image(case: int) -> float:
        batch = cases[case][0]
        start = time.perf_counter()
        for _ in range(MANY // batch):  # as many images in each turn
            fused.render(*inputs[case])
        return time.perf_counter() - start

    turns: list[list[float]] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(turns) < 4:
        turns.append([of_an_image(case) for case in range(len(cases))])
    del turns[0]
    batches, words = (
        statistics.median(turn[case] / turn[0] for turn in turns) for case in range(1, len(cases))
    )
    print(f"{len(turns)} turns of {MANY} images each")
    print(f"an image, in a batch of {MANY} against one of {FEW}: {batches:.2f}")
    print(f"an image, of {LONG} words against {SHORT}: {words:.2f}")


if __name__ == "__main__":
    with torch.no_grad():
        main(float(sys.argv[1]) if len(sys.argv) > 1 else 60.0)
