"""A text-to-image model as one file that runs without this package.

The file is either ONNX, for ONNX Runtime and other programs, or compiled by PyTorch's AOTInductor,
for ``torch._inductor.aoti_load_package``. Both are a function of these inputs, for N from 1 on:

    tokens            int64 (N, T), word numbers, padded with 0 to T = caption_length
    lengths           int64 (N,), the words of each caption, 1 to T
    noise             float32 (N, noise_size), z, standard normal
    condition_noise   float32 (N, condition_size), eps, standard normal

in this order. (The last are those of ``config.noises``, which these are for most systems. GAWWN
has a ``box`` instead of the last, float32 (N, 4): x, y, width and height in shares of the image, as
in ``boxes``; the file does not check it.) A model that reads text vectors has, instead of the first
two,

    vectors           float32 (N, embedding_size)

The output is

    images            uint8 (N, image_size, image_size, 3)

The file's metadata has ``vocabulary``, one word a line starting with number 0, and
``caption_length``, ``image_size``, ``noise_size`` and ``condition_size``, all of them as text. (If
text vectors are read, ``embedding_size`` is there, ``caption_length`` is not, and the vocabulary is
"<end>" alone.)
"""

import copy
import importlib.util
import io
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mirrorgan_fast.errors import InputError
from mirrorgan_fast.files import whole_file
from mirrorgan_fast.models.stem import read_text, word_mask
from mirrorgan_fast.models.text_to_image import TextToImage
from mirrorgan_fast.ops import use
from mirrorgan_fast.ops.choice import REFERENCE
from mirrorgan_fast.pictures import to_uint8


def export(model: TextToImage, path: str | os.PathLike[str], format: str) -> None:
    """Export ``model.render`` in float32 to a file (see this module).

    A compiled file needs the device that the model is on, a processor with the vector instructions
    of this one, and this version of PyTorch. PyTorch checks the shapes and data types of its inputs
    only if AOTI_RUNTIME_CHECK_INPUTS=1 is set in the environment.

    Args:
        model: in any mode. It is not changed.
        path: with the suffix of the format; its folder is made if need be.
        format: a name in `FORMATS`.

    Raises:
        InputError: another format or suffix; a weight is NaN; the file cannot be written; ONNX's
            packages are not installed; for ``aoti``, no C++ compiler that works.
    """
    if format not in FORMATS:
        raise InputError(f"no format {format!r} to export to; there are: {', '.join(FORMATS)}")
    suffix, content = FORMATS[format]
    if Path(path).suffix != suffix:
        raise InputError(f"{path}: expected a name that ends in {suffix} for the format {format}")
    model.check_weights(*model.image_parts)
    device = next(model.parameters()).device
    # The caller's autocast must not be traced.
    with whole_file(path) as partial, torch.autocast(device.type, enabled=False):
        partial.touch()  # fails now, not after a minute, if the file cannot be written
        partial.write_bytes(content(model))


