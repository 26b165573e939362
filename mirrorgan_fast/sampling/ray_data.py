"""Sampling on a cluster: a pool of Ray actors, each with a sampler, over a Ray dataset.

    dataset = ray.data.read_json("captions.jsonl")          # rows with "caption" and "index"
    images = sample_dataset(dataset, actors=8, gpus_per_actor=1)
    images.write_webdataset("out/")

Needs the extra ``mirrorgan-fast[ray]``.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mirrorgan_fast.errors import InputError
from mirrorgan_fast.memory import keep_memory
from mirrorgan_fast.recipes import load
from mirrorgan_fast.sampling.captions import Refused, request_of
from mirrorgan_fast.sampling.sampler import Sampler

if TYPE_CHECKING:
    import ray.data


def sample_dataset(
    dataset: "ray.data.Dataset",
    model: str = "birds-painted",
    *,
    actors: int = 1,
    cpus_per_actor: float = 1,
    gpus_per_actor: float = 0,
    rows: int = 256,
    **sampling: Any,
) -> "ray.data.Dataset":
    """Add an image to each row of a dataset.

    Args:
        dataset: a dataset with the columns that ``SampleRows`` takes.
        model: a name, or a folder that all machines can access.
        actors: number of processes. Each has its own copy of the model.
        cpus_per_actor: number of cores per actor.
        gpus_per_actor: 1 or a fraction of a GPU per actor; 0 for the CPU.
        rows: number of rows that an actor takes at a time.
        **sampling: further arguments of ``SampleRows``.

    Returns:
        the dataset with the columns that ``SampleRows`` adds.
    """
    import ray.data

    return dataset.map_batches(
        SampleRows,
        fn_constructor_kwargs={"model": model, **sampling},
        compute=ray.data.ActorPoolStrategy(size=actors),
        num_cpus=cpus_per_actor,
        num_gpus=gpus_per_actor,
        batch_size=rows,
        batch_format="numpy",
    )


class SampleRows:
    """Samples an image for each row: a callable for ``Dataset.map_batches``.

    It takes the columns ``caption`` and ``index``, which together with the seed determine the
    image, and optionally ``seed``, if rows have different seeds, and ``box``, where to draw, if the
    system takes boxes. It adds the columns ``image``, uint8 (S, S, 3), and ``error``, which is
    empty or says why there is no image. In that case the image is black.

    Args:
        model: a name or a folder.
        seed: the seed, if the rows have no column ``seed``.
        psi: factor of the noise, 0 to 1.
        device: the device (default: the GPU that Ray assigns, otherwise the CPU).
        batch_size: batch size of the sampler (default: chosen for the device).

    Raises:
        InputError: rows lack one of the two columns.
    """

    def __init__(
        self,
        model: str = "birds-painted",
        seed: int = 0,
        psi: float = 1.0,
        device: str | None = None,
        batch_size: int | None = None,
    ) -> None:
        keep_memory()
        self._seed, self._psi = seed, psi
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        loaded = load(model)
        self._sampler = Sampler(loaded, device, batch_size=batch_size or "auto")

    def __call__(self, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the rows with the added columns."""
        for column in ("caption", "index"):
            if column not in rows:
                raise InputError(
                    f"sample_dataset: the rows have no column {column!r}, only {', '.join(rows)}"
                )
        captions = rows["caption"].tolist()
        indices = rows["index"].tolist()
        seeds = rows["seed"].tolist() if "seed" in rows else [self._seed] * len(captions)
        places = self._sampler.model.config.places and "box" in rows
        boxes = rows["box"].tolist() if places else [None] * len(captions)
        names = ("caption", "seed", "index", "box")
        requests = [
            request_of(dict(zip(names, row, strict=True)), i + 1, i, "")
            for i, row in enumerate(zip(captions, seeds, indices, boxes, strict=True))
        ]
        size = self._sampler.model.config.image_size
        images = np.zeros((len(requests), size, size, 3), np.uint8)
        errors = [""] * len(requests)
        for i, result in enumerate(self._sampler.stream(requests, self._psi)):
            if isinstance(result, Refused):
                errors[i] = result.reason
            else:
                images[i] = result.image
        return {**rows, "image": images, "error": np.array(errors, dtype=str)}
