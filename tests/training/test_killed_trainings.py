"""Trainings that are killed again and again end with the same bits as undisturbed ones."""

import random
import time
from pathlib import Path
from typing import Any

import pytest

from mirrorgan_fast.training.checkpoint import load_checkpoint

from .runs import curves
from .together import How, start, together

STAGES = ("cnn", "stem", "stream", "gan")
OTHERS = ("stackgan-v2", "stackgan", "gan-int-cls", "gawwn", "cyclegan/gan")
"""Of the systems without attention. The first stage of StackGAN comes before its second."""
LONG = How(steps=24)
KILLS = 20


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("stages", [STAGES, OTHERS], ids=["mirrorgan", "others"])
def test_twenty_kills_change_no_bit(
    tmp_path: Path, stages: tuple[str, ...], count: int, assert_same: Any
) -> None:
    """At random moments in all stages: a random process is killed, the others end by themselves."""
    began = time.monotonic()
    assert together(count, tmp_path / "whole", *stages, how=LONG) == [0] * count
    seconds = time.monotonic() - began
    randomly = random.Random(count)
    killed = tmp_path / "killed"
    kills = 0
    while kills < KILLS:
        processes = start(count, killed, *stages, how=LONG)
        victim = randomly.choice(processes)
        # some are killed while they load, most in a step, some while they write
        victim.join(randomly.uniform(0.1, seconds / 9))
        kills += victim.exitcode is None
        finished = victim.exitcode == 0
        victim.kill()
        for process in processes:
            process.join(60)
            assert process.exitcode is not None
        if finished:
            break
    assert kills > KILLS / 2
    assert together(count, killed, *stages, how=LONG) == [0] * count
    trained = [*stages, *(["stage1"] if "stackgan" in stages else [])]
    for stage in trained:
        resumed, undisturbed = (
            load_checkpoint(tmp_path / run / stage) for run in ("killed", "whole")
        )
        assert_same(resumed, undisturbed)
        assert curves(killed / stage) == curves(tmp_path / "whole" / stage)
    print(f"{kills} kills, {count} processes")
