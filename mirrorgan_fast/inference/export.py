"""A model as one file that runs without this package.

The file is either ONNX, for ONNX Runtime and other programs, or compiled by PyTorch's AOTInductor,
for ``torch._inductor.aoti_load_package``. Of a text-to-image model, both are a function of these
inputs, for N from 1 on:

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

Of a CycleGAN, the file is the generator of one domain. Its input and its output are

    pictures          uint8 (N, H, W, 3), H and W multiples of 4, at least 8
    translated        uint8 (N, H, W, 3)

and its metadata has ``from`` and ``to``, the names of the domains, and ``image_size``, the pixels a
side of the images that it was trained with.
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
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mirrorgan_fast.errors import InputError
from mirrorgan_fast.files import whole_file
from mirrorgan_fast.inference.translator import Translator
from mirrorgan_fast.models.cyclegan import CycleGAN
from mirrorgan_fast.models.stem import read_text, word_mask
from mirrorgan_fast.models.text_to_image import TextToImage
from mirrorgan_fast.ops import use
from mirrorgan_fast.ops.choice import REFERENCE
from mirrorgan_fast.pictures import to_uint8


def export(
    model: TextToImage | CycleGAN,
    path: str | os.PathLike[str],
    format: str,
    to: str | None = None,
) -> None:
    """Export ``model.render``, or a generator of a CycleGAN, in float32 to a file (see above).

    A compiled file needs the device that the model is on, a processor with the vector instructions
    of this one, and this version of PyTorch. PyTorch checks the shapes and data types of its inputs
    only if AOTI_RUNTIME_CHECK_INPUTS=1 is set in the environment.

    Args:
        model: in any mode. It is not changed.
        path: with the suffix of the format; its folder is made if need be.
        format: a name in `FORMATS`.
        to: of a CycleGAN, the name of the domain that it translates to (default: the second one).

    Raises:
        InputError: another format, suffix or domain; a weight is NaN; the file cannot be written;
            ONNX's packages are not installed; for ``aoti``, no C++ compiler that works.
    """
    if format not in FORMATS:
        raise InputError(f"no format {format!r} to export to; there are: {', '.join(FORMATS)}")
    suffix, content = FORMATS[format]
    if Path(path).suffix != suffix:
        raise InputError(f"{path}: expected a name that ends in {suffix} for the format {format}")
    device = next(model.parameters()).device
    program = _of_translator(model, to) if isinstance(model, CycleGAN) else _of_captions(model)
    # The caller's autocast must not be traced.
    with whole_file(path) as partial, torch.autocast(device.type, enabled=False):
        partial.touch()  # fails now, not after a minute, if the file cannot be written
        partial.write_bytes(content(program))


class _Program(NamedTuple):
    """What is exported."""

    network: nn.Module
    example: tuple[Tensor, ...]
    """Of its inputs."""
    shapes: tuple[Any, ...]
    """For each input, which dimensions may have any size."""
    named_shapes: tuple[Any, ...]
    """The same with the names of these dimensions."""
    inputs: list[str]
    """Their names."""
    output: str
    """Its name."""
    metadata: dict[str, str]

    def traced(self) -> torch.export.ExportedProgram:
        """Return the network's operations."""
        with use(REFERENCE):  # the file must not need the ops of this package
            return torch.export.export(self.network, self.example, dynamic_shapes=self.shapes)


def _onnx(program: _Program) -> bytes:
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"the format onnx needs {' and '.join(missing)}, which pip install "
            f"'mirrorgan-fast[onnx]' installs"
        )
    with _quiet():
        made = torch.onnx.export(
            program.traced(),
            input_names=program.inputs,
            output_names=[program.output],
            dynamic_shapes=program.named_shapes,  # only names; tracing made them dynamic
            dynamo=True,
            verbose=False,
        )
    assert made is not None
    for node in made.model.graph.all_nodes():
        node.metadata_props.clear()  # they contain paths on this machine
    made.model.metadata_props.update(program.metadata)
    content: bytes = made.model_proto.SerializeToString()
    return content


def _aoti(program: _Program) -> bytes:
    from torch._inductor import cpp_builder, exc  # takes seconds, and onnx does not need it

    file = io.BytesIO()
    # Without "freezing", with which PyTorch 2.13 computes something different, and not faster.
    options = {"aot_inductor.metadata": program.metadata}
    try:
        cpp_builder.get_cpp_compiler()  # fails at once if there is no compiler
        with _quiet():
            torch._inductor.aoti_compile_and_package(
                program.traced(), package_path=file, inductor_configs=options
            )
    except (exc.InductorError, exc.InvalidCxxCompiler, exc.CppCompileError) as error:
        lines = str(error).splitlines()
        message = next((line for line in lines if "error:" in line), lines[0])
        raise InputError(
            f"the format aoti needs a C++ compiler that works ({message}); install g++ or clang, "
            f"or name one in the environment, CXX=..."
        ) from error
    return file.getvalue()


FORMATS: dict[str, tuple[str, Callable[[_Program], bytes]]] = {
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


class _Translate(nn.Module):
    """A generator of CycleGAN, from and to uint8 images (N, H, W, 3)."""

    def __init__(self, generator: nn.Module) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, pictures: Tensor) -> Tensor:
        """Return the translated pictures."""
        return to_uint8(self.generator(pictures.permute(0, 3, 1, 2).float() / 127.5 - 1))


def _of_translator(model: CycleGAN, to: str | None) -> _Program:
    translator = Translator(model, to, torch.float32)
    config, batch = model.config, torch.export.Dim("batch", min=1)
    height, width = (4 * torch.export.Dim(name, min=2) for name in ("height", "width"))
    other = config.x if translator.to == config.y else config.y
    return _Program(
        _Translate(translator.generator),
        (torch.zeros(2, 16, 24, 3, dtype=torch.uint8, device=translator.device),),
        ({0: batch, 1: height, 2: width},),
        ({0: "batch", 1: "height", 2: "width"},),
        ["pictures"],
        "translated",
        {"from": other, "to": translator.to, "image_size": str(config.image_size)},
    )


def _of_captions(model: TextToImage) -> _Program:
    model.check_weights(*model.image_parts)
    config, device = model.config, next(model.parameters()).device
    texts = _text_inputs(model)
    noises = (torch.zeros(2, size, dtype=torch.float32) for size in config.noises.values())

    def of_all(value: Any) -> tuple[Any, ...]:
        # an entry for each input of the text, and one for all random vectors
        return *(value for _ in texts), (value,) * len(config.noises)

    of_text = "embedding_size" if config.vector_size else "caption_length"
    sizes = (of_text, "image_size", "noise_size", "condition_size")
    return _Program(
        _RenderVectors(model) if config.vector_size else _Render(model),
        tuple(each.to(device) for each in (*texts.values(), *noises)),
        of_all({0: torch.export.Dim("batch", min=1)}),
        of_all({0: "batch"}),
        [*texts, *config.noises],
        "images",
        {
            "vocabulary": "\n".join(model.vocabulary.words),
            **{name: str(getattr(config, name)) for name in sizes},
        },
    )


def _text_inputs(model: TextToImage) -> dict[str, Tensor]:
    """Return the inputs of two texts, by name."""
    if model.config.vector_size:
        return {"vectors": torch.zeros(2, model.config.vector_size, dtype=torch.float32)}
    return {
        "tokens": torch.zeros(2, model.config.caption_length, dtype=torch.int64),
        "lengths": torch.ones(2, dtype=torch.int64),
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
