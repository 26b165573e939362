"""Exported files, run in a process that does not import this package, against the model."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mirrorgan_fast.errors import InputError
from mirrorgan_fast.inference.export import export
from mirrorgan_fast.inference.translator import Translator
from mirrorgan_fast.models.config import CycleGANConfig, GawwnConfig
from mirrorgan_fast.models.cyclegan import CycleGAN
from mirrorgan_fast.models.mirrorgan import MirrorGAN
from mirrorgan_fast.vocabulary import Vocabulary
from tests.small import SMALL, small_gawwn, vectors_model

CONFIG = dataclasses.replace(SMALL, noise_size=6, condition_size=5, caption_length=4)
WORDS = ["<end>", "a", "red", "blue", "bird", "鸟"]
NAMES = ("tokens", "lengths", "noise", "condition_noise")
FILES = {
    "paper": ("aoti", "paper.pt2"),
    "authors": ("onnx", "authors.onnx"),
    "none": ("onnx", "none.onnx"),
    "birds-painted": ("onnx", "birds-painted.onnx"),
}
"""Format and file of each model: one of each form of sentence attention, and the shipped one."""

EXPORT = """
import json, sys, torch
from mirrorgan_fast.inference.export import export
from mirrorgan_fast.models.mirrorgan import MirrorGAN

for name, (format, file) in json.loads(sys.argv[1]).items():
    model = MirrorGAN.from_pretrained(name).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.set_default_dtype(torch.float64)  # neither this nor autocast may change the file
    with torch.autocast("cpu", torch.bfloat16):
        export(model, file, format)
    torch.set_default_dtype(torch.float32)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(before[name], now) for name, now in model.state_dict().items())
"""

RUN = """
import json, sys
import onnxruntime, torch
from safetensors.torch import load_file, save_file

NAMES = ("tokens", "lengths", "noise", "condition_noise")

def load(file):
    if file.endswith(".pt2"):
        compiled = torch._inductor.aoti_load_package(file)
        return compiled, compiled.get_metadata()
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])

    def run(*given):
        named = {name: tensor.numpy() for name, tensor in zip(NAMES, given)}
        return torch.from_numpy(session.run(["images"], named)[0])

    return run, session.get_modelmeta().custom_metadata_map

all_metadata = {}
for name, (_, file) in json.loads(sys.argv[1]).items():
    run, all_metadata[name] = load(file)
    given = load_file(name + ".inputs")
    cases = {key.split()[1] for key in given}
    images = {case: run(*(given[f"{name} {case}"] for name in NAMES)) for case in cases}
    save_file(images, name + ".images")

    right = [given[f"{name} 0"] for name in NAMES]
    for i, wrong in ((0, right[0] + 10_000), (1, right[1] + 10_000)):
        try:
            run(*right[:i], wrong, *right[i + 1 :])
        except Exception as error:  # each library raises its own type
            print(error)
        else:
            raise AssertionError(f"{file} takes wrong {NAMES[i]}")
assert "mirrorgan_fast" not in sys.modules
print(json.dumps(all_metadata))
"""


def random_model(**changes: Any) -> MirrorGAN:
    """Return an untrained model with enlarged embeddings; otherwise words would hardly matter."""
    torch.manual_seed(0)
    model = MirrorGAN(dataclasses.replace(CONFIG, **changes), Vocabulary(WORDS))
    with torch.no_grad():
        model.stem.embedding.weight.mul_(30)
        for _ in range(20):  # statistics for the batch norms
            model(*random_inputs(model, torch.randint(1, 5, (16,)).tolist()))
    return model.eval()


def random_inputs(model: MirrorGAN, lengths: list[int]) -> tuple[Tensor, ...]:
    config, batch = model.config, len(lengths)
    tokens = torch.randint(1, len(model.vocabulary), (batch, config.caption_length))
    padding = torch.arange(config.caption_length) >= torch.tensor(lengths)[:, None]
    return (
        tokens.masked_fill(padding, 0),
        torch.tensor(lengths),
        torch.randn(batch, config.noise_size),
        torch.randn(batch, config.condition_size),
    )


def run_python(script: str, folder: Path, *parts: dict[str, tuple[str, str]]) -> list[str]:
    """Run a script in a folder, in one process for each part of `FILES`, all at the same time."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, json.dumps(part)],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for part in parts
    ]
    printed = [process.communicate()[0] for process in processes]
    assert not any(process.returncode for process in processes), printed
    return printed


@pytest.fixture(scope="module")
def models() -> dict[str, MirrorGAN]:
    forms = {form: random_model(sentence_attention=form) for form in list(FILES)[:-1]}
    return {**forms, "birds-painted": MirrorGAN.from_pretrained()}


