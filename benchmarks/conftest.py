"""Shared by all benchmarks: the hardware's limits, the model, no gradients, the printed table."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.cub_model import model_of_cub
from benchmarks.harness import Comparison
from benchmarks.limits import Limits
from benchmarks.table import table
from mirrorgan_fast.inference.export import export
from mirrorgan_fast.memory import keep_memory
from mirrorgan_fast.models.mirrorgan import MirrorGAN
from mirrorgan_fast.ops import build_info


def pytest_make_parametrize_id(config: pytest.Config, val: object, argname: str) -> str | None:
    """Name a data type as PyTorch does."""
    return str(val).removeprefix("torch.") if isinstance(val, torch.dtype) else None


def pytest_benchmark_update_machine_info(
    config: pytest.Config, machine_info: dict[str, Any]
) -> None:
    """Add what determines the numbers to the saved results, and leave out the machine's name."""
    built = build_info()
    machine_info.pop("node", None)
    machine_info["torch"] = torch.__version__
    machine_info["threads"] = torch.get_num_threads()
    machine_info["build"] = None if built is None else built._asdict()


def pytest_benchmark_update_json(
    config: pytest.Config, benchmarks: object, output_json: dict[str, Any]
) -> None:
    """Keep what is worth committing: remove single timings and the list of processor flags."""
    output_json["commit_info"] = {}
    output_json["machine_info"].get("cpu", {}).pop("flags", None)
    for benchmark in output_json["benchmarks"]:
        benchmark["stats"].pop("data", None)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, exitstatus: int, config: pytest.Config
) -> None:
    """Print the results of the comparisons, and why benchmarks were skipped."""
    session = getattr(config, "_benchmarksession", None)
    found = [] if session is None else session.benchmarks
    lines = table({"name": one.name, "extra_info": one.extra_info} for one in found)
    if len(lines) > 1:
        terminalreporter.section("ours, compared with the alternatives")
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        for line in lines:
            first, *others = (cell.rjust(width) for cell, width in zip(line, widths, strict=True))
            terminalreporter.write_line("  ".join([first.strip().ljust(widths[0]), *others]))
    skipped = terminalreporter.stats.get("skipped", [])
    for reason in sorted({report.longrepr[2] for report in skipped if _is_benchmark(report)}):
        terminalreporter.write_line(reason)


def _is_benchmark(report: pytest.TestReport) -> bool:
    return report.nodeid.startswith("benchmarks/test_")


@pytest.fixture(scope="session")
def limits() -> Limits:
    return Limits()


@pytest.fixture
def comparison(
    benchmark: BenchmarkFixture, limits: Limits, pytestconfig: pytest.Config
) -> Iterator[Comparison]:
    """Compare with alternatives, after `keep_memory`; failed comparisons are not reported."""
    keep_memory()
    torch.compiler.reset()  # otherwise it stops recompiling the same classes for new shapes
    yield Comparison(benchmark, limits)
    session = getattr(pytestconfig, "_benchmarksession", None)
    if session is not None:
        session.benchmarks[:] = [one for one in session.benchmarks if not one.has_error]


@pytest.fixture(scope="session")
def model() -> MirrorGAN:
    return model_of_cub()


@pytest.fixture(scope="module")
def exported(model: MirrorGAN, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ONNX file of the module's model."""
    path = tmp_path_factory.mktemp("exported") / "model.onnx"
    export(model, path, "onnx")
    return path


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    """Measure inference unless a benchmark says otherwise."""
    with torch.no_grad():
        yield
