"""Ctrl-C can be delayed, and a run that is interrupted at any moment ends and can be resumed."""

import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mirrorgan_fast.interrupts import Interrupts, Terminated, sigterm_raises
from tests.small import files, small_model, written


def test_a_delayed_interrupt_is_raised_on_release() -> None:
    before = signal.getsignal(signal.SIGINT)
    with Interrupts() as interrupts:
        interrupts.hold()
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            interrupts.release()
        interrupts.release()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize(
    "order", [(signal.SIGINT, signal.SIGTERM), (signal.SIGTERM, signal.SIGINT)]
)
def test_the_first_of_two_is_raised(order: tuple[signal.Signals, signal.Signals]) -> None:
    raised = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: Terminated}
    before = [signal.getsignal(number) for number in order]
    with Interrupts() as interrupts:
        interrupts.hold()
        for number in order:
            signal.raise_signal(number)
        assert interrupts.waiting
        with pytest.raises(KeyboardInterrupt) as came:
            interrupts.release()
        assert came.type is raised[order[0]]
    with Interrupts(insisting=True) as interrupts:
        interrupts.hold()
        signal.raise_signal(order[0])
        with pytest.raises(KeyboardInterrupt) as came:
            signal.raise_signal(order[1])
        assert came.type is raised[order[1]]
    assert [signal.getsignal(number) for number in order] == before


def test_sigterm_raises_only_within_the_block() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated), sigterm_raises():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


def test_other_threads_do_not_change_signal_handlers() -> None:
    before = signal.getsignal(signal.SIGINT)
    seen = []

    def enter() -> None:
        with Interrupts():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [before]


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["int", "term"]
)
def test_interrupted_runs_end_and_can_be_resumed(
    number: signal.Signals, status: int, tmp_path: Path
) -> None:
    randomly = random.Random(0)
    small_model().save_pretrained(tmp_path / "model")
    (tmp_path / "captions.txt").write_text("a red bird\n" * 3000, encoding="utf-8")
    command = [sys.executable, "-m", "mirrorgan_fast", "sample", "--captions", "captions.txt"]
    command += ["--model", "model", "--quiet", "--format", "tar", "-o"]
    for _ in range(3):
        process = subprocess.Popen([*command, "out"], cwd=tmp_path, stderr=subprocess.PIPE)
        begun = written(tmp_path / "out")
        while process.poll() is None and written(tmp_path / "out") <= begun:
            time.sleep(0.001)
        time.sleep(randomly.uniform(0, 0.2))
        process.send_signal(number)
        _, printed = process.communicate(timeout=30)
        assert process.returncode == status
        assert printed == b"mirrorgan-fast: stopped; run the same command again to resume\n"
        manifest = (tmp_path / "out" / "manifest.jsonl").read_bytes()
        assert manifest.count(b"\n") == written(tmp_path / "out")
    for name in ("out", "undisturbed"):
        subprocess.run([*command, name], cwd=tmp_path, check=True, capture_output=True)
    assert files(tmp_path / "out") == files(tmp_path / "undisturbed")


def test_a_broken_standard_error_stops_nothing(tmp_path: Path) -> None:
    small_model().save_pretrained(tmp_path / "model")
    (tmp_path / "captions.txt").write_text("a red bird\n" * 4000, encoding="utf-8")
    command = [sys.executable, "-m", "mirrorgan_fast", "sample", "--captions", "captions.txt"]
    command += ["--model", "model", "-o", "out"]
    process = subprocess.Popen(
        command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    assert process.stderr is not None
    process.stderr.close()
    assert process.wait(timeout=60) == 0
    assert (tmp_path / "out" / "manifest.jsonl").read_bytes().count(b"\n") == 4000
