"""The README quotes what was measured, and nothing else."""

from pathlib import Path

from table import of_file

ROOT = Path(__file__).parent.parent


def test_the_table_of_speed_is_that_of_the_results() -> None:
    table = of_file(ROOT / "benchmarks" / "results" / "cpu-amx-2-cores.json", "generator")
    assert len(table.splitlines()) > 5
    assert table in (ROOT / "README.md").read_text(encoding="utf-8")
