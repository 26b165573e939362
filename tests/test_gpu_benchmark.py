"""The benchmark for GPUs, as far as it runs without one: its cases on the CPU, small."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from gpu import ROUNDS, check, contest, table
from gpu_cases import SMALL, cases

ALL = list(cases("cpu", SMALL))


@pytest.mark.parametrize("case", ALL, ids=[case.name for case in ALL])
def test_ours_and_plain_pytorch_give_the_same(case, assert_matches) -> None:
    ours, eager = case.ours(), case.eager()
    if case.name.startswith("training step"):
        return  # it trains, and gives nothing
    one, other = (got if isinstance(got, tuple) else (got,) for got in (ours, eager))
    for a, b in zip(one, other, strict=True):
        assert a.shape == b.shape
        if a.dtype == torch.uint8:
            assert (a.float() - b.float()).abs().mean() < 1.5
        else:
            difference = (a.double() - b.double()).norm() / b.double().norm()
            assert difference < 2e-2


def test_a_contest_takes_turns_and_its_table_says_who_won(monkeypatch) -> None:
    taken = iter([1.0, 3.0] * ROUNDS)
    monkeypatch.setattr("gpu.seconds", lambda call: next(taken))
    case = ALL[0]._replace(operations=6.0, nbytes=1.0, images=4)
    found = contest(case, None, {"copied": 10.0, "multiplied": 12.0})
    assert found["seconds"] == {"ours": 1.0, "eager": 3.0}
    assert found["of_limit"] == 0.5
    report = {
        "machine": {"gpu": "H", "torch": "2", "triton": "3", "cuda": "13"},
        "limits": {"copied": 4e12, "multiplied": 8e14},
        "checks": {"tests": {"status": 0, "seconds": 1.5}},
        "cases": [found],
        "not_measured": ["a case"],
    }
    text = table(report)
    assert f"| {case.name} | 1000000 us | 4 | 3.0 |  | 50% |" in text
    assert "copies 4.00 TB/s, multiplies 800 TFLOP/s" in text
    assert text.endswith("Not measured: a case\n")


def test_a_check_tells_its_status_and_ends_when_no_time_is_left() -> None:
    code = "import sys, time; print('so far', flush=True); time.sleep({}); sys.exit(3)"
    found = check("tests", [sys.executable, "-c", code.format(0)], 60)
    assert (found["status"], found["printed"]) == (3, "so far\n")
    found = check("tests", [sys.executable, "-c", code.format(60)], 1)
    assert found["status"] == 124
    assert found["seconds"] < 30


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so() -> None:
    root = Path(__file__).parents[1]
    command = [sys.executable, "-m", "benchmarks.gpu"]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "no GPU" in result.stderr
    assert "Traceback" not in result.stderr
