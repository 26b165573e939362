"""Modules import only from lower layers, and no module imports private names of another."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "mirrorgan_fast"

# Each layer may import the layers after it. Members of a layer may import each other, except across
# a "|".
LAYERS = (
    "cli",
    "figures evaluation run_settings",
    "sampling recipes",
    "inference | training | convert",
    "models | data",
    "metrics weights pictures",
    "ops kernels",
    "boxes tensor_files interrupts fields memory processes vocabulary",
    "files",
    "errors openmp",
)
LAYER = {
    name: (number, part)
    for number, layer in enumerate(LAYERS)
    for part, names in enumerate(layer.split("|"))
    for name in names.split()
}


def imports(source: str) -> Iterator[tuple[str, str]]:
    """Yield (module, name) of every import from the package, also those in functions."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mirrorgan_fast"):
            for alias in node.names:
                yield str(node.module), alias.name
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("mirrorgan_fast."):
                    yield alias.name, ""


def layer_of(module: str, name: str = "") -> str:
    """Return the layer member that contains a module, or a submodule imported by name."""
    parts = module.split(".")[1:]
    return parts[0] if parts else name


def faults(module: str, source: str) -> list[str]:
    """Return the errors in a module's imports."""
    found = []
    here = layer_of(module)
    for other, name in imports(source):
        there = layer_of(other, name)
        if name.startswith("_") and not name.startswith("__"):
            found.append(f"{module} imports the private name {other}.{name}")
        if here == there:
            continue
        (level, part), (other_level, other_part) = LAYER[here], LAYER[there]
        if level > other_level or (level == other_level and part != other_part):
            found.append(f"{module} imports {other}, which is not below it")
    return found


def modules() -> list[Path]:
    entries = (PACKAGE / "__init__.py", PACKAGE / "__main__.py")
    return [path for path in sorted(PACKAGE.rglob("*.py")) if path not in entries]


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_modules_import_only_lower_layers(path: Path) -> None:
    module = "mirrorgan_fast." + ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    assert faults(module, path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("mirrorgan_fast.training.run", "from mirrorgan_fast.sampling.sampler import Sampler"),
        ("mirrorgan_fast.models.glam", "def f():\n    from mirrorgan_fast.data import cub"),
        ("mirrorgan_fast.data.cub", "import mirrorgan_fast.models.glam"),
        ("mirrorgan_fast.inference.renderer", "from mirrorgan_fast.training import run"),
        ("mirrorgan_fast.cli.main", "from mirrorgan_fast.pictures import _on_white"),
        ("mirrorgan_fast.errors", "from mirrorgan_fast import files"),
    ],
)
def test_wrong_imports_are_found(module: str, source: str) -> None:
    assert len(faults(module, source)) == 1


def test_tests_import_nothing_from_the_benchmarks() -> None:
    for path in (PACKAGE.parent / "tests").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [node.module] if isinstance(node, ast.ImportFrom) else []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            assert not any((name or "").startswith("benchmarks") for name in names), path
