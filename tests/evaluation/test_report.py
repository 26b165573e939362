"""The report: complete, repeatable, right where the answer is known, and clear about bad data."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mirrorgan_fast.data.image_folder import ImageFolder
from mirrorgan_fast.data.painted_birds.bird import ATTRIBUTES
from mirrorgan_fast.data.painted_birds.data_set import true_attributes
from mirrorgan_fast.errors import InputError
from mirrorgan_fast.evaluation import report
from mirrorgan_fast.evaluation.features import FeatureReader
from mirrorgan_fast.evaluation.images import generate
from mirrorgan_fast.evaluation.report import as_table, evaluate
from mirrorgan_fast.evaluation.validation import Validation
from mirrorgan_fast.inference.renderer import fuse
from mirrorgan_fast.metrics.kernel_distance import kernel_distance
from mirrorgan_fast.models.config import MirrorGANConfig
from mirrorgan_fast.models.mirrorgan import MirrorGAN
from mirrorgan_fast.pictures import from_image, to_uint8
from mirrorgan_fast.sampling.sampler import Sampler
from mirrorgan_fast.vocabulary import Vocabulary

from .conftest import Oracle, pixels

TINY = MirrorGANConfig(
    image_size=64,
    generator_channels=4,
    residual_blocks=1,
    embedding_size=16,
    word_embedding_size=8,
    noise_size=6,
    condition_size=5,
    stream_hidden_size=8,
    image_encoder="small",
    stream_encoder="small",
)


@pytest.fixture
def folder(birds: Path) -> ImageFolder:
    return ImageFolder(birds, "test")


@pytest.fixture
def model(folder: ImageFolder) -> MirrorGAN:
    torch.manual_seed(0)
    captions = [caption for i in range(len(folder)) for caption in folder.captions(i)]
    return MirrorGAN(TINY, Vocabulary.build(captions))


@pytest.fixture
def judge(oracle: Oracle, folder: ImageFolder) -> Oracle:
    for i, attributes in enumerate(true_attributes(folder, range(len(folder)))):
        oracle.tell(pixels(folder, i), attributes)
    return oracle


def shares_in(figures: Any) -> list[float]:
    if isinstance(figures, dict):
        return [share for value in figures.values() for share in shares_in(value)]
    return [figures]


def test_measures_generated_and_real_images(
    model: MirrorGAN, judge: Oracle, folder: ImageFolder
) -> None:
    figures = evaluate(model, folder, judge=judge, count=5, seed=2, quiet=True)
    assert json.loads(json.dumps(figures)) == figures
    assert figures["judge"]["real"]["overall"] == 1
    assert figures["attributes"]["real"]["overall"] == 1  # the judge knows real pictures
    assert figures["attributes"]["generated"]["overall"] < 0.7  # the judge reads first values
    for section in ("attributes", "diversity", "edits", "r_precision", "redescription"):
        assert set(figures[section]) == {"generated", "real"}
    for section in ("judge", "attributes", "r_precision"):
        assert all(0 <= share <= 1 for share in shares_in(figures[section]))
    assert figures["edits"]["real"]["rest_change"] == 0
    assert 0 < figures["edits"]["real"]["changed_area"] < 0.15
    assert 0 <= figures["redescription"]["real"]["bleu_4"] <= 1
    assert evaluate(model, folder, judge=judge, count=5, seed=2, quiet=True) == figures


def test_without_a_classifier_the_other_metrics_are_measured(
    model: MirrorGAN, judge: Oracle, folder: ImageFolder
) -> None:
    figures = evaluate(model, folder, count=5, seed=2, quiet=True)
    whole = evaluate(model, folder, judge=judge, count=5, seed=2, quiet=True)
    assert figures["r_precision"] == whole["r_precision"]
    assert figures["redescription"] == {
        "generated": {},
        "real": {"bleu_4": whole["redescription"]["real"]["bleu_4"]},
    }
    assert not {"attributes", "edits", "judge"} & set(figures)
    lines = as_table(figures).splitlines()
    assert [line[:30].strip() for line in lines[1:]] == [
        "difference of two images of a",
        "R-precision (1 of 100), top 1",
        "top 2",
        "top 3",
        "BLEU-4",
    ]
    assert set(figures["diversity"]) == {"generated"}
    assert figures["diversity"]["generated"]["pairs"] == 5


def test_table_has_every_attribute_and_both_columns(
    model: MirrorGAN, judge: Oracle, folder: ImageFolder
) -> None:
    figures = evaluate(model, folder, judge=judge, count=4, quiet=True)
    lines = as_table(figures).splitlines()
    assert lines[0].split()[:4] == ["4", "captions,", "64", "px"]
    assert {line.split()[0] for line in lines} >= set(ATTRIBUTES)
    assert len({len(line) for line in lines}) == 1
    named = next(line for line in lines if line.startswith("attributes the caption names"))
    assert named.endswith("100.00%")
    assert f"{figures['attributes']['generated']['overall']:.2%}" in named
    assert next(line for line in lines if "BLEU" in line).split()[1] == "-"


def test_the_measured_images_are_those_that_users_get(
    model: MirrorGAN, folder: ImageFolder
) -> None:
    captions = [folder.captions(i)[0] for i in range(13)] + folder.captions(0)
    measured = generate(Sampler(model), captions, range(23), 4, title="", quiet=True)
    assert measured.shape == (23, 3, 64, 64)
    assert measured.dtype == torch.uint8
    renderer = fuse(model)
    for i in (0, 7, 18):
        (image,) = renderer.sample([captions[i]], 4, [i])
        assert np.array_equal(measured[i].permute(1, 2, 0), image)
    other_noise = generate(Sampler(model), [captions[18]], [17], 4, title="", quiet=True)
    assert (other_noise[0].int() - measured[18].int()).abs().float().mean() > 3


def test_captions_without_a_known_word_are_skipped(
    model: MirrorGAN, folder: ImageFolder, birds: Path, tmp_path: Path
) -> None:
    shutil.copytree(birds, tmp_path / "birds")
    metadata = tmp_path / "birds" / "metadata.jsonl"
    rows = [json.loads(line) for line in metadata.read_text().splitlines()]
    tests = [row for row in rows if row["split"] == "test"]
    tests[0]["captions"] = ["zzz"]
    tests[1]["captions"] = ["zzz", *tests[1]["captions"], "!!!"]
    metadata.write_text("".join(json.dumps(row) + "\n" for row in rows))
    figures = evaluate(model, ImageFolder(tmp_path / "birds", "test"), quiet=True)
    assert figures["count"] == 12
    assert figures["captions_passed_over"] == 3
    assert "3 captions without a known word skipped" in as_table(figures)
    assert evaluate(model, folder, quiet=True)["count"] == 13


class Means(FeatureReader):
    """The mean of each channel, in place of a network."""

    def __init__(self) -> None:
        self.read_images: list[int] = []

    def read(self, images: Tensor, title: str = "", *, quiet: bool = True) -> Tensor:
        self.read_images.append(len(images))
        return images.double().mean(dim=(2, 3)) / 255


def test_more_captions_than_pictures(
    model: MirrorGAN, judge: Oracle, folder: ImageFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each picture has a second caption, and its first one is as before."""
    asked: list[list[str]] = []

    def kept(sampler: Sampler, captions: list[str], *arguments: Any, **options: Any) -> Tensor:
        asked.append([*captions])
        return generate(sampler, captions, *arguments, **options)

    monkeypatch.setattr(report, "generate", kept)
    reader = Means()
    evaluate(model, folder, features=reader, count=13, seed=2, quiet=True)
    evaluate(model, folder, judge=judge, features=reader, count=30, seed=2, quiet=True)
    assert reader.read_images[:5] == [13, 13, 26, 13, 30]  # each real picture once, then pairs
    few, many = asked[0], asked[2]
    assert asked[1] == few  # the captions of the second images
    assert many[:13] == few
    for i in range(30):
        assert many[i] in folder.captions(i % 13)
    assert all(many[i] not in (many[i - 13], many[i - 26]) for i in range(26, 30))
    with pytest.raises(InputError, match="on 131 captions: the split has 130"):
        evaluate(model, folder, judge=judge, count=131, quiet=True)


