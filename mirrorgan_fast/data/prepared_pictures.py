"""The pictures of a data set, checked before a training and prepared for it.

``check_pictures`` decodes every picture once. It finds those that cannot be trained on, and fills
the cache if there is one, so that the training itself decodes none.
"""

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL
from numpy.typing import NDArray
from tqdm import tqdm

from mirrorgan_fast.data import preparation as preparing
from mirrorgan_fast.data.captioned_images import CaptionedImages, Subset
from mirrorgan_fast.data.picture_cache import PIXELS, PREFIX, PictureCache, fill_cache
from mirrorgan_fast.data.preparation import Preparation
from mirrorgan_fast.data.worker_processes import in_processes
from mirrorgan_fast.errors import InputError, printable
from mirrorgan_fast.files import open_lock, reason, regular
from mirrorgan_fast.vocabulary import END, Vocabulary

Decoded = NDArray[np.uint8] | str
"""A prepared picture, uint8 (H, W, 3), empty if it is not kept; or why it cannot be read."""

_LOG = logging.getLogger("mirrorgan_fast")
_TOKENIZER = Vocabulary([END])  # any vocabulary splits captions in the same way
_EMPTY = np.zeros((0, 0, 3), np.uint8)
_NAMED = 20  # pictures that are left out and named; more are only counted
_SAMPLE = 32  # pictures whose shapes tell the size of a cache
_WORTH_PROCESSES = 200  # pictures; below, starting processes takes longer than decoding
_MAX_PROCESSES = 16  # unless asked for; each may need 0.8 GB for the largest pictures
_MAX_WAITING = 2**28  # bytes of prepared pictures that wait for an earlier one
_BAR_AFTER = 2  # seconds; a shorter pass shows no bar
_PAUSE = 0.2  # seconds between two looks whether another process has filled a cache


class PreparedPictures:
    """Prepared pictures by their index: read from a cache, or else prepared when asked for.

    Args:
        images: the data set.
        preparation: how to prepare its pictures.
        cache: with the same pictures.
    """

    def __init__(
        self,
        images: CaptionedImages,
        preparation: Preparation,
        cache: PictureCache | None = None,
    ) -> None:
        self._images, self.preparation, self.cache = images, preparation, cache

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        """Return a prepared picture, uint8 (H, W, 3), which must not be changed.

        Raises:
            InputError: the picture or the cache is damaged.
        """
        if self.cache is not None:
            return self.cache[index]
        return self.preparation(self._images.image(index))


class CheckedPictures(NamedTuple):
    """What ``check_pictures`` returns.

    Attributes:
        images: the data set without the pictures that cannot be trained on.
        prepared: the prepared pictures of ``images``.
    """

    images: CaptionedImages
    prepared: PreparedPictures


def check_pictures(
    images: CaptionedImages,
    image_size: int,
    augment: bool,
    *,
    captioned: bool = True,
    cache: Path | None = None,
    workers: int = 1,
    strict: bool = False,
    quiet: bool = False,
) -> CheckedPictures:
    """Find the pictures that can be trained on, and prepare them in a cache.

    Each picture is decoded once, unless there is a cache from before. A picture that cannot be read
    or whose captions have no word is left out. Left-out pictures are logged, with the reason.

    The cache is a folder in ``cache`` whose name has a digest of all that decides its pixels, so a
    changed data set gets a new one. Its earlier ones are logged, but stay: another training may
    read them, or need them to resume if ``cache`` has several data sets with the same names. A
    damaged cache is filled anew: nothing in it is lost that the
    data set does not have. There is no cache if the disk has less than twice its size free, or if
    the data set cannot tell when its pictures change (``CaptionedImages.stamp``); this is logged.

    Args:
        images: the data set.
        image_size: of the training, in pixels a side.
        augment: whether the training augments the images.
        captioned: whether a picture needs a caption.
        cache: the folder for caches of any data sets; created if it does not exist. None: no cache.
        workers: 0: this process decodes the pictures. Otherwise as many processes as there are
            cores, at most 16, or more if this number is larger: nothing else computes meanwhile.
        strict: whether to raise an error instead of leaving pictures out.
        quiet: no progress bar, and no word about the size of the cache and about earlier ones.

    Raises:
        InputError: fewer than two pictures can be trained on, one cannot and ``strict`` is set, or
            the cache cannot be written.
    """
    preparation = Preparation(image_size, augment)
    faults = {
        index: "its captions have no word"
        for index in range(len(images))
        if captioned and not any(map(_TOKENIZER.tokenize, images.captions(index)))
    }
    if strict:
        _refuse(images, faults)
    check = _Pass(images, preparation, workers, strict, quiet)
    found = None if cache is None else _open_or_fill(cache, check)
    if found is not None:
        faults = found.faults | faults
    else:
        with closing(check.run(keep=False)) as results:
            faults = {i: each for i, each in enumerate(results) if isinstance(each, str)} | faults
    if strict:
        _refuse(images, faults)
    _report(images, faults, found)
    left = [index for index in range(len(images)) if index not in faults]
    if len(left) < 2:
        why = f" ({images.name(min(faults))!r}: {faults[min(faults)]})" if faults else ""
        raise InputError(
            f"{len(left)} of {len(images)} pictures can be trained on, expected 2 or more{why}"
        )
    if faults:
        images = Subset(images, left)
        found = None if found is None else found.part(left)
    return CheckedPictures(images, PreparedPictures(images, preparation, found))


