"""Fine-tuning against training from nothing, for about the same time.

python -m benchmarks.fine_tuning FOLDER [--json FILE]

Trains `birds-painted` further on 200 birds of another seed, whose captions use five color words
that it does not know, and trains a model of the same sizes on them from nothing. The attributes of
both models' images are read for the captions of 200 held-out birds, by the judge that comes with
the package. It was trained on painted birds, and neither model has seen it.
"""

import argparse
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import mirrorgan_fast
from mirrorgan_fast.data.image_folder import ImageFolder
from mirrorgan_fast.data.painted_birds.data_set import export_image_folder
from mirrorgan_fast.evaluation.validation import Validation
from mirrorgan_fast.models.attribute_classifier import AttributeClassifier

UNKNOWN = {
    "red": "scarlet",
    "yellow": "golden",
    "blue": "azure",
    "green": "emerald",
    "brown": "chestnut",
}
STEPS = {
    "fine-tuned": {"stem": 150, "stream": 300, "gan": 480},
    "from nothing": {"cnn": 300, "stem": 300, "stream": 800, "gan": 650},
}
"""Steps of each stage, for about ten minutes on two cores with bf16 (Zen 4)."""
SETTINGS = {
    "fine-tuned": {"gan.decay_steps": 100},
    "from nothing": {"gan.decay_steps": 130, "gan.last_stage_from": 300, "stem.decay": 0.97},
}


def main() -> None:
    """Train both and print the share of right attributes."""
    parser = argparse.ArgumentParser(description="Fine-tuning against training from nothing.")
    parser.add_argument("folder", type=Path, help="for the pictures and the runs")
    parser.add_argument("--json", type=Path, help="write the figures there")
    options = parser.parse_args()
    data = options.folder / "birds"
    if not data.exists():
        export_image_folder(data, train=200, test=200, seed=77)
        _rename_colors(data / "metadata.jsonl")
    judge = AttributeClassifier.from_pretrained()
    measure = Validation(ImageFolder(data, "test"), judge)
    found = {"before": measure(mirrorgan_fast.load())}
    for name, steps in STEPS.items():
        run = options.folder / name.replace(" ", "-")
        start = time.perf_counter()
        _train(run, data, name, steps)
        seconds = time.perf_counter() - start
        found[name] = {"seconds": round(seconds), **measure(mirrorgan_fast.load(run))}
        print(name, found[name], flush=True)
    print(json.dumps(found, indent=2))
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def _train(run: Path, data: Path, name: str, steps: dict[str, int]) -> None:
    settings = {f"{stage}.steps": count for stage, count in steps.items()} | SETTINGS[name]
    command = ["train", "all", "--run", str(run), "--data", str(data), "--no-validation"]
    command += ["--init-from", "birds-painted"] if name == "fine-tuned" else []
    command += [f"--set={setting}={value}" for setting, value in settings.items()]
    subprocess.run([sys.executable, "-m", "mirrorgan_fast", *command], check=True)


def _rename_colors(path: Path) -> None:
    """Give five colors names that the model does not know, in all captions."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for row in rows:
        for i, caption in enumerate(row["captions"]):
            words = re.sub(r"\w+", lambda word: UNKNOWN.get(word[0], word[0]), caption)
            row["captions"][i] = re.sub(r"\ba (?=azure|emerald)", "an ", words)
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main()