def test_a_model_that_knows_no_word_is_refused(judge: Oracle, folder: ImageFolder) -> None:
    model = MirrorGAN(TINY, Vocabulary(["<end>", "teapot"]))
    with pytest.raises(InputError, match="knows no word of any caption"):
        evaluate(model, folder, judge=judge, count=2, quiet=True)


@pytest.mark.parametrize("field", ["attributes", "named"])
def test_rows_without_attributes_are_refused(
    model: MirrorGAN, judge: Oracle, birds: Path, tmp_path: Path, field: str
) -> None:
    shutil.copytree(birds, tmp_path / "birds")
    metadata = tmp_path / "birds" / "metadata.jsonl"
    rows = [json.loads(line) for line in metadata.read_text().splitlines()]
    for row in rows:
        del row[field]
    metadata.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError, match=f"picture 'images/test/00000' has no .*{field}"):
        evaluate(
            model,
            ImageFolder(tmp_path / "birds", "test"),
            judge=judge,
            count=2,
            quiet=True,
        )


def test_a_validation_agrees_with_the_report(
    model: MirrorGAN, judge: Oracle, folder: ImageFolder
) -> None:
    report = evaluate(model, folder, judge=judge, seed=2, quiet=True)
    figures = Validation(folder, judge, seed=2)(model)
    assert figures["r_precision"] == report["r_precision"]["generated"]["top_1"]
    for section in ("attributes", "redescription"):
        assert figures[section] == report[section]["generated"]["overall"]
    assert 0 < figures["diversity"] < 255
    assert Validation(folder, judge, seed=2)(model.train()) == figures
    plain = Validation(folder, seed=2)(model)
    assert set(plain) == {"r_precision", "redescription", "diversity"}
    assert 0 <= plain["redescription"] <= 1  # BLEU-4


