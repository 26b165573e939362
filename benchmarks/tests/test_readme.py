"""The tables in the README are those of the recorded results."""

from pathlib import Path

import pytest

from benchmarks import sampler
from benchmarks.table import of_file

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("processor", ["amx", "zen4"])
def test_the_tables_of_speed_are_those_of_the_results(processor: str) -> None:
    table = of_file(RESULTS / f"cpu-{processor}-generator.json", "generator")
    assert len(table.splitlines()) > 5
    assert table in README


@pytest.mark.parametrize("what", ["sinks", "growth"])
def test_the_tables_of_the_sampler_are_those_of_the_results(what: str) -> None:
    table = sampler.of_file(RESULTS / f"sampler-{what}.json")
    assert len(table.splitlines()) > 5
    assert table in README
