"""The best model of a run is kept beside the last."""

import json
from pathlib import Path

import pytest
import torch

import mirrorgan_fast
from mirrorgan_fast.training.best import BestModel
from mirrorgan_fast.training.settings import SETTINGS
from tests.small import small_model


def test_a_better_model_takes_the_place_of_another(tmp_path: Path) -> None:
    best = BestModel(tmp_path / "best", "r_precision")
    values = {}
    for steps, value in ((10, 0.2), (20, 0.5), (30, 0.4), (40, 0.5), (50, 0.6), (60, 0.1)):
        model = small_model()
        with torch.no_grad():
            model.stem.embedding.weight.fill_(value)
        best.keep(model, steps, {"r_precision": value, "diversity": 1.0})
        kept = mirrorgan_fast.load(tmp_path / "best").stem.embedding.weight[0, 0]
        values[steps] = round(kept.item(), 2)
    assert values == {10: 0.2, 20: 0.5, 30: 0.5, 40: 0.5, 50: 0.6, 60: 0.6}
    record = json.loads((tmp_path / "best" / "best.json").read_text())
    assert record == {"step": 50, "figure": "r_precision", "value": 0.6}


def test_of_kernel_distances_the_smallest_is_best(tmp_path: Path) -> None:
    best = BestModel(tmp_path / "best", "kernel_distance")
    kept = []
    for steps, value in ((10, 0.02), (20, 0.05), (30, 0.01), (40, 0.01), (50, -0.001), (60, 0.0)):
        best.keep(small_model(), steps, {"kernel_distance": value, "r_precision": 0.1 * steps})
        kept.append(json.loads((tmp_path / "best" / "best.json").read_text())["step"])
    assert kept == [10, 10, 30, 30, 50, 50]


def test_it_has_the_settings_of_its_run(tmp_path: Path) -> None:
    best = BestModel(tmp_path / "best", "r_precision")
    best.keep(small_model(), 1, {"r_precision": 0.1})
    assert not (tmp_path / "best" / SETTINGS).exists()  # the run has none
    (tmp_path / SETTINGS).write_text('system = "mirrorgan"')
    best.keep(small_model(), 2, {"r_precision": 0.2})
    assert (tmp_path / "best" / SETTINGS).read_text() == 'system = "mirrorgan"'


@pytest.mark.parametrize("figures", [{}, {"diversity": 3.0}, {"r_precision": float("nan")}])
def test_without_its_figure_nothing_is_kept(tmp_path: Path, figures: dict[str, float]) -> None:
    BestModel(tmp_path / "best", "r_precision").keep(small_model(), 1, figures)
    BestModel(tmp_path / "best", "none").keep(small_model(), 1, {"r_precision": 1.0})
    assert not (tmp_path / "best").exists()


@pytest.mark.parametrize("record", ["", "[]", '{"figure": "r_precision", "value": "much"}', "{"])
def test_a_damaged_record_is_replaced(tmp_path: Path, record: str) -> None:
    best = BestModel(tmp_path / "best", "r_precision")
    best.keep(small_model(), 1, {"r_precision": 0.9})
    (tmp_path / "best" / "best.json").write_text(record)
    best.keep(small_model(), 2, {"r_precision": 0.1})
    assert json.loads((tmp_path / "best" / "best.json").read_text())["step"] == 2


def test_another_figure_begins_again(tmp_path: Path) -> None:
    BestModel(tmp_path / "best", "diversity").keep(small_model(), 1, {"diversity": 30.0})
    BestModel(tmp_path / "best", "r_precision").keep(small_model(), 2, {"r_precision": 0.1})
    assert json.loads((tmp_path / "best" / "best.json").read_text())["figure"] == "r_precision"
