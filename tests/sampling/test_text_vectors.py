"""Text vectors instead of captions: which image a vector makes, runs of a file, and bad files."""

import io
import json
import os
import pickle
import random
import re
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tqdm import tqdm

import mirrorgan_fast
from mirrorgan_fast.cli.main import main
from mirrorgan_fast.data.painted_birds.data_set import export_image_folder
from mirrorgan_fast.errors import InputError
from mirrorgan_fast.figures.walk import walk
from mirrorgan_fast.inference.renderer import fuse
from mirrorgan_fast.models.config import StackGANConfig
from mirrorgan_fast.models.stackgan import StackGAN
from mirrorgan_fast.sampling import text_vectors
from mirrorgan_fast.sampling.captions import Request
from mirrorgan_fast.sampling.run import SamplingSettings, Summary, sample_to_folder
from mirrorgan_fast.sampling.sampler import Result, Sampler
from mirrorgan_fast.sampling.text_vectors import TextVectors
from mirrorgan_fast.training.fine_tuning import starting_model
from mirrorgan_fast.vocabulary import END, Vocabulary
from tests.small import files, pickle_of_python_2, small_model, vectors_model

D = 12
SETTINGS = SamplingSettings(seed=3, per_caption=2, shard_size=10)


@pytest.fixture(scope="module")
def model() -> StackGAN:
    return vectors_model()


@pytest.fixture
def vectors() -> np.ndarray:
    """Float32 (18, D)."""
    return 2 * np.random.default_rng(5).standard_normal((18, D), np.float32)


def saved(array: Any, path: Path) -> Path:
    np.save(path, array)
    return path


def pickled(images: Any, path: Path) -> Path:
    path.write_bytes(pickle.dumps(images, 2))
    return path


def sample(model: StackGAN, path: Path, folder: Path, **how: Any) -> Summary:
    with TextVectors.open(path) as vectors:
        return sample_to_folder(Sampler(model, batch_size=4), vectors, folder, SETTINGS, **how)


def manifest(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]


# --- which image a vector makes -------------------------------------------------------------------


def test_images_are_those_of_the_generator(model: StackGAN, vectors: np.ndarray) -> None:
    """Of its two stages in float64, called with the vector and the noise of the seed and index."""
    results = list(Sampler(model, dtype=torch.float32).sample_vectors(vectors, seed=7))
    z, eps = (part.double() for part in model.noise(7, range(len(vectors))))
    generator, sentence = vectors_model().G.double(), torch.from_numpy(vectors).double()
    with torch.no_grad():
        first = generator.stage1(z, eps[:, :5], sentence).images[0]
        assert generator.stage2 is not None
        images, _, _ = generator.stage2(first, eps[:, 5:], sentence)
    expected = (127.5 * (images.permute(0, 2, 3, 1) + 1)).numpy()
    assert expected.std() > 20
    assert np.abs(expected - np.roll(expected, 1, axis=0)).mean() > 10  # vectors and noise matter
    for result, image in zip(results, expected, strict=True):
        assert np.abs(result.image - image).max() <= 0.6  # rounded to whole gray levels
    found = [(result.caption, result.seed, result.index) for result in results]
    assert found == [(f"row {i}", 7, i) for i in range(18)]
    assert all(not result.words and not result.unknown for result in results)


def test_the_vector_matters_with_the_same_noise(model: StackGAN, vectors: np.ndarray) -> None:
    requests = [Request(1, 0, "one", 4, 9, vector=vector) for vector in vectors[:3]]
    first, second, third = (
        result.image.astype(float) for result in Sampler(model).stream(requests) if result
    )
    assert np.abs(first - second).mean() > 5
    assert np.abs(first - third).mean() > 5