@dataclass(frozen=True)
class _Pass:
    """One pass over all pictures. See ``check_pictures``."""

    images: CaptionedImages
    preparation: Preparation
    workers: int
    strict: bool
    quiet: bool

    def run(self, keep: bool) -> Generator[Decoded, None, None]:
        """Yield what becomes of each picture, in order.

        Args:
            keep: whether to yield the prepared pictures.

        Raises:
            InputError: a picture cannot be read, and ``strict`` is set.
        """
        count = len(self.images)
        decode = _Decoder(self.images, self.preparation if keep else None)
        results: Generator[Decoded, None, None]
        if self.workers == 0 or count < _WORTH_PROCESSES:
            results = (decode(index) for index in range(count))
        else:
            cores = os.cpu_count() or 1
            processes = max(self.workers, min(cores, _MAX_PROCESSES))
            # a square picture; longer ones are few
            waiting = _MAX_WAITING // (3 * self.preparation.shorter_side**2) if keep else 1000
            results = in_processes(decode, range(count), processes, max(1, min(1000, waiting)))
        with (
            closing(results),
            tqdm(
                total=count,
                desc="caching pictures" if keep else "checking pictures",
                unit="image",
                disable=self.quiet,
                delay=_BAR_AFTER,
            ) as bar,
        ):
            for index, result in enumerate(results):
                if self.strict and isinstance(result, str):
                    _refuse(self.images, {index: result})
                yield result
                bar.update()


@dataclass(frozen=True)
class _Decoder:
    """Decodes single pictures, and prepares them if there is a ``preparation``."""

    images: CaptionedImages
    preparation: Preparation | None

    def __call__(self, index: int) -> Decoded:
        try:
            picture = self.images.image(index)
        except InputError as error:
            return str(error)
        return _EMPTY if self.preparation is None else self.preparation(picture)


def _open_or_fill(parent: Path, check: _Pass) -> PictureCache | None:
    """Return the cache of a data set, which is filled if it is not there; None if it cannot be."""
    images, preparation = check.images, check.preparation
    digest = _digest(images, preparation)
    if digest is None:
        _LOG.warning("pictures: no cache, because the data set cannot tell when they change")
        return None
    augmented = "augmented-" if preparation.augment else ""
    kind = f"{PREFIX}{preparation.image_size}-{augmented}{_digest_of_names(images)[:8]}-"
    folder = parent / f"{kind}{digest[:16]}"

    def opened() -> PictureCache | None:
        if not os.path.lexists(folder):
            return None
        try:
            return PictureCache(folder, digest, preparation, len(images))
        except InputError as error:
            _LOG.warning("%s: the cache is filled anew", error)
            return None

    cache = opened()
    if cache is not None:
        return cache
    if not check.quiet:
        _report_earlier(parent, kind, folder)
    size, free = _size(images, preparation), _free(parent)
    where = printable(str(folder))
    if free < 2 * size:
        _LOG.warning(
            "pictures: no cache, because it would have %s and %s has only %s free; use another "
            "folder (--cache FOLDER)",
            *(_gigabytes(size), printable(str(parent)), _gigabytes(free)),
        )
        return None
    if not check.quiet:
        _LOG.warning("pictures: about %s in %s", _gigabytes(size), where)
    with _alone(parent / f".{folder.name}.lock", where) as waited:
        cache = opened() if waited else None
        if cache is None:
            with closing(check.run(keep=True)) as pictures:
                fill_cache(folder, digest, pictures)
            cache = PictureCache(folder, digest, preparation, len(images))
    return cache


