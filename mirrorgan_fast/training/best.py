"""The best model of a run by a figure of its validation."""

import json
import os
import shutil
from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import Any

from mirrorgan_fast.files import parse_json, read_file, whole_file
from mirrorgan_fast.models.text_to_image import TextToImage
from mirrorgan_fast.training.settings import SETTINGS, BestBy

_RECORD = "best.json"
_LESS_IS_BETTER = ("kernel_distance",)


class BestModel:
    """A folder with the best model so far, and ``best.json``: its step, figure and value.

    The settings of the run are there too, for a run that trains this model further.

    Args:
        folder: of the model, in that of the run.
        best_by: the figure; a larger value is better, but for the kernel distance. "none": no model
            is kept.
    """

    def __init__(self, folder: Path, best_by: BestBy) -> None:
        self.folder, self.best_by = folder, best_by

    def keep(self, model: TextToImage, steps: int, figures: Mapping[str, float]) -> None:
        """Write the model if it is better than the one in the folder.

        Args:
            model: trained for ``steps`` steps.
            steps: of its training.
            figures: of its validation. Nothing is kept if the figure is not among them.

        Raises:
            InputError: it cannot be written.
        """
        value = figures.get(self.best_by)
        if value is None or not isfinite(value):
            return
        before = self._record()
        sign = -1 if self.best_by in _LESS_IS_BETTER else 1
        if before.get("figure") == self.best_by and sign * before["value"] >= sign * value:
            return
        model.save_pretrained(self.folder)
        settings = self.folder.parent / SETTINGS
        if os.path.lexists(settings):
            with whole_file(self.folder / SETTINGS) as unfinished:
                shutil.copyfile(settings, unfinished)
        record = {"step": steps, "figure": self.best_by, "value": value}
        with whole_file(self.folder / _RECORD) as unfinished:
            unfinished.write_text(json.dumps(record) + "\n", encoding="utf-8")

    def _record(self) -> dict[str, Any]:
        """Return what is known of the model in the folder; nothing if there is none."""
        path = self.folder / _RECORD
        if not os.path.lexists(path):
            return {}
        try:
            record = parse_json(read_file(path, 2**16))
        except ValueError:  # damaged: the next model takes its place
            return {}
        there = isinstance(record, dict) and type(record.get("value")) in (int, float)
        return record if there else {}
