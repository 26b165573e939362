"""The results of ``pytest benchmarks/ --benchmark-json=FILE`` as a table.

python -m benchmarks.table FILE [PART OF THE NAMES]
"""

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

HEADER = (
    "",
    "median",
    "images/s",
    "x eager fp32",
    "x eager, memory kept",
    "x compiled bf16",
    "of the hardware limit",
)


def rows(benchmarks: Iterable[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Return a row of cells per benchmark and per part of it: its ``name`` and ``extra_info``."""
    return [
        (
            name,
            _milliseconds(info["median_ms"]),
            _cell(info, "images_per_second", "{:.0f}"),
            _cell(info, "times_eager_as_it_comes", "{:.1f}"),
            _cell(info, "times_eager", "{:.1f}"),
            _cell(info, "times_compiled", "{:.1f}"),
            _cell(info, "share_of_limit", "{:.0%}"),
        )
        for benchmark in benchmarks
        for name, info in _with_parts(benchmark)
        if "median_ms" in info
    ]


def _with_parts(benchmark: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Return the names and the figures of a benchmark and of its parts."""
    name = str(benchmark["name"]).removeprefix("test_").replace("[", ": ").removesuffix("]")
    info = benchmark["extra_info"]
    parts = info.get("parts", {})
    return [(name, info), *((f"{name}: {part}", figures) for part, figures in parts.items())]


def _milliseconds(median: float) -> str:
    return f"{median:,.0f} ms" if median >= 1000 else f"{median:#.3g} ms"


def _cell(info: Mapping[str, Any], name: str, form: str) -> str:
    return form.format(info[name]) if name in info else ""


def markdown(table: list[tuple[str, ...]]) -> str:
    """Return the table in Markdown."""
    lines = [HEADER, ("---",) * len(HEADER), *table]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def of_file(path: Path, part: str = "") -> str:
    """Return the table of the benchmarks in a file whose names contain ``part``."""
    benchmarks = json.loads(path.read_text(encoding="utf-8"))["benchmarks"]
    return markdown(rows(one for one in benchmarks if part in one["name"]))


if __name__ == "__main__":
    print(of_file(Path(sys.argv[1]), *sys.argv[2:3]))
