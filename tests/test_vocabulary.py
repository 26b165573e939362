"""The vocabulary: compared with an ASCII tokenizer, in many scripts, and from damaged files."""

import random
import re
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from mirrorgan_fast.errors import InputError
from mirrorgan_fast.vocabulary import END, Vocabulary

WORDS = ("<end>", "this", "bird", "is", "red", "with", "a", "gray", "bill")


def random_captions(rng: random.Random, count: int) -> list[str]:
    alphabet = "abcAB09_ ,.;:'!?-()\t\n"
    return ["".join(rng.choices(alphabet, k=rng.randrange(60))) for _ in range(count)]


def ascii_words(caption: str) -> list[str]:
    return re.findall("[a-z0-9_]+", caption.lower())


def test_build_orders_by_frequency_then_alphabet_whatever_the_order_of_the_captions() -> None:
    rng = random.Random(1)
    captions = random_captions(rng, 300)
    counts = Counter(word for caption in captions for word in ascii_words(caption))
    expected = sorted((word for word in counts if counts[word] >= 3), key=lambda w: (-counts[w], w))
    assert 5 < len(expected) < len(counts)

    built = Vocabulary.build(captions, minimum_count=3)
    assert built.words == ("<end>", *expected)
    assert len(built) == len(expected) + 1
    rng.shuffle(captions)
    assert Vocabulary.build(iter(captions), minimum_count=3).words == built.words


def test_encode_agrees_with_a_plain_loop() -> None:
    captions = random_captions(random.Random(2), 200)
    vocabulary = Vocabulary.build(captions, minimum_count=2)
    length = 7
    encoded = vocabulary.encode(captions, length)
    assert encoded.tokens.dtype == encoded.lengths.dtype == torch.int64
    assert encoded.tokens.shape == (200, length)
    assert max(len(ascii_words(caption)) for caption in captions) > length
    for caption, tokens, count, unknown in zip(
        captions, encoded.tokens.tolist(), encoded.lengths.tolist(), encoded.unknown, strict=True
    ):
        known = [word for word in ascii_words(caption) if word in vocabulary.words][:length]
        assert [vocabulary.words[token] for token in tokens[:count]] == known
        assert tokens[count:] == [0] * (length - len(known))
        assert unknown == [w for w in ascii_words(caption) if w not in vocabulary.words]
    assert 0 in encoded.lengths


def test_a_long_caption_keeps_its_first_words_or_a_random_sorted_subset() -> None:
    vocabulary = Vocabulary(["<end>", *(f"w{number}" for number in range(1, 31))])
    caption = " ".join(vocabulary.words[1:])
    assert vocabulary.encode([caption], 12).tokens[0].tolist() == list(range(1, 13))

    rng = np.random.default_rng(3)
    subsets = vocabulary.encode([caption] * 400, 12, rng)
    assert subsets.lengths.tolist() == [12] * 400
    assert (subsets.tokens.diff(dim=1) > 0).all()
    # Each of the 30 words is kept in 12/30 of the draws: 160 of 400, standard deviation 10.
    kept = torch.bincount(subsets.tokens.flatten(), minlength=31)[1:]
    assert kept.min() > 110
    assert kept.max() < 210
    again = vocabulary.encode([caption] * 400, 12, np.random.default_rng(3))
    assert torch.equal(again.tokens, subsets.tokens)
    short = vocabulary.encode(["w3 w1 w2"], 12, rng)
    assert short.tokens[0, :4].tolist() == [3, 1, 2, 0]


def test_decode_undoes_encode_and_stops_at_the_end() -> None:
    vocabulary = Vocabulary(WORDS)
    encoded = vocabulary.encode(["This bird, is GRAY!", "?"], 6)
    assert vocabulary.decode(encoded.tokens[0]) == "this bird is gray"
    assert vocabulary.decode(encoded.tokens[1]) == ""
    assert vocabulary.decode([2, 0, 2]) == "bird"


@pytest.mark.parametrize("token", [-1, len(WORDS)])
def test_decode_refuses_a_number_without_a_word(token: int) -> None:
    with pytest.raises(InputError, match=f"token {token} "):
        Vocabulary(WORDS).decode([1, token])


