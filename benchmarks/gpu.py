"""Build, test and measure on a GPU, with one command and in at most eight minutes.

    python -m benchmarks.gpu [--out FOLDER] [--minutes 8]

builds the extension, runs the tests that need a GPU, and measures the GPU's copies and products per
second. It times every case of `gpu_cases.py` in turns with plain PyTorch and with
torch.compile(mode="max-autotune"). It writes gpu-NAME.json and gpu-NAME.md. If time runs out, these
files list the remaining cases.
"""

import argparse
import json
import os
import platform
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_cases import Case, Sizes, cases

ROOT = Path(__file__).parents[1]


BUILT = """
import torch
from mirrorgan_fast.ops import choice, why_no_cuda_kernels
import mirrorgan_fast.kernels.conv_glu
if why_no_cuda_kernels():
    raise SystemExit(why_no_cuda_kernels())
if torch.cuda.get_device_capability() == (9, 0) and not choice.has_wgmma(torch.device("cuda")):
    raise SystemExit("this is Hopper, but products of warpgroups were not built")
"""
CUDA_TESTS = "tests of CUDA C++"
ROUNDS = 5
COMPILE_SECONDS = 60
"""The least time that must be left to run torch.compile for a case."""
CHECK_SECONDS = 180
"""The time limit of a check, so that a kernel that never ends leaves time for the other checks."""
COPIED = 1 << 30
SIDE = 8192
HEADER = "| | median | images/s | x eager | x compiled | of the hardware limit |"


def main() -> int:
    """Run the checks and measure the cases; return 1 if a check failed."""
    parser = argparse.ArgumentParser(description="Build, test and measure on a GPU.")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--minutes", type=float, default=8.0, help="for everything together")
    parser.add_argument("--only", choices=("checks", "cases"), help="do half of it")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("benchmarks.gpu: this PyTorch finds no GPU; nothing was measured", file=sys.stderr)
        return 2
    end = time.monotonic() + 60 * options.minutes
    report: dict[str, Any] = {"machine": machine(), "checks": {}, "cases": [], "not_measured": []}
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"gpu-{name_of(report['machine'])}.json"

    def keep() -> None:
        """Write the results so far, so that they are not lost if a later step fails."""
        path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        path.with_suffix(".md").write_text(table(report), encoding="utf-8")

    if options.only != "cases":
        # If checks and cases run, checks take at most two thirds of the time
        until = end - (0 if options.only else 20 * options.minutes)
        hangs = False
        for name, command in checks():
            if hangs and "sanitizer" in name:
                continue  # it would run the tests that hang
            left = min(CHECK_SECONDS, until - time.monotonic())
            found = report["checks"][name] = check(name, command, left)
            hangs |= name == CUDA_TESTS and found["status"] == 124
            keep()
    if options.only is None:
        # In another process, because this one loaded the package before the build
        left = end - time.monotonic()
        command = [sys.executable, "-m", "benchmarks.gpu", "--only", "cases", "--out", options.out]
        command += ["--minutes", f"{left / 60:.2f}"]
        try:
            subprocess.run(list(map(str, command)), cwd=ROOT, check=False, timeout=left)
        except subprocess.TimeoutExpired:
            print("benchmarks.gpu: a case did not end in time", file=sys.stderr)
        report = json.loads(path.read_text(encoding="utf-8"))
    elif options.only == "cases":
        if path.is_file():
            report["checks"] = json.loads(path.read_text(encoding="utf-8"))["checks"]
        measure(report, lambda: end - time.monotonic(), keep)
    keep()
    print(table(report))
    return int(any(found["status"] != 0 for found in report["checks"].values()))


def machine() -> dict[str, Any]:
    """Describe what determines the numbers: the GPU and the software versions."""
    properties = torch.cuda.get_device_properties(0)
    import triton

    return {
        "gpu": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": triton.__version__,
    }


def name_of(about: dict[str, Any]) -> str:
    """Return a GPU's name in the form used in file names."""
    return re.sub(r"\W+", "-", about["gpu"]).strip("-").lower()


def checks() -> list[tuple[str, list[str]]]:
    """Return the name and the command of each check that runs before anything is measured."""
    python = sys.executable
    # After an illegal access all later tests in the process fail, so the first failure matters.
    pytest = [python, "-m", "pytest", "--tb=short"]
    in_parallel = ["-n", "8"] if find_spec("xdist") else []  # compiling takes most of the time
    found = [
        ("build", [python, "-m", "pip", "install", "--no-build-isolation", "--no-deps", "-e", "."]),
        ("built", [python, "-c", BUILT]),
        (CUDA_TESTS, [*pytest, "-x", "tests/ops/test_cuda.py"]),
        ("tests of Triton", [*pytest, *in_parallel, "tests/ops/test_triton.py"]),
        ("tests of CUDA graphs", [*pytest, "tests/models/test_graphs.py"]),
    ]
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer:
        run = [sanitizer, "--error-exitcode", "1", "--report-api-errors", "no"]
        few = [*pytest, "-x", "tests/ops/test_cuda.py", "-k", "float64"]
        for tool in ("memcheck", "racecheck"):
            found.append((f"compute-sanitizer {tool}", [*run, "--tool", tool, *few]))
    return found