def _onnx(model: TextToImage) -> bytes:
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"the format onnx needs {' and '.join(missing)}, which pip install "
            f"'mirrorgan-fast[onnx]' installs"
        )
    with _quiet():
        program = torch.onnx.export(
            _traced(model),
            input_names=[*_text_inputs(model), *model.config.noises],
            output_names=["images"],
            # only names it; tracing made it dynamic
            dynamic_shapes=_for_all_inputs(model, {0: "batch"}),
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()  # they contain paths on this machine
    program.model.metadata_props.update(_metadata(model))
    content: bytes = program.model_proto.SerializeToString()
    return content


def _aoti(model: TextToImage) -> bytes:
    from torch._inductor import cpp_builder, exc  # takes seconds, and onnx does not need it

    file = io.BytesIO()
    # Without "freezing", with which PyTorch 2.13 computes something different, and not faster.
    options = {"aot_inductor.metadata": _metadata(model)}
    try:
        cpp_builder.get_cpp_compiler()  # fails at once if there is no compiler
        with _quiet():
            torch._inductor.aoti_compile_and_package(
                _traced(model), package_path=file, inductor_configs=options
            )
    except (exc.InductorError, exc.InvalidCxxCompiler, exc.CppCompileError) as error:
        lines = str(error).splitlines()
        message = next((line for line in lines if "error:" in line), lines[0])
        raise InputError(
            f"the format aoti needs a C++ compiler that works ({message}); install g++ or clang, "
            f"or name one in the environment, CXX=..."
        ) from error
    return file.getvalue()


FORMATS: dict[str, tuple[str, Callable[[TextToImage], bytes]]] = {
    "onnx": (".onnx", _onnx),
    "aoti": (".pt2", _aoti),
}
"""The suffix of each format, and the function that makes the content of the file."""


class _Render(nn.Module):
    """``TextToImage.render`` of a copy of the model, using only operations that can be exported."""

    def __init__(self, model: TextToImage) -> None:
        super().__init__()
        self.stem, self.generator = copy.deepcopy((model.stem, model.generator))
        self.float().eval()

    def forward(
        self,
        tokens: Tensor,  # (N, T)
        lengths: Tensor,  # (N,)
        *noises: Tensor,  # each (N, length)
    ) -> Tensor:
        """Return the last images, uint8 (N, S, S, 3)."""
        # Without these checks a compiled file would crash the process. ONNX drops them.
        known = (tokens >= 0) & (tokens < self.stem.embedding.num_embeddings)
        torch._assert_async(known.all(), "tokens: expected numbers of words of the vocabulary")
        possible = (lengths >= 1) & (lengths <= tokens.shape[1])
        torch._assert_async(possible.all(), "lengths: expected 1 to caption_length")
        mask = word_mask(lengths, tokens.shape[1])
        words, sentence = self._encode(tokens, lengths, mask)
        return to_uint8(self.generator(*noises, words, mask, sentence).images[-1])

    def _encode(
        self,
        tokens: Tensor,  # (N, T)
        lengths: Tensor,  # (N,)
        mask: Tensor,  # (N, T)
    ) -> tuple[Tensor, Tensor]:
        """Do what STEM does without packed sequences, which cannot be exported.

        Each direction of the LSTM reads whole rows. The second direction reads each caption's words
        in reverse order, so that the padding comes last for both.
        """
        places = torch.arange(tokens.shape[1], device=tokens.device)
        mirrored = torch.where(mask, lengths[:, None] - 1 - places, places)
        lstm = self.stem.lstm
        zero = self.stem.embedding.weight.new_zeros(1, tokens.shape[0], lstm.hidden_size)
        options = (True, 1, 0.0, False, False, True)  # biases, 1 layer, not training, N first
        states, states_back = (
            torch.lstm(self.stem.embedding(read), (zero, zero), tuple(weights), *options)[0]
            for read, weights in zip(
                (tokens, tokens.gather(1, mirrored)), lstm.all_weights, strict=True
            )
        )
        of_units = mirrored[:, :, None].expand_as(states)
        states_back = states_back.gather(1, of_units)
        # `mirrored` maps the first word of a caption to its last.
        ends = [states.gather(1, of_units[:, :1]), states_back[:, :1]]
        words = torch.cat([states, states_back], dim=2).masked_fill(~mask[:, :, None], 0)
        return words, torch.cat(ends, dim=2)[:, 0]


class _RenderVectors(nn.Module):
    """``TextToImage.render`` of a copy of a model that reads text vectors."""

    def __init__(self, model: TextToImage) -> None:
        super().__init__()
        self.generator = copy.deepcopy(model.generator)
        self.float().eval()

    def forward(
        self,
        vectors: Tensor,  # (N, D)
        *noises: Tensor,  # each (N, length)
    ) -> Tensor:
        """Return the last images, uint8 (N, S, S, 3)."""
        return to_uint8(self.generator(*noises, *read_text(None, vectors)).images[-1])


def _traced(model: TextToImage) -> torch.export.ExportedProgram:
    config, device = model.config, next(model.parameters()).device
    example = (
        *(each.to(device) for each in _text_inputs(model).values()),
        *(
            torch.zeros(2, size, device=device, dtype=torch.float32)
            for size in config.noises.values()
        ),
    )
    network = _RenderVectors(model) if config.vector_size else _Render(model)
    shapes = _for_all_inputs(model, {0: torch.export.Dim("batch", min=1)})
    with use(REFERENCE):  # the file must not need the ops of this package
        return torch.export.export(network, example, dynamic_shapes=shapes)


def _text_inputs(model: TextToImage) -> dict[str, Tensor]:
    """Return the inputs of two texts, by name."""
    if model.config.vector_size:
        return {"vectors": torch.zeros(2, model.config.vector_size, dtype=torch.float32)}
    return {
        "tokens": torch.zeros(2, model.config.caption_length, dtype=torch.int64),
        "lengths": torch.ones(2, dtype=torch.int64),
    }


def _for_all_inputs(model: TextToImage, value: Any) -> tuple[Any, ...]:
    """Return the value for each input of the text and, in a tuple, for each random vector."""
    return *(value for _ in _text_inputs(model)), (value,) * len(model.config.noises)


def _metadata(model: TextToImage) -> dict[str, str]:
    of_text = "embedding_size" if model.config.vector_size else "caption_length"
    sizes = (of_text, "image_size", "noise_size", "condition_size")
    return {
        "vocabulary": "\n".join(model.vocabulary.words),
        **{name: str(getattr(model.config, name)) for name in sizes},
    }


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the exporters' warnings, which are about their own code and dependencies."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
