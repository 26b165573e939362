"""The GPU benchmark, tested without a GPU: small cases run on the CPU."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import COMPILE_SECONDS, ROUNDS, check, compare, main, measure, table
from benchmarks.gpu_cases import SMALL, Case, backward, cases
from benchmarks.gpu_settings import (
    FIELDS,
    cost_of,
    descend,
    neighbors,
    replaced,
    setting_function,
    setting_of,
)
from benchmarks.triton_resources import calls, launches
from mirrorgan_fast.kernels import convolution
from mirrorgan_fast.kernels.settings import Setting

ALL = list(cases("cpu", SMALL))


@pytest.mark.parametrize("case", ALL, ids=[case.name for case in ALL])
def test_ours_and_plain_pytorch_give_the_same(case, assert_matches) -> None:
    ours, eager = case.ours(), case.eager()
    if case.name.startswith("training step"):
        return  # it returns nothing
    one, other = (got if isinstance(got, tuple) else (got,) for got in (ours, eager))
    for a, b in zip(one, other, strict=True):
        assert a.shape == b.shape
        if a.dtype == torch.uint8:
            assert (a.float() - b.float()).abs().mean() < 1.5
        else:
            difference = (a.double() - b.double()).norm() / b.double().norm()
            assert difference < 2e-2


def test_a_backward_begins_with_a_gradient_in_the_layout_of_the_result() -> None:
    """Otherwise the gradient is copied first, and the copy is timed too."""
    layouts: list[tuple[int, ...]] = []

    def run(x: torch.Tensor) -> torch.Tensor:
        result = 2 * x
        result.register_hook(lambda gradient: layouts.append(gradient.stride()))
        return result

    x = torch.ones(2, 3, 4, 5).to(memory_format=torch.channels_last)
    backward(run, [x])()
    assert layouts == [x.stride()]


def test_a_comparison_takes_turns_and_its_table_has_the_ratios(monkeypatch) -> None:
    taken = iter([1.0, 3.0] * ROUNDS)
    monkeypatch.setattr("benchmarks.gpu.seconds", lambda call: next(taken))
    case = ALL[0]._replace(operations=6.0, nbytes=1.0, images=4)
    found = compare(case, None, {"copied": 10.0, "multiplied": 12.0})
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


@pytest.mark.parametrize("seconds", [COMPILE_SECONDS + 1, COMPILE_SECONDS - 1, 10])
def test_cases_that_were_not_timed_are_listed(monkeypatch, seconds) -> None:
    """All cases run first without torch.compile, then with it in the time that is left."""
    turns: list[tuple[str, bool]] = []

    def found(case: Case, compiled: object, limits: object) -> dict[str, object]:
        turns.append((case.name, compiled is not None))
        if case.name == "b":
            raise RuntimeError("no memory")
        return {"name": case.name, "compiled": compiled}

    def made(*_: object, largest_first: bool) -> list[Case]:
        given = [Case(name, list, list, compiles=name != "c") for name in "abc"]
        return given[::-1] if largest_first else given

    monkeypatch.setattr("benchmarks.gpu.copied", lambda: 1.0)
    monkeypatch.setattr("benchmarks.gpu.multiplied", lambda: 1.0)
    monkeypatch.setattr("benchmarks.gpu.compile_", lambda case: "its")
    monkeypatch.setattr("benchmarks.gpu.compare", found)
    monkeypatch.setattr("benchmarks.gpu.cases", made)
    report: dict[str, list] = {"cases": [], "not_measured": []}
    kept: list[list[str]] = []
    measure(report, lambda: seconds, lambda: kept.append([*report["not_measured"]]))
    compiled = seconds > COMPILE_SECONDS
    failed = ": RuntimeError: no memory"
    if seconds == 10:
        assert (turns, report["cases"]) == ([], [])
        assert report["not_measured"][:3] == ["a", "b", "c"]
        return
    assert turns[:3] == [("a", False), ("b", False), ("c", False)]
    assert turns[3:] == ([("b", True), ("a", True)] if compiled else [])
    assert [case["name"] for case in report["cases"]] == ["a", "c"]
    assert report["cases"][0]["compiled"] == ("its" if compiled else None)
    rest = ["b, against torch.compile", "a, against torch.compile"]
    rest = [rest[0] + failed] if compiled else rest
    assert report["not_measured"] == ["b" + failed, *rest]
    assert ["a"] in kept  # while it ran
    assert kept[-1] == report["not_measured"]


def test_a_check_returns_its_status_and_ends_when_time_runs_out() -> None:
    code = "import sys, time; print('so far', flush=True); time.sleep({}); sys.exit(3)"
    found = check("tests", [sys.executable, "-c", code.format(0)], 60)
    assert (found["status"], found["printed"]) == (3, "so far\n")
    found = check("tests", [sys.executable, "-c", code.format(60)], 1)
    assert found["status"] == 124
    assert found["seconds"] < 30


def test_what_is_timed_later_keeps_what_the_checks_found(monkeypatch, tmp_path, capsys) -> None:
    def commanded(half: str) -> int:
        monkeypatch.setattr(sys, "argv", ["gpu", "--only", half, "--out", str(tmp_path)])
        return main()

    timed = {"name": "a case", "seconds": {"ours": 1.0, "eager": 2.0}}
    timed |= {"images_per_second": None, "of_limit": None}
    about = {"gpu": "NVIDIA H", "torch": "2", "triton": "3", "cuda": "13"}
    python = [sys.executable, "-c"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    monkeypatch.setattr("benchmarks.gpu.machine", lambda: about)
    checks = [("good", [*python, ""]), ("bad", [*python, "raise SystemExit(3)"])]
    monkeypatch.setattr("benchmarks.gpu.checks", lambda: checks)
    monkeypatch.setattr("benchmarks.gpu.measure", lambda report, *_: report["cases"].append(timed))
    assert commanded("checks") == 1
    assert commanded("cases") == 1
    report = json.loads((tmp_path / "gpu-nvidia-h.json").read_text())
    assert {name: found["status"] for name, found in report["checks"].items()} == {
        "good": 0,
        "bad": 3,
    }
    assert report["cases"] == [timed]
    text = (tmp_path / "gpu-nvidia-h.md").read_text()
    assert "| a case |" in text
    assert "bad: exit status 3" in text


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("module", ["benchmarks.gpu", "benchmarks.gpu_settings"])
def test_without_a_gpu_it_says_so(module) -> None:
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", module]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "no GPU" in result.stderr
    assert "Traceback" not in result.stderr


def test_every_op_on_triton_has_settings_to_be_found() -> None:
    asked = {setting_function(case.name) for case in ALL}
    assert asked == {None, *FIELDS}
    without = [case.name for case in ALL if setting_function(case.name) is None]
    for name in without:
        assert name.startswith(("the same in CUDA C++", "training step", "tokens to gray levels"))


@pytest.mark.parametrize(
    ("function", "about"),
    [
        ("convolution", "conv_glu, 64 x 128"),
        ("convolution", "conv_add, 64 x 128"),
        ("convolution", "image_head, 32 x 256"),
        ("attention_forward", "glam_attention_mix, authors, 18 words"),
        ("attention_backward", "glam_attention_mix backward, authors, 18 words"),
        ("batch_norm", "batch_norm_glu, 128 x 64, torch.bfloat16"),
        ("batch_norm", "batch_norm_leaky_relu, 128 x 64, torch.bfloat16"),
        ("word_similarity", "word_similarity, 18 words"),
    ],
)
def test_kernels_are_launched_with_the_setting_that_is_tried(function, about) -> None:
    call = dict(calls())[about]
    answer = Setting(rows=32, columns=64, depth=32, warps=2, stages=7)
    before = launches(call)
    with replaced(function, lambda *_: answer):
        tried = launches(call)
    assert any((launch.warps, launch.stages) == (2, 7) for launch in tried)
    assert launches(call) == before
    assert not any((launch.warps, launch.stages) == (2, 7) for launch in before)


def test_a_setting_that_fails_or_is_wrong_is_never_fastest(monkeypatch) -> None:
    def ours() -> torch.Tensor:
        setting = convolution.convolution(64, 64, torch.bfloat16)
        if setting.warps == 16:
            raise RuntimeError("out of resources")
        return torch.ones(3) if setting.warps > 2 else torch.zeros(3)

    monkeypatch.setattr("benchmarks.gpu_settings.seconds", lambda call: 0.5)
    case = Case("conv_glu", ours, ours)
    start = setting_of(case, "convolution")
    assert start == convolution.convolution(64, 64, torch.bfloat16)
    cost = cost_of(case, "convolution", start)
    costs = [cost(start._replace(warps=warps)) for warps in (2, 4, 8, 16)]
    assert costs == [math.inf, 0.5, 0.5, math.inf]


def test_the_fastest_setting_is_found_step_by_step() -> None:
    start = Setting(rows=64, columns=32, depth=32, warps=4, stages=3)
    values = {"rows": (32, 64, 128, 256), "warps": (2, 4, 8), "stages": (1, 2, 3)}

    def cost(setting: Setting) -> float:
        if setting.stages == 2:
            return math.inf  # stages 3 cannot be left
        return 1 + abs(setting.rows - 256) + abs(setting.warps - 2) + setting.stages

    timed = descend(start, values, cost, lambda: False)
    assert min(timed, key=lambda setting: timed[setting]) == start._replace(rows=256, warps=2)
    assert timed == {setting: cost(setting) for setting in timed}
    assert descend(start, values, cost, lambda: True) == {start: cost(start)}
    assert descend(start, values, lambda _: 1.0, lambda: False).keys() == {
        start,
        *neighbors(start, values),
    }
