"""The settings of a training run: ``settings.toml`` in its folder, or a file to start one from."""

import dataclasses
import os
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import tomli_w

from mirrorgan_fast.errors import InputError
from mirrorgan_fast.fields import WORDS, field_kinds
from mirrorgan_fast.files import read_file, whole_file
from mirrorgan_fast.models.config import SystemConfig
from mirrorgan_fast.models.systems import name_of, names
from mirrorgan_fast.pictures import MAX_PIXELS
from mirrorgan_fast.recipes import (
    DEFAULT_RECIPE,
    PHOTOS,
    RECIPES,
    Recipe,
    find_recipe,
    for_pictures,
    load_description,
)
from mirrorgan_fast.training.backbones import BackboneWeights
from mirrorgan_fast.training.checkpoint import has_checkpoint
from mirrorgan_fast.training.fine_tuning import for_fine_tuning
from mirrorgan_fast.training.settings import SETTINGS, STAGES, CommonSettings, Stage
from mirrorgan_fast.weights import CONFIG, find_pretrained

_MAX_BYTES = 2**20
_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a name"}
# What may change while a stage is trained: some of it at any time, the rest if it is asked for.
_FREE = ("save_every", "log_every", "sheet_every", "validate_every", "best_by")
_FREE_OF_STAGE = ("steps",)
_CHANGEABLE = (
    "learning_rate",
    "discriminator_learning_rate",
    "batch_size",
    "stream_weight",
    "color_weight",
    "cycle_weight",
    "damsm_weight",
    "identity_weight",
    "kl_weight",
    "r1_weight",
)
_ALL_DEFAULTS = {
    "mirrorgan": "cub-paper",
    "attngan": "attngan-cub",
    "cyclegan": "cyclegan-horses",
    "gan-int-cls": "gan-int-cls-cub",
    "gawwn": "gawwn-cub",
    "stackgan": "stackgan-cub",
    "stackgan-v2": "stackgan2-cub",
}
"""Of each system, the recipe that changes no default."""
Record = TypeVar("Record", bound=SystemConfig | CommonSettings)


