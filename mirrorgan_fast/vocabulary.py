r"""Words and their numbers: captions to token tensors and back.

A vocabulary is an ordered list of words. Word 0 is always "<end>": it ends a caption and fills the
places after it, as in the data that StackGAN, AttnGAN and MirrorGAN share. Captions are split as
there, by NLTK's ``RegexpTokenizer(r"\w+")`` in lower case, but words of every script are kept
whole, not only those in ASCII.
"""

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from nltk.tokenize.regexp import RegexpTokenizer
from torch import Tensor

from mirrorgan_fast.errors import InputError
from mirrorgan_fast.files import StrPath, read_file, whole_file

END = "<end>"
LARGEST_FILE = 2**22
"""Bytes of a file of words; COCO's 27,297 words take 0.2 MB."""

# From NLTK 3.10 on, \w has the combining marks, without which Hindi falls apart at every vowel.
_TOKENIZER = RegexpTokenizer(r"\w+")


@dataclass(frozen=True)
class Encoded:
    """N captions as numbers.

    tokens: int64 (N, T), word numbers, filled up with 0.
    lengths: int64 (N,), how many of the T are words, in [0, T].
    unknown: for each caption, its words that are not in the vocabulary, in order; they are not in
        ``tokens``.
    """

    tokens: Tensor
    lengths: Tensor
    unknown: list[list[str]]


class Vocabulary:
    """The words a model knows, numbered from 0 ("<end>").

    words: the words in the order of their numbers, each once, the first of them "<end>", none empty
        or with white space.

    Raises InputError if the words are not such a list.
    """

    def __init__(self, words: Sequence[str]) -> None:
        _check_words(words, place=lambda index: f"word {index} of the vocabulary")
        self._words = tuple(words)
        self._numbers = {word: number for number, word in enumerate(self._words)}

    @classmethod
    def build(cls, captions: Iterable[str], minimum_count: int = 1) -> "Vocabulary":
        """The vocabulary of all words that occur at least ``minimum_count`` times in the captions.

        Words are ordered by falling frequency, equally frequent ones by code point, so the same
        captions in any order give the same vocabulary. Raises InputError if no word is left.
        """
        counts = Counter(word for words in _split_all(captions) for word in words)
        kept = [word for word, count in counts.items() if count >= minimum_count]
        if not kept:
            raise InputError(
                f"none of the captions' {len(counts)} words occurs {minimum_count} times: "
                "give more captions or a smaller minimum_count"
            )
        return cls([END, *sorted(kept, key=lambda word: (-counts[word], word))])

    @classmethod
    def load(cls, path: StrPath) -> "Vocabulary":
        """Reads what ``save`` wrote: UTF-8 text, one word a line, the first line "<end>".

        Raises InputError, naming the file and the line, if the file is anything else.
        """
        lines = read_file(path, LARGEST_FILE).removesuffix(b"\n").split(b"\n")
        words = []
        for number, line in enumerate(lines, start=1):
            try:
                words.append(line.removesuffix(b"\r").decode("utf-8"))
            except UnicodeDecodeError as error:
                raise InputError(f"{path}, line {number}: not UTF-8 text") from error
        _check_words(words, place=lambda index: f"{path}, line {index + 1}")
        return cls(words)

    def save(self, path: StrPath) -> None:
        """Writes the words as UTF-8 text, one a line. The file appears whole or not at all.

        The folder is made if need be. Raises InputError if the file cannot be written there.
        """
        with whole_file(path) as partial:
            partial.write_text("".join(f"{word}\n" for word in self._words), encoding="utf-8")

    def __len__(self) -> int:
        return len(self._words)

    @property
    def words(self) -> tuple[str, ...]:
        """All words; the position of a word is its number."""
        return self._words

    def tokenize(self, caption: str) -> list[str]:
        """The caption's words in lower case, known and unknown, without punctuation."""
        return _split(caption)

    def encode(
        self,
        captions: Sequence[str],
        caption_length: int,
        rng: np.random.Generator | None = None,
    ) -> Encoded:
        """N captions to tokens (N, T), T being ``caption_length``.

        Unknown words are dropped and reported. Of more than T known words the first T are kept or,
        when ``rng`` is given, as training does, a random T of them in their order. A caption
        without any known word has length 0; whether that is an error is the caller's to decide.

        Raises InputError if ``captions`` is a single string or holds anything but strings, or
        ``caption_length`` is below 1.
        """
        if caption_length < 1:
            raise InputError(f"caption_length must be at least 1, found {caption_length}")
        tokens = np.zeros((len(captions), caption_length), dtype=np.int64)
        lengths = np.zeros(len(captions), dtype=np.int64)
        unknown: list[list[str]] = []
        for row, words in enumerate(_split_all(captions)):
            unknown.append([word for word in words if word not in self._numbers])
            numbers = [self._numbers[word] for word in words if word in self._numbers]
            known = np.array(numbers, dtype=np.int64)
            if rng is not None and len(known) > caption_length:
                known = known[np.sort(rng.choice(len(known), caption_length, replace=False))]
            lengths[row] = min(len(known), caption_length)
            tokens[row, : lengths[row]] = known[:caption_length]
        return Encoded(torch.from_numpy(tokens), torch.from_numpy(lengths), unknown)

    def decode(self, tokens: Tensor | Sequence[int]) -> str:
        """The words of one caption, tokens (T,), joined by spaces, up to the first "<end>".

        Raises InputError for a number that no word has.
        """
        words = []
        for number in tokens.tolist() if isinstance(tokens, Tensor) else tokens:
            if not 0 <= number < len(self):
                raise InputError(f"token {number} is not of this vocabulary of {len(self)} words")
            if number == 0:
                break
            words.append(self._words[number])
        return " ".join(words)


def _split(caption: str) -> list[str]:
    # NFC: an accented letter is the same word however it was typed.
    words: list[str] = _TOKENIZER.tokenize(unicodedata.normalize("NFC", caption.lower()))
    return words


def each_caption(captions: Iterable[str]) -> Iterator[str]:
    """The captions one by one. Raises InputError for a single string, and for what is no string."""
    if isinstance(captions, str):
        raise InputError("captions must be a list of strings, found one string: put it in a list")
    for position, caption in enumerate(captions):
        if not isinstance(caption, str):
            raise InputError(f"caption {position} must be a string, found {type(caption).__name__}")
        yield caption


def _split_all(captions: Iterable[str]) -> Iterator[list[str]]:
    """The words of each caption. Raises InputError for what is no caption."""
    for position, caption in enumerate(each_caption(captions)):
        try:
            yield _split(caption)
        except (
            TimeoutError
        ) as error:  # NLTK gives up after 5 s, which is some 50 million characters
            raise InputError(
                f"caption {position} is too long: {len(caption)} characters"
            ) from error


def _check_words(words: Sequence[str], place: Callable[[int], str]) -> None:
    """Raises InputError for the first entry a vocabulary cannot have; ``place(index)`` names it."""
    if not words or words[0] != END:
        raise InputError(f'{place(0)}: must be "{END}", found {words[0] if words else ""!r:.80}')
    first_seen: dict[str, int] = {}
    for index, word in enumerate(words):
        # split() knows every white space of Unicode, so every way to end a line.
        if not isinstance(word, str) or word.split() != [word]:
            raise InputError(f"{place(index)}: must be one word, found {word!r:.80}")
        if word in first_seen:
            raise InputError(f"{place(index)}: {word!r:.80} repeats {place(first_seen[word])}")
        first_seen[word] = index
