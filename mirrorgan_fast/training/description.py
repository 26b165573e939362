"""The description of a run's model, config.json in its folder, which a resumed run must fit."""

import os
from dataclasses import asdict
from pathlib import Path

from mirrorgan_fast.errors import InputError
from mirrorgan_fast.models.config import SystemConfig
from mirrorgan_fast.models.systems import name_of
from mirrorgan_fast.weights import CONFIG, load_config


def check_description(folder: Path, config: SystemConfig) -> None:
    """Raise InputError if the folder holds a run of another system or with other sizes."""
    if not os.path.lexists(folder / CONFIG):
        return
    system = name_of(config)
    other, sizes = load_config(folder)
    if other != system:
        raise InputError(
            f"{folder}: holds a run of the system {other!r:.80}, now it is {system!r}; use another "
            f"folder"
        )
    found, wanted = asdict(config.from_dict(sizes, folder / CONFIG)), asdict(config)
    for name in wanted:
        if found[name] != wanted[name]:
            raise InputError(
                f"{folder}: holds a run with {name} {found[name]!r}, now it is {wanted[name]!r}; "
                f"go on with the same, or in another folder"
            )