def test_similar_words_stay_different() -> None:
    vocabulary = Vocabulary.build(["a gray bird", "a grey bird"])
    assert {"gray", "grey"} < set(vocabulary.words)


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("Птица красная, клюв чёрный.", ["птица", "красная", "клюв", "чёрный"]),
        ("नीली चिड़िया की लाल पूँछ", ["नीली", "चिड़िया", "की", "लाल", "पूँछ"]),
        ("这只鸟是红色的。", ["这只鸟是红色的"]),
        ("طَائِرٌ أحمر", ["طَائِرٌ", "أحمر"]),
        ("cafe\u0301 caf\u00e9", ["caf\u00e9", "caf\u00e9"]),
        ("นกสีแดง", ["นกสีแดง"]),
        ("İstanbul", ["i\u0307stanbul"]),
        ("a \U0001f426 bird\u2019s \ud800 wing\x00", ["a", "bird", "s", "wing"]),
        ("\u2028... \n", []),
        ("", []),
    ],
)
def test_words_of_any_script_survive_and_come_back_from_a_file(
    caption: str, words: list[str], tmp_path: Path
) -> None:
    vocabulary = Vocabulary.build([caption, "bird"])
    assert vocabulary.tokenize(caption) == [unicodedata.normalize("NFC", word) for word in words]
    vocabulary.save(tmp_path / "words.txt")
    loaded = Vocabulary.load(tmp_path / "words.txt")
    assert loaded.words == vocabulary.words
    encoded = loaded.encode([caption], 9)
    assert encoded.unknown == [[]]
    assert encoded.lengths.tolist() == [len(words)]


def test_any_character_is_accepted(tmp_path: Path) -> None:
    rng = random.Random(4)
    captions = ["".join(chr(rng.randrange(0x110000)) for _ in range(40)) for _ in range(500)]
    captions += [chr(code) + "x" + chr(code) for code in range(0x3100)]
    vocabulary = Vocabulary.build(captions)
    vocabulary.save(tmp_path / "words.txt")
    assert Vocabulary.load(tmp_path / "words.txt").words == vocabulary.words
    encoded = vocabulary.encode(captions, 40)
    assert not any(encoded.unknown)
    for caption, tokens in zip(captions, encoded.tokens, strict=True):
        assert vocabulary.decode(tokens) == " ".join(vocabulary.tokenize(caption)[:40])


def test_a_caption_may_be_very_long() -> None:
    encoded = Vocabulary(WORDS).encode(["bird " * 200_000, "b" * 1_000_000], 18)
    assert encoded.lengths.tolist() == [18, 0]


def test_no_captions_encode_to_no_rows() -> None:
    encoded = Vocabulary(WORDS).encode([], 5)
    assert encoded.tokens.shape == (0, 5)
    assert encoded.lengths.shape == (0,)


def test_a_saved_file_replaces_the_old_one_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text("old")
    Vocabulary(WORDS).save(path)
    assert path.read_text() == "".join(f"{word}\n" for word in WORDS)
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(InputError, match=r"words\.txt.missing: cannot be written"):
        Vocabulary(WORDS).save(path / "missing")


@pytest.mark.parametrize(
    ("content", "line", "fault"),
    [
        (b"", 1, "<end>"),
        (b"bird\n<end>\n", 1, "<end>"),
        (b"<end>\nbird\nred\nbird\n", 4, "repeats"),
        (b"<end>\nbird\n\nred\n", 3, "one word"),
        (b"<end>\nred bird\n", 2, "one word"),
        (b"<end>\nred\nb\xffrd\n", 3, "UTF-8"),
    ],
)
def test_a_damaged_file_is_refused_with_its_line(
    content: bytes, line: int, fault: str, tmp_path: Path
) -> None:
    path = tmp_path / "words.txt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"words\.txt, line {line}: .*{fault}") as caught:
        Vocabulary.load(path)
    assert "\n" not in str(caught.value)


def test_a_file_with_the_line_ends_of_windows_loads(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_bytes("\r\n".join(WORDS).encode())
    assert Vocabulary.load(path).words == WORDS


def test_bad_arguments_are_refused(tmp_path: Path) -> None:
    vocabulary = Vocabulary(WORDS)
    with pytest.raises(InputError, match="cannot be read"):
        Vocabulary.load(tmp_path / "nothing.txt")
    with pytest.raises(InputError, match="word 0"):
        Vocabulary([])
    with pytest.raises(InputError, match=r"word 2 .* repeats word 1"):
        Vocabulary(["<end>", "bird", "bird"])
    with pytest.raises(InputError, match="caption_length"):
        vocabulary.encode(["bird"], 0)
    with pytest.raises(InputError, match="one string"):
        vocabulary.encode("bird", 5)
    with pytest.raises(InputError, match="caption 1 must be a string, found NoneType"):
        vocabulary.encode(["bird", None], 5)  # type: ignore[list-item]
    with pytest.raises(InputError, match="occurs 2 times"):
        Vocabulary.build(["red bird"], minimum_count=2)


def test_an_extended_vocabulary_begins_with_the_old_one() -> None:
    old = Vocabulary([END, "bird", "a", "with"])
    new = old.extended(["A scarlet bird", "a SCARLET wing with a crest", "wing", "2 birds"])
    assert new.words == (END, "bird", "a", "with", "scarlet", "wing", "2", "birds", "crest")
    assert old.words == (END, "bird", "a", "with")
    assert old.extended([]).words == old.words