@pytest.fixture
def model(models: dict[str, MirrorGAN]) -> MirrorGAN:
    return models["paper"]


@pytest.fixture(scope="module")
def folder(models: dict[str, MirrorGAN], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all exported files. Exporting must print nothing."""
    folder = tmp_path_factory.mktemp("exported")
    for name, model in models.items():
        model.save_pretrained(folder / name)
    compiled, onnx = {"paper": FILES["paper"]}, dict(list(FILES.items())[1:])
    assert run_python(EXPORT, folder, compiled, onnx) == ["", ""]
    expected = [*FILES, *(file for _, file in FILES.values())]
    assert sorted(path.name for path in folder.iterdir()) == sorted(expected)
    return folder


@pytest.fixture(scope="module")
def inputs(models: dict[str, MirrorGAN]) -> dict[str, list[tuple[Tensor, ...]]]:
    """For each model, batches of several sizes with captions of several lengths."""
    torch.manual_seed(1)
    return {
        name: [random_inputs(model, lengths) for lengths in ([1], [most], [1, most, 2], [3] * 5)]
        for name, model in models.items()
        for most in [model.config.caption_length]
    }


@pytest.fixture(scope="module")
def all_metadata(folder: Path, inputs: dict[str, list[tuple[Tensor, ...]]]) -> dict[str, Any]:
    """Run all files without this package, which saves their images; return their metadata."""
    for name, cases in inputs.items():
        tensors = {
            f"{argument} {case}": tensor
            for case, given in enumerate(cases)
            for argument, tensor in zip(NAMES, given, strict=True)
        }
        save_file(tensors, folder / f"{name}.inputs")
    metadata: dict[str, Any] = json.loads(run_python(RUN, folder, FILES)[0].splitlines()[-1])
    return metadata


@pytest.mark.parametrize("name", FILES)
@pytest.mark.usefixtures("all_metadata")
def test_a_file_gives_the_images_of_the_model(
    models: dict[str, MirrorGAN],
    inputs: dict[str, list[tuple[Tensor, ...]]],
    folder: Path,
    name: str,
) -> None:
    made = load_file(folder / f"{name}.images")
    for case, given in enumerate(inputs[name]):
        images, expected = made[str(case)], models[name].render(*given)
        assert images.dtype == torch.uint8
        assert images.shape == expected.shape
        difference = (images.int() - expected.int()).abs()
        assert difference.max() <= 1
        assert (difference > 0).float().mean() < 1e-3


def test_every_word_changes_the_image(model: MirrorGAN) -> None:
    """Otherwise the comparison above would not notice a wrong text encoder."""
    tokens, lengths, *noises = random_inputs(model, [4])
    image = model.render(tokens, lengths, *noises).int()
    for place in range(4):
        other = tokens.clone()
        other[0, place] = tokens[0, place] % 5 + 1
        assert (model.render(other, lengths, *noises).int() - image).abs().max() > 1
    assert (model.render(tokens, lengths - 1, *noises).int() - image).abs().max() > 1


@pytest.mark.parametrize("name", FILES)
def test_a_file_contains_the_vocabulary_and_the_sizes(
    models: dict[str, MirrorGAN], all_metadata: dict[str, dict[str, str]], name: str
) -> None:
    config, metadata = models[name].config, all_metadata[name]
    assert metadata["vocabulary"].split("\n") == list(models[name].vocabulary.words)
    for size in ("caption_length", "image_size", "noise_size", "condition_size"):
        assert int(metadata[size]) == getattr(config, size)


def test_an_onnx_file_names_its_inputs_and_has_only_standard_ops(folder: Path) -> None:
    content = (folder / "none.onnx").read_bytes()
    assert b"mirrorgan_fast" not in content  # nor any path of this package
    program = onnx.load_from_string(content)
    onnx.checker.check_model(program, full_check=True)
    assert {node.domain for node in program.graph.node} == {""}
    shapes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*program.graph.input, *program.graph.output)
    }
    assert shapes == {
        "tokens": ["batch", 4],
        "lengths": ["batch"],
        "noise": ["batch", 6],
        "condition_noise": ["batch", 5],
        "images": ["batch", 32, 32, 3],
    }


# --- what is refused ------------------------------------------------------------------------------


def refusal(model: MirrorGAN, path: Path, format: str) -> str:
    """Assert that exporting fails, with one line, and leaves no file; return the line."""
    with pytest.raises(InputError) as told:
        export(model, path, format)
    message = str(told.value)
    assert "\n" not in message
    assert not [file for file in path.parent.glob("*") if file.is_file()]
    return message


def test_an_unknown_format_or_a_wrong_suffix_is_refused(model: MirrorGAN, tmp_path: Path) -> None:
    assert "onnx, aoti" in refusal(model, tmp_path / "model.onnx", "torchscript")
    assert "ends in .onnx" in refusal(model, tmp_path / "model.pt2", "onnx")
    assert "ends in .pt2" in refusal(model, tmp_path / "model", "aoti")


def test_a_path_that_cannot_be_written_is_refused(model: MirrorGAN, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        export(model, tmp_path / "file" / "model.onnx", "onnx")


def test_a_missing_package_is_named(
    model: MirrorGAN, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "onnx" else name)
    message = refusal(model, tmp_path / "model.onnx", "onnx")
    assert message.startswith("the format onnx needs onnx, ")
    assert "pip install 'mirrorgan-fast[onnx]'" in message


def test_a_missing_compiler_is_named(model: MirrorGAN, tmp_path: Path) -> None:
    with torch._inductor.config.patch({"cpp.cxx": (None, "no-such-compiler")}):
        message = refusal(model, tmp_path / "model.pt2", "aoti")
    assert "no-such-compiler" in message
    assert "install g++ or clang" in message


def test_a_model_of_text_vectors_takes_these_instead_of_tokens(tmp_path: Path) -> None:
    model, path = vectors_model(), tmp_path / "model.onnx"
    export(model, path, "onnx")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = ["vectors", "noise", "condition_noise"]
    assert [each.name for each in session.get_inputs()] == names
    for count in (1, 5):
        vectors = torch.randn(count, 12, generator=torch.Generator().manual_seed(1))
        given = (vectors, *model.noise(2, range(count)))
        named = {name: tensor.numpy() for name, tensor in zip(names, given, strict=True)}
        images = torch.from_numpy(session.run(["images"], named)[0]).int()
        expected = model.render(*given).int()
        assert (images - expected).abs().max() <= 1
        assert expected.float().std() > 20
    metadata = session.get_modelmeta().custom_metadata_map
    assert (metadata["embedding_size"], metadata["vocabulary"]) == ("12", "<end>")
    assert "caption_length" not in metadata


@pytest.mark.parametrize("to", [None, "day"])
def test_a_translator_is_exported_for_pictures_of_any_size(tmp_path: Path, to: str | None) -> None:
    torch.manual_seed(0)
    sizes = {"generator_channels": 4, "residual_blocks": 2, "image_size": 32}
    model = CycleGAN(CycleGANConfig(**sizes, x="day", y="night"))
    export(model, tmp_path / "model.onnx", "onnx", to)
    session = onnxruntime.InferenceSession(
        tmp_path / "model.onnx", providers=["CPUExecutionProvider"]
    )
    translator = Translator(model, to, torch.float32)
    rng = np.random.default_rng(0)
    for shape in ((1, 8, 8, 3), (3, 12, 40, 3)):
        pictures = rng.integers(0, 256, shape, np.uint8)
        (translated,) = session.run(["translated"], {"pictures": pictures})
        wanted = np.stack(translator.translate(list(pictures)))
        assert np.abs(translated.astype(int) - wanted).max() <= 1
    metadata = session.get_modelmeta().custom_metadata_map
    names = ("night", "day") if to else ("day", "night")
    assert (metadata["from"], metadata["to"], metadata["image_size"]) == (*names, "32")


def test_a_box_is_an_input_of_an_exported_file(tmp_path: Path) -> None:
    config = GawwnConfig(
        image_size=32,
        generator_channels=8,
        embedding_size=16,
        word_embedding_size=8,
        caption_length=4,
        noise_size=6,
        image_encoder="small",
    )
    model = small_gawwn(config)
    export(model, tmp_path / "model.onnx", "onnx")
    session = onnxruntime.InferenceSession(
        tmp_path / "model.onnx", providers=["CPUExecutionProvider"]
    )
    names = [given.name for given in session.get_inputs()]
    assert names == ["tokens", "lengths", "noise", "box"]
    given = model.encode(["a red bird", "a blue bird with wings", "a bird"])
    boxes = [(0.125, 0.25, 0.5, 0.375), (0.0, 0.0, 1.0, 1.0), (0.6, 0.7, 0.3, 0.2)]
    noises = model.noise(3, range(3), boxes=boxes)
    tokens = torch.nn.functional.pad(given.tokens, (0, 4 - given.tokens.shape[1]))
    inputs = (tokens, given.lengths, *noises)
    (images,) = session.run(
        ["images"], {name: part.numpy() for name, part in zip(names, inputs, strict=True)}
    )
    difference = images.astype(int) - model.render(*inputs).numpy().astype(int)
    assert abs(difference).max() <= 1
    assert images.std() > 10