def check(name: str, command: list[str], left: float) -> dict[str, Any]:
    """Run a command; return its status, the end of what it printed, and how long it took.

    Status 124 means that the time ran out, as for timeout(1).
    """
    start = time.monotonic()
    major, minor = torch.cuda.get_device_capability() if torch.cuda.is_available() else (8, 0)
    environment = {
        **os.environ,
        "MIRRORGAN_FAST_REQUIRE_EXTENSION": "1",
        "FORCE_CUDA": "1",
        # Only for this GPU, which builds faster. Code for Hopper alone needs 9.0a.
        "TORCH_CUDA_ARCH_LIST": f"{major}.{minor}{'a' if major == 9 else ''}",
    }
    toolkit = Path(
        "/usr/local/cuda"
    )  # otherwise a link to nvcc without the toolkit may be found first
    if toolkit.is_dir():
        environment.setdefault("CUDA_HOME", str(toolkit))
    if "sanitizer" in name:  # PyTorch's memory cache would hide reads outside of a tensor
        environment["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        printed, _ = process.communicate(timeout=max(1.0, left))
        status = process.returncode
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # also the processes that it started
        printed, _ = process.communicate()
        status = 124
    printed = printed[-4000:]
    print(f"{name}: exit status {status}\n{printed}", flush=True)
    taken = round(time.monotonic() - start, 1)
    return {"status": status, "seconds": taken, "printed": printed}


def measure(report: dict[str, Any], left: Callable[[], float], keep: Callable[[], None]) -> None:
    """Time the cases until no time is left; ``keep`` is called before and after each.

    First, all cases are compared with plain PyTorch. Then those that are also compared with
    torch.compile, which takes minutes, are timed again, the largest first.
    """
    limits = report["limits"] = {"copied": copied(), "multiplied": multiplied()}
    timed: dict[str, dict[str, Any]] = {}
    missing: list[str] = report["not_measured"]

    def time_(case: Case, *, compiled: bool) -> None:
        about = f"{case.name}, against torch.compile" if compiled else case.name
        missing.append(about)
        keep()  # so that the report lists the case as not measured if it never ends
        if left() < (COMPILE_SECONDS if compiled else 30):
            return
        try:
            timed[case.name] = compare(case, compile_(case) if compiled else None, limits)
            missing.remove(about)
        except Exception as error:
            # A case that fails must not stop the others
            missing[-1] = f"{about}: {type(error).__name__}: {error}"[:500]
        report["cases"] = list(timed.values())
        torch.cuda.empty_cache()
        keep()

    for compiled in (False, True):
        try:
            for case in cases("cuda", Sizes(), largest_first=compiled):
                if case.compiles or not compiled:
                    time_(case, compiled=compiled)
        except Exception as error:
            what = "a case that could not be created, and all cases after it"
            missing.append(f"{what}: {type(error).__name__}: {error}"[:500])
            keep()


def compile_(case: Case) -> Callable[[], Any]:
    """Return the case's plain PyTorch call, compiled with torch.compile."""
    torch.compiler.reset()
    compiled: Callable[[], Any] = torch.compile(case.eager, mode="max-autotune")
    return compiled


def compare(
    case: Case, compiled: Callable[[], Any] | None, limits: dict[str, float]
) -> dict[str, Any]:
    """Time ours and the alternatives in turns."""
    calls = {"ours": case.ours, "eager": case.eager}
    if compiled is not None:
        calls["compiled"] = compiled
    turns: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        for _ in range(3):  # compiles, chooses implementations, captures CUDA graphs
            call()
    for _ in range(ROUNDS):
        for name, call in calls.items():
            turns[name].append(seconds(call))
    medians = {name: statistics.median(taken) for name, taken in turns.items()}
    floor = max(case.operations / limits["multiplied"], case.nbytes / limits["copied"])
    ours = medians["ours"]
    return {
        "name": case.name,
        "seconds": medians,
        "spread": max(turns["ours"]) / min(turns["ours"]),
        "images_per_second": case.images / ours if case.images else None,
        "of_limit": floor / ours if floor else None,
    }


def seconds(call: Callable[[], Any]) -> float:
    """Return a call's time on the GPU, measured by events, with a cold L2 cache."""
    import triton

    return 1e-3 * float(triton.testing.do_bench(call, warmup=10, rep=60, return_mode="median"))


def copied() -> float:
    """Return bytes read or written per second by a large copy."""
    a, b = torch.empty(2, COPIED, dtype=torch.uint8, device="cuda")
    return 2 * COPIED / seconds(lambda: b.copy_(a))


def multiplied() -> float:
    """Return operations per second of a large bfloat16 matrix product of random numbers."""
    a, b = torch.randn(2, SIDE, SIDE, device="cuda", dtype=torch.bfloat16)
    return 2 * SIDE**3 / seconds(lambda: a @ b)


def table(report: dict[str, Any]) -> str:
    """Return the report in Markdown."""
    about = report["machine"]
    limits = report.get("limits", {"copied": 0.0, "multiplied": 0.0})
    lines = [
        f"# {about['gpu']}",
        "",
        f"PyTorch {about['torch']}, Triton {about['triton']}, CUDA {about['cuda']}; copies "
        f"{limits['copied'] / 1e12:.2f} TB/s, multiplies {limits['multiplied'] / 1e12:.0f} TFLOP/s "
        f"in bfloat16. `python -m benchmarks.gpu`",
        "",
        HEADER,
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for case in report["cases"]:
        taken = case["seconds"]
        ours = taken["ours"]
        cells = [
            case["name"],
            f"{1e6 * ours:.0f} us",
            f"{case['images_per_second']:.0f}" if case["images_per_second"] else "",
            f"{taken['eager'] / ours:.1f}",
            f"{taken['compiled'] / ours:.1f}" if "compiled" in taken else "",
            f"{case['of_limit']:.0%}" if case["of_limit"] else "",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    for name, found in report["checks"].items():
        lines += ["", f"{name}: exit status {found['status']} in {found['seconds']} s"]
    lines += ["", *(f"Not measured: {name}" for name in report["not_measured"])]
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    sys.exit(main())