def _digest(images: CaptionedImages, preparation: Preparation) -> str | None:
    """Return a hash of all that decides the prepared pixels; None if that cannot be told."""
    # Another version of Pillow may decode and scale a picture slightly differently.
    rows = hashlib.sha256(f"{preparing.VERSION} {preparation} {PIL.__version__}".encode())
    for index in range(len(images)):
        stamp = images.stamp(index)
        if stamp is None:
            return None
        rows.update(json.dumps([images.name(index), stamp]).encode())
    return rows.hexdigest()


def _digest_of_names(images: CaptionedImages) -> str:
    names = [images.name(index) for index in range(len(images))]
    return hashlib.sha256(json.dumps(names).encode()).hexdigest()


def _report_earlier(parent: Path, kind: str, new: Path) -> None:
    """Log the other caches of pictures with the same names, of the same size."""
    for earlier in sorted(parent.glob(f"{kind}*")):
        try:
            pixels = regular(earlier / PIXELS)
        except OSError:
            continue
        if pixels is not None and earlier != new:
            _LOG.warning(
                "pictures: %s (%s) was made before these pictures changed, or of others with the "
                "same names; it can be deleted if no training needs it",
                printable(str(earlier)),
                _gigabytes(pixels.st_size),
            )


def _size(images: CaptionedImages, preparation: Preparation) -> int:
    """Return the size of a cache in bytes, judged by a few pictures."""
    count = len(images)
    if not preparation.augment:
        return 3 * count * preparation.image_size**2
    pixels = []
    for index in range(0, count, max(1, count // _SAMPLE)):
        try:
            height, width = preparation.shape(images.size(index))
        except InputError:  # it is reported by the pass
            continue
        pixels.append(height * width)
    return round(3 * count * sum(pixels) / max(1, len(pixels)))


def _free(folder: Path) -> int:
    """Return the free bytes of the disk where a folder is or will be."""
    folder = Path(os.path.abspath(folder))
    while not os.path.isdir(folder) and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


@contextmanager
def _alone(lock: Path, name: str) -> Iterator[bool]:
    """Wait until no other process fills a cache; yield whether there was one.

    The processes of ``torchrun``, for example, start at the same time.
    """
    waited = False
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{lock.parent}: cannot be written ({reason(error)}); use another folder (--cache "
            f"FOLDER), or train without a cache (--no-cache)"
        ) from error
    while True:
        try:
            file = open_lock(lock, "")
            break
        except InputError as error:
            if not isinstance(error.__cause__, BlockingIOError):
                raise
        if not waited:
            _LOG.warning("pictures: waiting for another process that fills %s", name)
        waited = True
        time.sleep(_PAUSE)
    with file:
        yield waited


def _refuse(images: CaptionedImages, faults: dict[int, str]) -> None:
    """Raise InputError for the first picture that cannot be trained on, if there is one."""
    for index in sorted(faults)[:1]:
        raise InputError(f"picture {images.name(index)!r} cannot be trained on: {faults[index]}")


def _report(images: CaptionedImages, faults: dict[int, str], cache: PictureCache | None) -> None:
    """Log the pictures that are left out."""
    if not faults:
        return
    for index in sorted(faults)[:_NAMED]:
        _LOG.warning("left out: picture %r: %s", images.name(index), printable(faults[index]))
    if len(faults) > _NAMED:
        _LOG.warning("and %d more", len(faults) - _NAMED)
    again = f"; delete {cache.folder} to read them again" if cache and cache.faults else ""
    _LOG.warning(
        "left out %d of %d pictures; with --strict, the first one stops the training%s",
        *(len(faults), len(images), again),
    )


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
