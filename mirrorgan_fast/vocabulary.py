r"""The vocabulary: converts captions to token tensors and back.

A vocabulary is an ordered list of words. Word 0 is always "<end>": it ends a caption and pads the
positions after it, as in the data that StackGAN, AttnGAN and MirrorGAN share. As there, captions
are converted to lower case and split by NLTK's ``RegexpTokenizer(r"\w+")``. Unlike there, words in
every script are kept whole, not only those in ASCII.
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
"""The limit in bytes for a vocabulary file; COCO's 27,297 words take 0.2 MB."""

# From NLTK 3.10 on, \w includes combining marks. Without them, Hindi words are split at each vowel.
_TOKENIZER = RegexpTokenizer(r"\w+")


@dataclass(frozen=True)
class Encoded:
    """N captions as tokens.

    tokens: int64 (N, T), word numbers, padded with 0.
    lengths: int64 (N,), how many of the T are words, in [0, T].
    unknown: for each caption, the words that are not in the vocabulary, in order; ``tokens`` does
        not contain them.
    """

    tokens: Tensor
    lengths: Tensor
    unknown: list[list[str]]


class Vocabulary:
    """The words a model knows, numbered from 0 ("<end>").

    words: the words in the order of their numbers. The first is "<end>", no word occurs twice, and
        no word is empty or contains white space.

    Raises InputError if the words are not such a list.
    """

    def __init__(self, words: Sequence[str]) -> None:
        _check_words(words, place=lambda index: f"word {index} of the vocabulary")
        self._words = tuple(words)
        self._numbers = {word: number for number, word in enumerate(self._words)}

    @classmethod
    def build(cls, captions: Iterable[str], minimum_count: int = 1) -> "Vocabulary":
        """Build the vocabulary of all words that occur at least ``minimum_count`` times.

        Words are sorted by decreasing frequency, and equally frequent words by code point, so the
        order of the captions does not matter. Raises InputError if no word is left.
        """
        counts = _count_words(captions)
        kept = [word for word, count in counts if count >= minimum_count]
        if not kept:
            raise InputError(
                f"none of the captions' {len(counts)} words occurs {minimum_count} times: "
                "give more captions or a smaller minimum_count"
            )
        return cls([END, *kept])

    def extended(self, captions: Iterable[str]) -> "Vocabulary":
        """Return a vocabulary that begins with this one and also has all words of the captions.

        The new words are in the order of ``build``.
        """
        new = [word for word, _ in _count_words(captions) if word not in self._numbers]
        return Vocabulary([*self._words, *new])

    @classmethod
    def load(cls, path: StrPath) -> "Vocabulary":
        """Read a file that ``save`` wrote: UTF-8 text, one word per line, first "<end>".

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
        """Write the words as UTF-8 text, one per line, atomically.

        The folder is created if it does not exist. If writing fails, no partial file is left, and
        InputError is raised.
        """
        with whole_file(path) as partial:
            partial.write_text("".join(f"{word}\n" for word in self._words), encoding="utf-8")

    def __len__(self) -> int:
        return len(self._words)

    @property
    def words(self) -> tuple[str, ...]:
        """All words, in the order of their numbers."""
        return self._words

    def tokenize(self, caption: str) -> list[str]:
        """Return the caption's words in lower case, known and unknown, without punctuation."""
        return _split(caption)

    def encode(
        self,
        captions: Sequence[str],
        caption_length: int,
        rng: np.random.Generator | None = None,
    ) -> Encoded:
        """Convert N captions to tokens (N, T), where T is ``caption_length``.

        Unknown words are dropped and reported. If there are more than T known words, the first T
        are kept; with ``rng``, as in training, T random words are kept, in their order. A caption
        without a known word has length 0; the caller decides whether that is an error.

        Raises InputError if ``captions`` is a single string or contains anything but strings, or if
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
        """Return the words of one caption, tokens (T,), joined by spaces, up to the first "<end>".

        Raises InputError for a number outside the vocabulary.
        """
        words = []
        for number in tokens.tolist() if isinstance(tokens, Tensor) else tokens:
            if not 0 <= number < len(self):
                raise InputError(f"token {number} is not in the vocabulary of {len(self)} words")
            if number == 0:
                break
            words.append(self._words[number])
        return " ".join(words)


def _count_words(captions: Iterable[str]) -> list[tuple[str, int]]:
    """Return each word and how often it occurs, common words first, then by code point."""
    counts = Counter(word for words in _split_all(captions) for word in words)
    return sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))


def _split(caption: str) -> list[str]:
    # NFC: a word is the same whether its accented letters are composed or decomposed.
    words: list[str] = _TOKENIZER.tokenize(unicodedata.normalize("NFC", caption.lower()))
    return words


def each_caption(captions: Iterable[str]) -> Iterator[str]:
    """Yield the captions. Raises InputError for a single string or an item of another type."""
    if isinstance(captions, str):
        raise InputError("captions must be a list of strings, found one string: put it in a list")
    for position, caption in enumerate(captions):
        if not isinstance(caption, str):
            raise InputError(f"caption {position} must be a string, found {type(caption).__name__}")
        yield caption


def _split_all(captions: Iterable[str]) -> Iterator[list[str]]:
    """Yield the words of each caption. Raises InputError for an invalid caption."""
    for position, caption in enumerate(each_caption(captions)):
        try:
            yield _split(caption)
        except TimeoutError as error:  # NLTK gives up after 5 s, at about 50 million characters
            raise InputError(
                f"caption {position} is too long: {len(caption)} characters"
            ) from error


def _check_words(words: Sequence[str], place: Callable[[int], str]) -> None:
    """Raise InputError for the first invalid entry; ``place(index)`` names it in the message."""
    if not words or words[0] != END:
        raise InputError(f'{place(0)}: must be "{END}", found {words[0] if words else ""!r:.80}')
    first_seen: dict[str, int] = {}
    for index, word in enumerate(words):
        # split() knows all Unicode white space, so also every kind of line end.
        if not isinstance(word, str) or word.split() != [word]:
            raise InputError(f"{place(index)}: must be one word, found {word!r:.80}")
        if word in first_seen:
            raise InputError(f"{place(index)}: {word!r:.80} repeats {place(first_seen[word])}")
        first_seen[word] = index
