"""Warnings of a failing run: each is provoked, said once, and not said of a healthy run."""

import json
from importlib import resources
from pathlib import Path

import pytest

from mirrorgan_fast.training.run import Run
from mirrorgan_fast.training.watch import Watch


def said(points: list[dict[str, float]], batch_size: int = 16) -> list[str]:
    watch = Watch()
    return [
        text
        for number, point in enumerate(points, start=1)
        for text in watch.look(100 * number, point, batch_size)
    ]


def test_a_discriminator_that_wins_is_named_once() -> None:
    wins = {"D_0(real)": 0.6, "D_0(generated)": 0.4, "D_1(real)": 0.999, "D_1(generated)": 0.001}
    wins |= {"G_0": 1.0, "G_1": 7.0}
    (text,) = said([wins] * 30)
    assert text.startswith("D_1 tells every real image")
    assert "gan.learning_rate" in text
    assert said([wins] * 9 + [{**wins, "D_1(generated)": 0.3}] + [wins] * 9) == []
    del wins["G_1"]  # before the generator trains
    assert said([wins] * 30) == []


def test_images_that_become_alike_are_a_collapse() -> None:
    (text,) = said([{"diversity": value} for value in (0.2, 3.0, 20.0, 9.0, 0.7, 0.3)])
    assert "all alike (0.7 gray levels apart, 20.0 before)" in text
    assert said([{"diversity": value} for value in (0.2, 0.5, 3.0, 0.4)]) == []  # just beginning


def test_a_matcher_at_chance_is_told_after_a_while() -> None:
    (text,) = said([{"retrieval": 0.07}] * 30)
    assert "no better than by chance (7.0%, 6.2% by chance)" in text
    assert said([{"retrieval": 0.07}] * 18) == []  # too early
    assert said([{"retrieval": 0.2}] * 30) == []


def test_the_shipped_models_run_gives_no_warning() -> None:
    package = resources.files("mirrorgan_fast") / "pretrained" / "birds-painted" / "curves"
    for stage, batch_size in (("stem", 48), ("gan", 32)):
        rows = (package / f"{stage}.jsonl").read_text(encoding="utf-8").splitlines()
        watch = Watch()
        for row in map(json.loads, rows):
            assert watch.look(row["step"], row, batch_size) == []


def test_a_run_says_it_with_its_step(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mirrorgan_fast.training.watch._IN_A_ROW", 3)
    with Run(tmp_path / "gan", 9, {}, log_every=1, quiet=True) as run:
        for step in range(9):
            run.log(step, {"D_0(real)": 0.99, "D_0(generated)": 0.01, "G_0": 5.0})
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith(f"{tmp_path / 'gan'}, step 3: D_0 tells every real image")