@pytest.mark.parametrize("stages", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bits_do_not_depend_on_the_batch(
    stages: int, dtype: torch.dtype, vectors: np.ndarray
) -> None:
    model = vectors_model(stages=stages, image_size=16 * stages)
    requests = [Request(i, i, "", 2, i, vector=vector) for i, vector in enumerate(vectors, start=1)]
    expected = {}
    for request in requests:
        (expected[request.index],) = Sampler(model, dtype=dtype).stream([request])
    random.Random(0).shuffle(requests)
    for size in (1, 5, 64):
        for result in Sampler(model, dtype=dtype, batch_size=size).stream(requests):
            assert isinstance(result, Result)
            assert np.array_equal(result.image, expected[result.index].image)


def test_types_and_shapes_in_memory(model: StackGAN, vectors: np.ndarray) -> None:
    sampler = Sampler(model)
    half = vectors.astype(np.float16)
    expected = [result.image for result in sampler.sample_vectors(half, 1, 2, 0.5)]
    assert len(expected) == 36
    for same in (
        half.astype(np.float64),
        half.astype(">f4"),
        np.asfortranarray(half),
        torch.from_numpy(half),
        torch.from_numpy(half).double().requires_grad_(),
        half.reshape(6, 3, D),
    ):
        results = list(sampler.sample_vectors(same, 1, 2, 0.5))
        assert np.array_equal([result.image for result in results], expected)
    assert results[29].caption == "image 4, caption 2"
    assert results[29].index == 29


def test_plain_and_fused_and_loaded_models_agree(
    model: StackGAN, vectors: np.ndarray, tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path)
    loaded = mirrorgan_fast.load(tmp_path)
    assert loaded.config == model.config
    assert (tmp_path / "vocabulary.txt").read_text() == "<end>\n"
    assert all(name.startswith("G.") for name in model.state_dict())
    inputs = (torch.from_numpy(vectors), *model.noise(0, range(18)))
    plain = model.render(*inputs).float()
    assert plain.std() > 20
    for other in (loaded, fuse(loaded, torch.float32), pickle.loads(pickle.dumps(fuse(model)))):
        assert (other.render(*inputs).float() - plain).abs().mean() < 1.5
    renderer = fuse(loaded, torch.float32)
    with torch.no_grad():
        loaded.get_parameter("G.stage1.augment.linear.weight").mul_(-1)  # noticed
    assert (renderer.render(*inputs).float() - plain).abs().mean() > 5


def test_a_vocabulary_of_words_is_refused() -> None:
    with pytest.raises(InputError, match="2 words, but the model reads text vectors"):
        StackGAN(StackGANConfig(text="vectors"), Vocabulary([END, "bird"]))


# --- runs of a file -------------------------------------------------------------------------------


def test_files_of_all_kinds_make_the_same_images(
    model: StackGAN, vectors: np.ndarray, tmp_path: Path
) -> None:
    of_images = vectors.reshape(6, 3, D)
    rows = [f"row {i}" for i in range(18)]
    captions = [f"image {i}, caption {j}" for i in range(6) for j in range(3)]
    kinds = {
        "rows": (saved(vectors, tmp_path / "rows.npy"), rows),
        "wide": (saved(vectors.astype(">f8"), tmp_path / "wide.npy"), rows),
        "images": (saved(of_images, tmp_path / "images.npy"), captions),
        "long": (tmp_path / "long.npy", rows),
        "pickle": (pickled(list(of_images), tmp_path / "some.pickle"), captions),
        "old": (tmp_path / "old.pickle", captions),
    }
    kinds["old"][0].write_bytes(pickle_of_python_2(of_images))
    # NumPy in Python 2 wrote whole numbers like this on some machines
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (18L, 12L)}\n"
    kinds["long"][0].write_bytes(with_header(header, vectors.tobytes()))
    expected = [result.image for result in Sampler(model).sample_vectors(vectors, 3, 2)]
    for kind, (path, names) in kinds.items():
        done = sample(model, path, tmp_path / kind)
        assert (done.images, done.made, done.refused) == (36, 36, 0)
        for i, row in enumerate(manifest(tmp_path / kind)):
            assert (row["caption"], row["line"], row["index"]) == (names[i // 2], 1 + i // 2, i)
            image = np.asarray(Image.open(tmp_path / kind / row["file"]))
            assert np.array_equal(image, expected[i])
        assert sample(model, path, tmp_path / kind).made == 0


@pytest.mark.parametrize("share", [0.0, 0.3, 0.77, 0.999])
@pytest.mark.parametrize("format", ["png", "tar"])
def test_a_run_resumes_from_a_cut(
    format: str, share: float, model: StackGAN, vectors: np.ndarray, tmp_path: Path
) -> None:
    path, out = saved(vectors, tmp_path / "vectors.npy"), tmp_path / "out"
    settings = SamplingSettings(seed=3, per_caption=2, shard_size=10, format=format)
    for cut in (False, True):
        if cut:
            undisturbed = files(out)
            journal = out / ".progress" / "00003.jsonl"  # 6 images, the last shard
            os.truncate(journal, int(journal.stat().st_size * share))
            (out / "manifest.jsonl").unlink()
        with TextVectors.open(path) as given:
            done = sample_to_folder(Sampler(model, batch_size=5), given, out, settings)
        assert done.images == 36
    assert done.made >= 1
    assert files(out) == undisturbed


def test_other_vectors_are_another_run(
    model: StackGAN, vectors: np.ndarray, tmp_path: Path
) -> None:
    path, out = saved(vectors, tmp_path / "vectors.npy"), tmp_path / "out"
    sample(model, path, out)
    before = files(out)
    other = vectors.copy()
    other[11, 3] += 1e-3
    for changed in (other, vectors[:-1], vectors[::-1]):
        saved(changed, path)
        with pytest.raises(InputError, match=r"text_vectors .*, not .*: use another -o, or --over"):
            sample(model, path, out)
        assert files(out) == before
    saved(other, path)
    assert sample(model, path, out, overwrite=True).made == 36
    assert sample(model, path, out).made == 0
    after = files(out)
    different = sorted(name for name in before if before[name] != after[name])
    assert different == ["00002/00000022.png", "00002/00000023.png"]


def test_processes_divide_the_vectors(model: StackGAN, vectors: np.ndarray, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "model")
    path = saved(vectors, tmp_path / "v.npy")
    command = "-m torch.distributed.run --nproc-per-node 2 -m mirrorgan_fast sample -o out --quiet"
    options = "--text-vectors v.npy --model model -n 2 --seed 3 --shard-size 10"
    run = subprocess.run(
        [sys.executable, *command.split(), *options.split()],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout == "36 images in out\n"
    sample(model, path, tmp_path / "alone")
    assert files(tmp_path / "out") == files(tmp_path / "alone")
    assert sample(model, path, tmp_path / "out").made == 0


@pytest.fixture
def bar_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Show the progress bar after the first vector, and write it for each one."""

    def at_once(**options: Any) -> tqdm:
        return tqdm(**{**options, "delay": 1e-9, "mininterval": 0})

    monkeypatch.setattr(text_vectors, "tqdm", at_once)


def test_a_bar_shows_how_many_vectors_are_checked(
    model: StackGAN,
    vectors: np.ndarray,
    tmp_path: Path,
    bar_at_once: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = saved(vectors, tmp_path / "vectors.npy")
    sample(model, path, tmp_path / "quiet")
    assert capsys.readouterr().err == ""
    sample(model, path, tmp_path / "shown", quiet=False)
    shown = capsys.readouterr().err
    assert re.search(r"checking text vectors:  50%.* 9/18 .*vector/s", shown)
    assert re.search(r"checking text vectors: 100%.* 18/18 .*vector/s", shown)


def test_vectors_are_checked_without_a_terminal(
    vectors: np.ndarray, tmp_path: Path, bar_at_once: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", Closed())
    with TextVectors.open(saved(vectors, tmp_path / "vectors.npy")) as given:
        given.prepare(quiet=False)
    assert given.digest


def test_a_file_that_changes_meanwhile_is_noticed(vectors: np.ndarray, tmp_path: Path) -> None:
    path = saved(vectors, tmp_path / "vectors.npy")
    with TextVectors.open(path) as given:
        given.prepare()
        records = given.records()
        next(records)
        os.truncate(path, path.stat().st_size - 1)
        with pytest.raises(InputError, match="has changed while it was read"):
            list(records)


# --- bad input ------------------------------------------------------------------------------------

GOOD = np.ones((3, D), np.float32)


def with_one(value: float, dtype: str = "f4") -> np.ndarray:
    array = GOOD.astype(dtype)
    array[2, 5] = value
    return array


def npy(array: np.ndarray, **changes: Any) -> bytes:
    """Return a .npy file whose header may claim other things."""
    header = {"descr": array.dtype.str, "fortran_order": False, "shape": array.shape, **changes}
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, header)
    return stream.getvalue() + array.tobytes()


def with_header(header: bytes, numbers: bytes = b"") -> bytes:
    """Return a .npy file with a header of any text."""
    return b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header + numbers


class RunsCode:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("was-run"),)


BAD: dict[str, tuple[bytes, str]] = {
    "empty.npy": (b"", "neither NumPy's array nor a pickle"),
    "empty.pickle": (b"", "ends early"),
    "text.npy": (b"a bird\n", "neither NumPy's array nor a pickle"),
    "zip.npz": (b"PK\x03\x04", "neither NumPy's array nor a pickle"),
    "nan.npy": (npy(with_one(np.nan)), "row 2: found NaN"),
    "infinity.npy": (npy(with_one(-np.inf)), "row 2: found NaN, infinity"),
    "large.npy": (npy(with_one(1e300, "f8")), "row 2: .*too large for float32"),
    "nan.pickle": (pickle.dumps([GOOD, with_one(np.nan)], 2), "image 1, caption 2: found NaN"),
    "integers.npy": (npy(GOOD.astype("i4")), r"array of int32 of the shape \(3, 12\), expected"),
    "complex.npy": (npy(GOOD.astype("c8")), "array of complex64"),
    "extended.npy": (npy(GOOD.astype("g")), "array of float128"),
    "fields.npy": (npy(GOOD, descr=[("a", "<f4")]), "expected float16"),
    "line.npy": (npy(GOOD[0]), r"of the shape \(12,\)"),
    "four.npy": (npy(GOOD[None, None]), r"of the shape \(1, 1, 3, 12\)"),
    "no-rows.npy": (npy(GOOD[:0]), "has no vectors"),
    "no-numbers.npy": (npy(GOOD[:, :0], shape=(10**18, 0)), "has no vectors"),
    "negative.npy": (npy(GOOD, shape=(-3, -D)), "has no vectors"),
    "by-columns.npy": (npy(GOOD, fortran_order=True), "by columns"),
    "short.npy": (npy(GOOD)[:-1], "has 143 bytes of numbers, but its header says 144"),
    "long.npy": (npy(GOOD) + b"\0", "has 145 bytes of numbers"),
    "terabytes.npy": (npy(GOOD, shape=(10**12, D)), "header says 48,000,000,000,000"),
    "beyond.npy": (npy(GOOD, shape=(2**70, D)), "header says far more"),
    "digits.npy": (npy(GOOD, shape=(10**4000, 10**4000, D)), "header says far more"),
    "words.npy": (with_header(b"a b" + b" " * 900), r"header \(Cannot parse header.{181}\)"),
    "code.npy": (npy(GOOD, descr="|O"), "array of object"),
    "header.npy": (b"\x93NUMPY\2\0\xff\xff\xff\xff" + b"{" * 500, "damaged header"),
    "nested.npy": (b"\x93NUMPY\1\0\x00\x20" + b"(" * 0x2000, "damaged header"),
    "version.npy": (b"\x93NUMPY\7\0" + npy(GOOD)[8:], "damaged header"),
    "length.npy": (npy(np.ones((3, D + 1), np.float32)), "have 13 numbers .* vectors of 12"),
    "length.pickle": (pickle.dumps([np.ones((1, 5), "f4")]), "have 5 numbers .* vectors of 12"),
    "code.pickle": (pickle.dumps([RunsCode()], 2), "could run code"),
    "none.pickle": (pickle.dumps([]), "empty list"),
    "numbers.pickle": (pickle.dumps([[1.0] * D]), "not a list of arrays"),
    "array.pickle": (pickle.dumps(GOOD, 2), "not a list of arrays"),
    "flat.pickle": (pickle.dumps([GOOD[0]]), r"image 0: .*expected float16.* \(captions, D\)"),
    "whole.pickle": (pickle.dumps([GOOD.astype("i8")]), "image 0: is an array of int64"),
    "uneven.pickle": (pickle.dumps([GOOD, GOOD[:, :5]]), "image 1: has vectors of 5 numbers"),
    "without.pickle": (pickle.dumps([GOOD, GOOD[:0]]), "image 1: has no vectors"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_refused_in_a_line(
    name: str,
    model: StackGAN,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    content, message = BAD[name]
    Path(name).write_bytes(content)
    model.save_pretrained("model")
    assert main(["sample", "--text-vectors", name, "-o", "out", "--model", "model"]) == 2
    said = capsys.readouterr().err
    assert re.fullmatch(rf"mirrorgan-fast: .*{message}.*\n", said), said
    assert "length" in name or name in said
    assert sorted(os.listdir()) == sorted(["model", name])  # nothing else was written, or run


@pytest.mark.parametrize("name", ["missing.npy", "folder", "pipe"])
def test_only_regular_files_are_read(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match=r"cannot be read|not a regular file"):
        TextVectors.open(tmp_path / name)


@pytest.mark.parametrize("name", ["terabytes.npy", "beyond.npy", "header.npy", "no-numbers.npy"])
def test_what_a_header_claims_takes_no_memory(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(BAD[name][0])
    tracemalloc.start()
    try:
        with pytest.raises(InputError):
            TextVectors.open(tmp_path / name)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_damaged_files_are_read_or_refused(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    path, refused = tmp_path / "damaged.npy", 0
    for case in range(400):
        good = npy(GOOD) if case % 2 else pickle.dumps([GOOD, GOOD], 2)
        damaged = np.frombuffer(good, np.uint8).copy()
        places = rng.integers(0, len(damaged), rng.integers(1, 6))
        damaged[places] = rng.integers(0, 256, len(places))
        path.write_bytes(damaged[: rng.integers(1, len(damaged) + 1) if case % 3 else None])
        try:
            with TextVectors.open(path) as given:
                given.prepare()
                assert all(record.vector is not None for _, record in given.records())
        except InputError:
            refused += 1
    assert refused > 200


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([[1.0] * D], "found list, expected an array"),
        (np.ones((2, D + 1)), "have 13 numbers"),
        (np.ones(D), "of the shape"),
        (torch.ones(2, D, dtype=torch.int64), "array of int64"),
        (with_one(np.nan), "row 2: found NaN"),
    ],
)
def test_bad_vectors_in_memory(given: Any, message: str, model: StackGAN) -> None:
    with pytest.raises(InputError, match=message):
        list(Sampler(model).sample_vectors(given))


# --- what needs words, and what needs none --------------------------------------------------------

READS = r"this model reads text vectors of 12 numbers and knows no words.*--text-vectors"


def test_python_refuses_what_needs_words(model: StackGAN, vectors: np.ndarray) -> None:
    inputs = (torch.from_numpy(vectors), *model.noise(0, range(18)))
    asked: list[Callable[[], object]] = [
        lambda: model.sample(["a bird"]),
        lambda: list(Sampler(model)(["a bird"])),
        lambda: list(Sampler(model).stream([Request(1, 0, "a bird", 0, 0)])),
        lambda: walk(model, ["a bird"], 2),
        lambda: starting_model(model, model.config, ["a bird"]),
    ]
    for ask in asked:
        with pytest.raises(InputError, match=READS):
            ask()
    with pytest.raises(InputError, match="no word attention"):
        model.attention_maps(*inputs)
    with pytest.raises(InputError, match="reads captions, not text vectors"):
        next(Sampler(small_model()).sample_vectors(vectors))


def test_commands_refuse_what_needs_words(
    model: StackGAN,
    vectors: np.ndarray,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    model.save_pretrained("model")
    small_model().save_pretrained("captions")
    Path("captions.txt").write_text("a bird\n")
    saved(vectors, Path("v.npy"))
    export_image_folder(Path("birds"), train=24, test=4, size=64, progress=False)
    sample, vector_model = ["sample", "--quiet", "-o", "out.webp"], ["--model", "model"]
    trains = ["train", "all", "--data", "birds", "--run", "out.webp"]
    for command, message in {
        (*sample, "a bird", *vector_model): READS,
        (*sample, "a bird", "--walk", "2", *vector_model): READS,
        (*sample, "--captions", "captions.txt", *vector_model): READS,
        ("info", "--words", *vector_model): READS,
        ("evaluate", "--data", "birds", *vector_model): READS,
        (*trains, "--recipe", "stackgan-birds-painted", "--set", "text=vectors"): READS.replace(
            "12", "256"
        ),
        (*trains, "--init-from", "model"): READS,
        ("describe", "birds/none.png", *vector_model): "stackgan model, which has no captioner: "
        "it only makes images, with sample --text-vectors FILE",
        (*sample, "--text-vectors", "v.npy", "--walk", "2", *vector_model): "--walk: goes between",
        (*sample, "--text-vectors", "v.npy", "--box", "0,0,1,1", *vector_model): "--box is for",
        (*sample, "--text-vectors", "v.npy", "a bird"): "or a file of text vectors",
        (*sample, "--text-vectors", "v.npy", "--model", "captions"): "reads captions, not text",
    }.items():
        assert main(command) == 2
        said = capsys.readouterr().err
        assert re.fullmatch(rf"mirrorgan-fast: .*{message}.*\n", said), said
        assert not Path("out.webp").exists()


def test_the_command_samples_and_resumes(
    model: StackGAN,
    vectors: np.ndarray,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    model.save_pretrained("model")
    saved(vectors, Path("v.npy"))
    command = ["sample", "--text-vectors", "v.npy", "-n", "2", "--seed", "3", "--quiet"]
    for _ in range(2):
        assert main([*command, "-o", "out", "--model", "model"]) == 0
        assert capsys.readouterr().out == "36 images in out\n"
    expected = [result.image for result in Sampler(model).sample_vectors(vectors, 3, 2)]
    for row, image in zip(manifest(Path("out")), expected, strict=True):
        assert np.array_equal(np.asarray(Image.open(Path("out") / row["file"])), image)
    assert main(["info", "--json", "--model", "model"]) == 0
    shown = json.loads(capsys.readouterr().out)["model"]
    assert shown == {"name": "model", "system": "stackgan", "image_size": 32, "vector_size": 12}