def test_the_kernel_distance_is_that_of_the_features(model: MirrorGAN, folder: ImageFolder) -> None:
    reader = Means()
    figures = evaluate(model, folder, features=reader, seed=2, quiet=True)
    count = len(folder)
    assert reader.read_images == [count, count, 2 * count]  # the last are those of pairs
    size = model.config.image_size
    real = torch.stack([to_uint8(from_image(folder.image(i), size)[None])[0] for i in range(count)])
    real = real.permute(0, 3, 1, 2).double().mean(dim=(2, 3)) / 255
    halves = kernel_distance(real[::2], real[1::2], seed=2)
    assert figures["kernel_distance"]["real"] == pytest.approx(halves._asdict())
    assert figures["kernel_distance"]["generated"]["mean"] > halves.mean + 0.1
    table = as_table(figures)
    assert f"{halves.mean:.4f}" in next(each for each in table.splitlines() if "kernel" in each)

    reader = Means()
    validation = Validation(folder, features=reader, seed=2)
    found = validation(model)["kernel_distance"]
    assert found == pytest.approx(figures["kernel_distance"]["generated"]["mean"], abs=1e-9)
    assert validation(model)["kernel_distance"] == found
    assert reader.read_images == [count] * 3  # the real ones once


def test_damaged_held_out_pictures_do_not_stop_a_training(
    model: MirrorGAN, birds: Path, tmp_path: Path
) -> None:
    shutil.copytree(birds, tmp_path / "birds")
    folder = ImageFolder(tmp_path / "birds", "test")
    pictures = sorted((tmp_path / "birds" / "images" / "test").iterdir())
    pictures[4].write_bytes(b"no picture")
    reader = Means()
    assert "kernel_distance" in Validation(folder, features=reader)(model)
    assert reader.read_images == [len(folder) - 1, len(folder)]
    for picture in pictures[1:]:
        picture.write_bytes(b"no picture")
    assert "kernel_distance" not in Validation(folder, features=reader)(model)  # of one picture
    pictures[0].write_bytes(b"no picture")
    assert "kernel_distance" not in Validation(folder, features=reader)(model)


def test_a_validation_on_few_captions_has_no_r_precision(model: MirrorGAN, birds: Path) -> None:
    class Few(ImageFolder):
        def __len__(self) -> int:
            return 5

    few = Few(birds, "test")
    assert set(Validation(few)(model)) == {"redescription", "diversity"}
