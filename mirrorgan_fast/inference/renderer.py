"""The renderer: a model's text encoder and generator, made ready for inference."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from mirrorgan_fast.inference.fused_generators import fuse_generator
from mirrorgan_fast.inference.fused_stem import FusedSTEM
from mirrorgan_fast.inference.graphs import Graphs
from mirrorgan_fast.models.stem import read_text
from mirrorgan_fast.models.text_to_image import TextToImage, sample_with, split_inputs
from mirrorgan_fast.ops.parts import in_parts

_BATCH_SIZE = 64  # images of a larger batch go in parts, so that memory does not grow with it


def fuse(model: TextToImage, dtype: torch.dtype | None = None) -> "Renderer":
    """Make a renderer of a model, which may be in training mode.

    The renderer has weights of its own: batch norms folded into the layers before them, packed for
    the kernels, in ``dtype``. The model is not changed.

    Args:
        model: on the device where to render.
        dtype: of the renderer's weights and features: float32 or bfloat16, on a GPU also float16
            (default: what is fastest on the model's device). Images of bfloat16 differ from those
            of float32 by less than a gray level in the mean.

    Raises:
        InputError: another data type, or a weight is NaN or infinite.
    """
    return Renderer(model, dtype)


class Renderer:
    """Turns tokens, or text vectors, and noise into images. ``fuse`` makes it.

    If the model's weights change, the next call remakes it. (Changes behind PyTorch's back, as
    through ``parameter.data`` in place, cannot be noticed.)
    """

    def __init__(self, model: TextToImage, dtype: torch.dtype | None = None) -> None:
        self.model = model
        self._wanted_dtype = dtype
        self._make()

    @property
    def dtype(self) -> torch.dtype:
        """Of weights and features."""
        return self._generator.dtype

    def _make(self) -> None:
        model = self.model
        model.check_weights(*model.image_parts)
        self._places: list[tuple[dict[str, Any], str]] = [
            (model._modules, part) for part in model.image_parts
        ]
        self._places += [
            (entries, name)
            for part in model.image_parts
            for module in model.get_submodule(part).modules()
            for entries in (module._modules, module._parameters, module._buffers)
            for name in entries
        ]
        self._made_of = self._weights()
        self._generator = fuse_generator(model.generator, self._wanted_dtype)
        self._stem = None
        if model.config.vector_size is None:
            self._stem = FusedSTEM(model.stem, dtype=self._generator.dtype)
        on_gpu = next(model.parameters()).device.type == "cuda"
        self._graphs = Graphs(self._render) if on_gpu else None

    def _weights(self) -> list[tuple[int, int, int] | None]:
        """Return what changes with any of the model's weights."""
        return [_state(entries.get(name)) for entries, name in self._places]

    def __getstate__(self) -> dict[str, Any]:
        return {"model": self.model, "_wanted_dtype": self._wanted_dtype}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._make()

    @torch.no_grad()
    def sample(
        self, captions: Sequence[str], seed: int = 0, indices: Sequence[int] | None = None
    ) -> list[Image.Image]:
        """Do what ``TextToImage.sample`` does."""
        return sample_with(self.model, self.render, captions, seed, indices)

    @torch.no_grad()
    def render(self, *inputs: Tensor) -> Tensor:
        """Do what ``TextToImage.render`` does: return the last images, uint8 (N, S, S, 3).

        Raises:
            InputError: on the CPU, a noise is NaN or infinite, or a box is none; or the model's
                weights have changed, and one of them is NaN or infinite.
        """
        self.model.check_noises(*split_inputs(self.model.config, inputs)[1])
        if self._weights() != self._made_of:
            self._make()
        if self._graphs is None:
            return self._render(*inputs)
        if self._stem is not None:
            # All captions are padded to one length, so that one graph serves all lengths.
            tokens, *others = inputs
            missing = self.model.config.caption_length - tokens.shape[1]
            inputs = (functional.pad(tokens, (0, max(0, missing))), *others)
        return self._graphs(*inputs)

    def _render(self, *inputs: Tensor) -> Tensor:
        config, count, device = self.model.config, len(inputs[0]), inputs[0].device
        shape = (count, config.image_size, config.image_size, 3)
        images = torch.empty(shape, dtype=torch.uint8, device=device)
        generate: Callable[..., Tensor] = self._generator
        for out, *some in in_parts((images, *inputs), _BATCH_SIZE):
            text, noises = split_inputs(config, some)
            generate(*noises, *read_text(self._stem, *text), out=out)
        return images


def _state(entry: nn.Module | Tensor | None) -> tuple[int, int, int] | None:
    """Return what changes when a module is replaced, or a tensor is replaced, moved or written."""
    if entry is None:
        return None
    if isinstance(entry, nn.Module):
        return id(entry), 0, 0
    # tensors of inference mode do not count what is written to them
    written = -1 if entry.is_inference() else entry._version
    return id(entry), entry.data_ptr(), written
