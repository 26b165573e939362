"""Images generated in pairs: of one caption, or of two that differ in a word."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from mirrorgan_fast.data.examples import TrainingExamples
from mirrorgan_fast.errors import InputError
from mirrorgan_fast.metrics.unchanged import rest_change
from mirrorgan_fast.training.batches import Batch
from mirrorgan_fast.training.cascade import check_cascade
from mirrorgan_fast.training.checkpoint import load_checkpoint
from mirrorgan_fast.training.gan import Captioned
from mirrorgan_fast.training.mirrorgan import train_mirrorgan
from mirrorgan_fast.training.objectives import edit_loss
from mirrorgan_fast.training.settings import MirrorGANSettings, MirrorGANTrainingSettings
from mirrorgan_fast.vocabulary import Vocabulary

from .runs import HERE, STACKGAN_V2, TINY, batch_of, mirrorgan_task

CONFIG = dataclasses.replace(TINY, text_dropout=0.0)
PROJECTED = dataclasses.replace(CONFIG, discriminator="projected")
EDITED = MirrorGANSettings(
    steps=4,
    batch_size=4,
    form="authors",
    damsm_weight=1.0,
    edit_weight=3.0,
    edit_words=("red", "yellow", "brown", "white", "black"),
)
BOTH = dataclasses.replace(EDITED, difference_weight=1.0, augment=True)


def edited_batch(examples: TrainingExamples) -> Batch:
    return batch_of(examples.with_edits(EDITED.edit_words), 6)


def test_each_second_caption_is_the_one_before_with_another_word(
    examples: TrainingExamples, vocabulary: Vocabulary
) -> None:
    task, batch = mirrorgan_task(CONFIG, EDITED, vocabulary), edited_batch(examples)
    given = task.encode(0, batch)
    asked = task.asked(0, given, batch)
    for name in Captioned._fields[:-1]:
        ours, theirs = getattr(given, name), getattr(asked, name)
        assert torch.equal(theirs[::2], ours[::2]), name
    assert asked.reals is given.reals
    assert torch.equal(asked.tokens[1::2], batch["edited_tokens"][::2])
    assert (asked.tokens[1::2] != asked.tokens[::2]).any()
    words, sentence = task.stem(asked.tokens, asked.lengths)
    torch.testing.assert_close(asked.words, words)
    torch.testing.assert_close(asked.sentence, sentence)
    assert torch.equal(asked.judged, asked.sentence)
    assert len({*asked.labels.tolist()}) == 6  # no caption of another image's class


def test_a_pair_has_the_same_noise_and_its_loss(
    examples: TrainingExamples, vocabulary: Vocabulary
) -> None:
    task, batch = mirrorgan_task(CONFIG, EDITED, vocabulary), edited_batch(examples)
    given = task.encode(0, batch)
    twice = Captioned._make([*(part[::2].repeat_interleave(2, 0) for part in given[:-1]), []])
    task.generator.eval()
    images = task.generate(0, twice).images
    for image in images:
        torch.testing.assert_close(image[::2], image[1::2])
    assert float(edit_loss(images).detach()) == pytest.approx(0, abs=1e-6)

    fakes = task.generate(0, task.asked(0, given, batch)).images
    losses = task.generator_losses(0, given, fakes, "authors")
    changes = [rest_change(image[::2], image[1::2]).mean() for image in fakes]
    torch.testing.assert_close(losses["edit"], 3.0 * sum(changes) / len(changes))
    assert all(float(change.detach()) > 0 for change in changes)


def test_both_kinds_of_pairs_take_turns(examples: TrainingExamples, vocabulary: Vocabulary) -> None:
    task, batch = mirrorgan_task(PROJECTED, BOTH, vocabulary), edited_batch(examples)
    figures = [task.step(step, 0, batch) for step in range(4)]
    assert [("difference" in each, "edit" in each) for each in figures] == [
        (True, False),
        (False, True),
    ] * 2
    assert all(bool(value.isfinite()) for each in figures for value in each.values())


@pytest.mark.parametrize("settings", [EDITED, BOTH])
def test_a_run_resumes_to_the_same_bits(
    examples: TrainingExamples,
    vocabulary: Vocabulary,
    tmp_path: Path,
    assert_same: Any,
    settings: MirrorGANSettings,
) -> None:
    config = PROJECTED if settings.augment else CONFIG
    task = mirrorgan_task(config, settings, vocabulary)
    networks = (task.stem, task.image_encoder, task.stream)
    for folder, lengths in (("whole", (4,)), ("resumed", (3, 4))):
        for steps in lengths:
            gan = dataclasses.replace(settings, steps=steps)
            of_all = MirrorGANTrainingSettings(gan=gan, precision="fp32")
            train_mirrorgan(config, of_all, examples, *networks, tmp_path / folder, HERE)
    whole, resumed = (load_checkpoint(tmp_path / folder) for folder in ("whole", "resumed"))
    assert_same(resumed, whole)


@pytest.mark.parametrize(
    ("config", "changed", "parts", "fault"),
    [
        (CONFIG, {"batch_size": 6}, 2, "batch_size is 6, computed in 2 parts.*edit_weight"),
        (CONFIG, {"captions": 2}, 1, "captions is 2, expected 1 with gan.edit_weight"),
        (STACKGAN_V2, {}, 1, "edit_weight: StackGAN\\+\\+ cannot have it"),
    ],
)
def test_what_does_not_go_with_edits_is_refused(
    config: Any, changed: dict[str, Any], parts: int, fault: str
) -> None:
    with pytest.raises(InputError, match=fault):
        check_cascade(config, dataclasses.replace(EDITED, **changed), parts)
