"""Draw the curves of a run as a picture: python docs/draw_curves.py RUN PICTURE.

Needs matplotlib: pip install 'mirrorgan-fast[docs]'.
"""

import argparse
import json
from pathlib import Path

from matplotlib import pyplot as plt

PANELS: list[tuple[str, str, list[str]]] = [
    ("cnn", "phrases found", ["found"]),
    ("stem", "captions found among those of the batch", ["retrieval"]),
    ("stream", "cross-entropy of a word", ["cross_entropy"]),
    ("gan", "losses of the discriminators", ["D_0", "D_1", "D_2"]),
    ("gan", "the generator's losses against them", ["G_0", "G_1", "G_2"]),
    ("gan", "its other losses", ["damsm", "stream", "KL"]),
    (
        "gan",
        "how real the discriminators find images",
        [f"D_{i}({kind})" for i in range(3) for kind in ("real", "generated")],
    ),
    ("gan", "validation: shares", ["r_precision", "attributes", "redescription"]),
    ("gan", "validation: images of a caption apart, gray levels", ["diversity"]),
]
"""Stage, title and figures of each panel."""


def main() -> None:
    """Draw one panel for each group of figures."""
    parser = argparse.ArgumentParser(description="Draw the curves of a run.")
    parser.add_argument("run", type=Path, help="its folder, with cnn/, stem/, stream/ and gan/")
    parser.add_argument("picture", type=Path, help="a PNG or SVG file")
    options = parser.parse_args()
    figure, axes = plt.subplots(3, 3, figsize=(15, 10), layout="constrained")
    for place, (stage, title, names) in zip(axes.flat, PANELS, strict=True):
        rows = (options.run / stage / "curves.jsonl").read_text(encoding="utf-8").splitlines()
        points = [json.loads(row) for row in rows]
        for name in names:
            drawn = [(point["step"], point[name]) for point in points if name in point]
            if drawn:
                place.plot(*zip(*drawn, strict=True), label=name, linewidth=1)
        place.set_title(f"{stage}: {title}", fontsize=10)
        place.set_xlabel("step")
        place.set_ylim(bottom=0)
        place.grid(alpha=0.3)
        place.legend(fontsize=8)
    figure.savefig(options.picture, dpi=90)


if __name__ == "__main__":
    main()
