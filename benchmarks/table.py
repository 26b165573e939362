"""The results of ``pytest benchmarks/ --benchmark-json=FILE`` as a table.

python -m benchmarks.table FILE [PART OF THE NAMES]
"""

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def _milliseconds(median: float) -> str:
    return f"{median:,.0f} ms" if median >= 1000 else f"{median:#.3g} ms"


COLUMNS = (
    ("median", "median_ms", _milliseconds),
    ("images/s", "images_per_second", "{:.0f}".format),
    ("x eager fp32", "times_eager_as_it_comes", "{:.1f}".format),
    ("x eager, memory kept", "times_eager", "{:.1f}".format),
    ("x compiled bf16", "times_compiled", "{:.1f}".format),
    ("x ONNX Runtime fp32", "times_onnxruntime", "{:.1f}".format),
    ("x OpenVINO", "times_openvino", "{:.1f}".format),
    ("of the hardware limit", "share_of_limit", "{:.0%}".format),
)
"""The title of each column, what it shows of a benchmark's ``extra_info``, and its format."""


def table(benchmarks: Iterable[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Return the lines of cells: the titles, then a line per benchmark and per part of it.

    There is a column for each figure that any of them has.

    Args:
        benchmarks: each with its ``name`` and ``extra_info``.
    """
    found = [
        (name, info)
        for benchmark in benchmarks
        for name, info in _with_parts(benchmark)
        if "median_ms" in info
    ]
    columns = [column for column in COLUMNS if any(column[1] in info for _, info in found)]
    lines = [
        (name, *(form(info[key]) if key in info else "" for _, key, form in columns))
        for name, info in found
    ]
    return [("", *(title for title, _, _ in columns)), *lines]


def _with_parts(benchmark: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Return the names and the figures of a benchmark and of its parts."""
    name = str(benchmark["name"]).removeprefix("test_").replace("[", ": ").removesuffix("]")
    info = benchmark["extra_info"]
    parts = info.get("parts", {})
    return [(name, info), *((f"{name}: {part}", figures) for part, figures in parts.items())]


def markdown(lines: list[tuple[str, ...]]) -> str:
    """Return the lines of a table in Markdown."""
    titles, *others = lines
    rows = [titles, ("---",) * len(titles), *others]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def of_file(path: Path, part: str = "") -> str:
    """Return the table of the benchmarks in a file whose names contain ``part``."""
    benchmarks = json.loads(path.read_text(encoding="utf-8"))["benchmarks"]
    return markdown(table(one for one in benchmarks if part in one["name"]))


if __name__ == "__main__":
    print(of_file(Path(sys.argv[1]), *sys.argv[2:3]))