@dataclass(frozen=True)
class RunSettings:
    """Everything that a training run is started with."""

    config: SystemConfig
    """The sizes of the networks; its class is that of the system."""
    training: CommonSettings
    data: Path | None = None
    """The folder of the data set."""
    data_y: Path | None = None
    """The folder of the second domain of pictures, if it is another (``open_unpaired``)."""
    domains: str | None = None
    """The field that tells two domains of pictures apart, and its values (``open_unpaired``)."""
    split_field: str | None = None
    """The field of an image folder's rows that names the split."""
    max_pixels: int = MAX_PIXELS
    weights: Mapping[Stage, BackboneWeights] = dataclasses.field(default_factory=dict)
    """What the large CNNs of ``stem`` and ``stream`` start from."""
    init_from: str | None = None
    """The folder, or the name in the package, of a trained model that the run starts from."""

    @property
    def system(self) -> str:
        """The name of the system."""
        return name_of(self.config)

    @classmethod
    def of_recipe(cls, name: str, pictures: int | None = None) -> "RunSettings":
        """Return the settings of a recipe.

        Args:
            name: of the recipe.
            pictures: how many there are to train on, by which ``photos`` chooses the steps of the
                generator; None: it is not known.

        Raises:
            InputError: there is no such recipe.
        """
        recipe = find_recipe(name)
        if name == PHOTOS and pictures is not None:
            recipe = for_pictures(recipe, pictures)
        return cls(*recipe)

    @classmethod
    def of_model(cls, name_or_path: str) -> "RunSettings":
        """Return the settings for training a model further.

        They are those that it was trained with, if its folder has them, or else those of the recipe
        with its sizes, or of its system. Each stage takes a tenth of the steps, all stages
        of the cascade train from the start, and their learning rates are lower.

        Raises:
            InputError: there is no such model, or its description or its settings are damaged.
        """
        folder = find_pretrained(name_or_path)
        system, config = load_description(folder)
        recipes = (recipe for recipe in RECIPES.values() if recipe.config == config)
        training = for_fine_tuning(next(recipes, _base(None, system)).settings)
        if os.path.lexists(folder / SETTINGS):
            trained = cls.load(folder / SETTINGS)
            if trained.system != system:
                raise InputError(
                    f"{folder / SETTINGS}: is of the system {trained.system}, but the model is of "
                    f"{system}; get another copy of the model"
                )
            training = trained.training  # of a run that was fine-tuning already: as it was
            if trained.init_from is None:
                training = for_fine_tuning(training)
        return cls(config, training, init_from=model_name(name_or_path))

    @classmethod
    def load(cls, path: Path) -> "RunSettings":
        """Read a file that ``save`` or a person wrote.

        ``recipe`` or ``system`` says where the values come from that the file leaves out.

        Raises:
            InputError: the file cannot be read, or an entry is unknown or not a valid value.
        """
        content = read_file(path, _MAX_BYTES)
        try:
            values = tomllib.loads(content.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}: cannot be read as TOML ({error})") from error
        try:
            return cls._from_values(values)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error

    @classmethod
    def _from_values(cls, values: dict[str, Any]) -> "RunSettings":
        known = (
            *("recipe", "system", "data", "data_y", "domains", "split_field", "max_pixels"),
            *("weights", "init_from"),
        )
        for name, value in values.items():
            if name not in (*known, "model", "training"):
                there = ", ".join((*known, "[model]", "[training]"))
                raise InputError(f"there is no entry {name:.80}; there are: {there}")
            kind = dict if name in ("weights", "model", "training") else str
            if type(value) is not (int if name == "max_pixels" else kind):
                raise InputError(f"{name} is {value!r:.80}, expected another kind of value")
        recipe = _base(values.get("recipe"), values.get("system"))
        weights: dict[Stage, BackboneWeights] = {}
        for stage, file in values.get("weights", {}).items():
            known_stage = next((each for each in STAGES if each == stage), None)
            if known_stage is None or not isinstance(file, str):
                raise InputError(f"weights.{stage:.80} is {file!r:.80}, expected a file's name")
            weights[known_stage] = "random" if file == "random" else Path(file)
        return cls(
            _with_values(recipe.config, values.get("model", {}), "model."),
            _with_values(recipe.settings, values.get("training", {}), "training."),
            Path(values["data"]) if "data" in values else None,
            Path(values["data_y"]) if "data_y" in values else None,
            values.get("domains"),
            values.get("split_field"),
            values.get("max_pixels", MAX_PIXELS),
            weights,
            values.get("init_from"),
        )

    def save(self, folder: Path) -> None:
        """Write every setting into ``settings.toml`` of a run's folder.

        Raises:
            InputError: it cannot be written.
        """
        values: dict[str, Any] = {"system": self.system}
        for name, folder_of_data in (("data", self.data), ("data_y", self.data_y)):
            if folder_of_data is not None:
                values[name] = str(folder_of_data.absolute())
        for name in ("domains", "split_field", "init_from"):
            if getattr(self, name) is not None:
                values[name] = getattr(self, name)
        values["max_pixels"] = self.max_pixels
        values["weights"] = {
            stage: file if isinstance(file, str) else str(file.absolute())
            for stage, file in self.weights.items()
        }
        values |= {"model": asdict(self.config), "training": asdict(self.training)}
        with whole_file(folder / SETTINGS) as unfinished:
            unfinished.write_text(tomli_w.dumps(values), encoding="utf-8")

    def changed(self, name: str, text: str) -> "RunSettings":
        """Return a copy with one setting changed.

        Args:
            name: of a size of the networks (``image_size``) or a setting of the training
                (``gan.steps``).
            text: the value, as it is given on the command line.

        Raises:
            InputError: there is no such setting, or the text is not a value for it.
        """
        if name in {field.name for field in dataclasses.fields(self.config)}:
            return dataclasses.replace(self, config=_changed(self.config, name, text))
        return dataclasses.replace(self, training=_changed(self.training, name, text))


def check_changes(
    before: RunSettings, now: RunSettings, folder: Path, on_purpose: frozenset[str]
) -> None:
    """Check that settings may take the place of those that a run began with.

    Steps and the settings of stages that have not begun may change at any time. Learning rates,
    batch sizes and the weights of losses may change on purpose.

    Args:
        before: the settings of the run.
        now: those that it is to continue with.
        folder: of the run.
        on_purpose: names of settings that are to change although their stage has begun.

    Raises:
        InputError: another setting differs.
    """
    for name in on_purpose:
        if name.rpartition(".")[2] not in _CHANGEABLE:
            raise InputError(
                f"--change {name}: this cannot change while a stage is trained; these can: "
                f"{', '.join(_CHANGEABLE)}, each with its stage (gan.batch_size)"
            )
    if before.init_from != now.init_from:
        raise InputError(
            f"{folder}: was begun {_from(before.init_from)}, now it is {_from(now.init_from)}; "
            f"begin another run"
        )
    begun = {stage for stage in STAGES if has_checkpoint(folder / stage)}
    old, new = dict(_flat(asdict(before.training))), dict(_flat(asdict(now.training)))
    changed = []
    for name in {**old, **new}:
        stage, _, setting = name.rpartition(".")
        free = setting in (_FREE_OF_STAGE if stage else _FREE)
        affected = stage in begun if stage else bool(begun)
        if old.get(name) != new.get(name) and affected and not free and name not in on_purpose:
            changed.append(name)
    if not changed:
        return
    fixed = [name for name in changed if name.rpartition(".")[2] not in _CHANGEABLE]
    first = next(iter(fixed or changed))
    options = " ".join(f"--change {name}={new.get(name)}" for name in changed)
    advice = "begin another run" if fixed else f"{options} changes it from now on"
    raise InputError(
        f"{folder}: was begun with {first} {old.get(first)!r}, now it is {new.get(first)!r}; "
        f"{advice}"
    )


def _from(model: str | None) -> str:
    return "from nothing" if model is None else f"from the model {model}"


def model_name(model: str) -> str:
    """Return a model's name in the package, or the absolute path of its folder."""
    return str(Path(model).absolute()) if os.path.lexists(Path(model) / CONFIG) else model


def _base(recipe: str | None, system: str | None) -> Recipe:
    """Return what the values come from that a file leaves out."""
    if recipe is not None:
        found = find_recipe(recipe)
        if system is not None and system != name_of(found.config):
            raise InputError(f"the recipe {recipe} is not of the system {system:.80}")
        return found
    if system is None:
        return find_recipe(DEFAULT_RECIPE)
    if system in _ALL_DEFAULTS:
        return find_recipe(_ALL_DEFAULTS[system])
    raise InputError(f"system is {system!r:.80}, expected {' or '.join(names())}")


def _flat(values: Mapping[str, Any], within: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the names and values of nested settings, such as ("gan.steps", 5000)."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{within}{name}.")
        else:
            yield within + name, value


def _with_values(record: Record, values: Mapping[str, Any], within: str) -> Record:
    """Return a copy of a dataclass with the values of a TOML table, possibly nested."""
    fields = {field.name for field in dataclasses.fields(record)}
    changed: dict[str, Any] = {}
    for name, value in values.items():
        if name not in fields:
            there = ", ".join(sorted(fields))
            raise InputError(f"there is no setting {within}{name:.80}; there are: {there}")
        current = getattr(record, name)
        if dataclasses.is_dataclass(current) != isinstance(value, dict):
            raise InputError(f"{within}{name} is {value!r:.80}, expected another kind of value")
        if isinstance(value, dict):
            changed[name] = _with_values(current, value, f"{within}{name}.")
        else:
            changed[name] = tuple(value) if isinstance(value, list) else value
    return dataclasses.replace(record, **changed)


def _changed(record: Record, name: str, value: str, within: str = "") -> Record:
    """Return a copy of a dataclass with one field, possibly nested (``gan.steps``), set from text.

    ``within`` is the path to the dataclass, for error messages.

    Raises:
        InputError: there is no such field, or the text is not a value for it.
    """
    first, _, rest = name.partition(".")
    fields = {field.name: field for field in dataclasses.fields(record)}
    if first not in fields:
        there = ", ".join(within + field for field in fields)
        raise InputError(f"--set {within}{name}: there is no such setting; there are: {there}")
    current = getattr(record, first)
    if dataclasses.is_dataclass(current) == (not rest):
        if rest:
            found, advice = "is a single setting", f"use {within}{first}=VALUE"
        else:
            found, advice = "is a group of settings", f"set one of them, {within}{first}.NAME"
        raise InputError(f"--set {within}{name}: {within}{first} {found}; {advice}")
    if rest:
        changed: Any = _changed(current, rest, value, f"{within}{first}.")
    else:
        changed = _parsed(within + name, value, field_kinds(type(record))[first])
    return dataclasses.replace(record, **{first: changed})


def _parsed(name: str, text: str, kind: Any) -> Any:
    try:
        if get_origin(kind) is Literal and text in get_args(kind):
            return text
        if kind is bool:
            return {"true": True, "false": False}[text]
        if kind == WORDS:
            return tuple(text.split(",")) if text else ()
        if get_origin(kind) is tuple:
            first, second = text.split(",")
            return float(first), float(second)
        if kind in (int, float, str):
            return kind(text)
    except (ValueError, KeyError):
        pass
    if get_origin(kind) is tuple:
        expected = "two numbers, such as 0.5,0.999"
    else:
        expected = ", ".join(map(str, get_args(kind))) or _KINDS[kind]
    raise InputError(f"--set {name}={text}: expected {expected}")
