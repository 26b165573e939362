"""MirrorGAN's generator in inference as one op, from what the text encoder gives to grey levels.

    s_ca  = mu(s) + sigma(s) o eps                          linear + GLU
    f_0   = F_0(z, s_ca)                                    linear + GLU, then up-blocks
    f_i   = F_i(F_att_i(f_{i-1}, w, s_ca)), i = 1 ... m-1   `glam_stage`
    image = G_{m-1}(f_{m-1})                                `image_head`

Of a single image, what Python and PyTorch take between these ops is a seventh of the whole time.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mirrorgan_fast.ops.checks import check_beside, check_out, refuse
from mirrorgan_fast.ops.choice import REFERENCE, choose
from mirrorgan_fast.ops.conv_add import conv_add
from mirrorgan_fast.ops.conv_glu import conv_glu
from mirrorgan_fast.ops.glam_stage import glam_stage, goes_at_once
from mirrorgan_fast.ops.image_head import image_head
from mirrorgan_fast.ops.inference_op import inference_op
from mirrorgan_fast.ops.kept_memory import KeptMemory
from mirrorgan_fast.ops.packing import in_tiles
from mirrorgan_fast.ops.parts import in_parts

_NAME = "glam"
_SIDE = 4  # of the map that F_0's linear layer makes
# On the CPU so many images go together through the first transformer, whose weights are many and
# maps small. Of the rest, whose maps are large, they go one by one, or one a thread where all is
# one op. On a GPU all images go together.
_TOGETHER = 16


class PackedLayer(NamedTuple):
    """A layer as the ops of inference take it."""

    weight: Tensor
    """From ``pack``."""
    bias: Tensor
    """float32, zero where the layer has none."""


class PackedStage(NamedTuple):
    """A stage i = 1 ... m - 1, as `glam_stage` takes it."""

    U: PackedLayer
    """Of words (D to C)."""
    V: PackedLayer | None
    """Of s_ca (K to C), or None without sentence attention."""
    sentence_weight: Tensor | None
    """M of the authors' form, (C, C), or None."""
    mix: Tensor
    """(C', 3C), or (C', 2C) without sentence attention."""
    layers: list[PackedLayer]
    """Of each residual block two, with GLU and with residual; then the up-block's."""


class PackedGLAM:
    """The layers of a generator, and the memory for what is between them, for each thread.

    Args:
        augment: of the conditioning augmentation (D to 2K, with GLU).
        linear: of F_0 (K + Z to a map of 4x4 in channels_last order, with GLU).
        upsample: F_0's up-blocks.
        stages: the later stages, all with as many layers.
        head: the last stage's image head.
        noise_size: Z.
        embedding_size: D.
    """

    def __init__(
        self,
        augment: PackedLayer,
        linear: PackedLayer,
        upsample: Sequence[PackedLayer],
        stages: Sequence[PackedStage],
        head: PackedLayer,
        *,
        noise_size: int,
        embedding_size: int,
    ) -> None:
        self.augment, self.linear, self.head = augment, linear, head
        self.upsample, self.stages = upsample, stages
        self.noise_size, self.embedding_size = noise_size, embedding_size
        self.condition_size = len(augment.bias) // 4
        self.dtype = augment.weight.dtype
        self.image_size = _SIDE << (len(upsample) + len(stages))
        self.memory = KeptMemory()
        layers = [augment, linear, *upsample]
        for stage in stages:
            layers += [stage.U, *([] if stage.V is None else [stage.V]), *stage.layers]
        layers.append(head)
        self.flat = (
            *_lists(layers),
            [stage.mix for stage in stages],
            [stage.sentence_weight for stage in stages if stage.sentence_weight is not None],
            len(upsample),
        )
        """All tensors, as the op takes them."""
        self.at_once = bool(stages) and all(in_tiles(layer.weight) for layer in layers)
        """Whether it is of a form that the op takes."""
        for i, stage in enumerate(stages):
            self.at_once &= goes_at_once(
                self.image_size >> (len(stages) - i),
                stage.mix,
                *_lists(stage.layers),
                head.bias if i == len(stages) - 1 else None,
            )


def glam(
    noise: Tensor,  # (N, Z)
    condition_noise: Tensor,  # (N, K)
    words: Tensor,  # (N, T, D)
    mask: Tensor,  # (N, T)
    sentence: Tensor,  # (N, D)
    packed: PackedGLAM,
    out: Tensor | None = None,  # (N, S, S, 3)
) -> Tensor:
    """Make images.

    For inference: no gradient comes through. Where it cannot be one op, its ops run one by one.

    Args:
        noise: z, float32, standard normal.
        condition_noise: eps, float32, standard normal.
        words: w from STEM, float32.
        mask: bool, true at real words.
        sentence: s from STEM, float32.
        packed: the generator, in whose data type all layers are.
        out: where to write the images; None makes a new tensor.

    Returns:
        ``out``, uint8: an image depends on its own row of the arguments alone, to the bit.

    Raises:
        InputError: shapes, data types or devices do not fit together.
    """
    device = packed.head.bias.device
    if noise.dim() != 2 or noise.device != device:
        refuse(_NAME, "noise", noise, f"float32 of shape (N, {packed.noise_size}) on {device}")
    if words.dim() != 3 or words.shape[1] == 0:
        refuse(_NAME, "words", words, f"float32 of shape (N, T, {packed.embedding_size}), T > 0")
    batch, count, size = len(noise), words.shape[1], packed.embedding_size
    wanted = (
        ("noise", noise, (batch, packed.noise_size), torch.float32),
        ("condition_noise", condition_noise, (batch, packed.condition_size), torch.float32),
        ("words", words, (batch, count, size), torch.float32),
        ("mask", mask, (batch, count), torch.bool),
        ("sentence", sentence, (batch, size), torch.float32),
    )
    for name, tensor, its_shape, dtype in wanted:
        check_beside(_NAME, name, tensor, noise, its_shape, dtype)
    shape = (batch, packed.image_size, packed.image_size, len(packed.head.bias))
    if out is None:
        out = torch.empty(shape, dtype=torch.uint8, device=device)
    else:
        check_out(_NAME, out, noise, shape, torch.uint8, torch.contiguous_format)
    choice = choose(_NAME, device.type, packed.dtype, needs_grad=False)
    at_once = packed.at_once and choice.implementation != REFERENCE
    given = (noise, condition_noise, words, mask, sentence, out)
    # torch.compile makes its own of the ops, and cannot slice what inference mode has made
    one_by_one = _one_by_one if torch.compiler.is_compiling() else _in_inference_mode
    for rows in in_parts(given, _TOGETHER if device.type == "cpu" else batch):
        if at_once:
            *inputs, images = rows
            _op(*(tensor.contiguous() for tensor in inputs), *packed.flat, images)
        else:
            one_by_one(packed, *rows)
    return out


def _one_by_one(
    packed: PackedGLAM,
    noise: Tensor,
    condition_noise: Tensor,
    words: Tensor,
    mask: Tensor,
    sentence: Tensor,
    out: Tensor,
) -> None:
    """Do the same with the ops that it consists of, each by what is fastest for it."""
    dtype = packed.dtype
    mu, log_var = _linear_glu(sentence.to(dtype), packed.augment).float().chunk(2, dim=1)
    s_ca = (mu + torch.exp(0.5 * log_var) * condition_noise).to(dtype)
    f = _linear_glu(torch.cat([s_ca, noise.to(dtype)], dim=1), packed.linear)
    f = f.view(len(f), _SIDE, _SIDE, -1).permute(0, 3, 1, 2)
    for i, up in enumerate(packed.upsample):
        made = packed.memory.map(f"f_0, {i % 2}", _TOGETHER, f, len(up.bias) // 2, scale=2)
        f = conv_glu(f, *up, out=made)
    if not packed.stages:
        image_head(f, *packed.head, out=out)
        return
    all_words = words.to(dtype).flatten(0, 1)
    keys = [_linear(all_words, stage.U).unflatten(0, mask.shape) for stage in packed.stages]
    sentences = [None if stage.V is None else _linear(s_ca, stage.V) for stage in packed.stages]
    f_0, together = f, 1 if out.device.type == "cpu" else len(out)
    for start in range(0, len(out), together):
        rows = slice(start, start + together)
        f = f_0[rows]
        for i, (stage, v) in enumerate(zip(packed.stages, sentences, strict=True)):
            weights, biases = _lists(stage.layers)
            text = (keys[i][rows], mask[rows], None if v is None else v[rows])
            attention = (f, *text, stage.sentence_weight, stage.mix)
            if i == len(packed.stages) - 1:
                image = out[rows]
                glam_stage(*attention, weights, biases, *packed.head, image, packed.memory)
                continue
            channels = len(biases[-1]) // 2
            made = packed.memory.map(f"f_{i + 1}", together, f, channels, scale=2)
            f = glam_stage(*attention, weights, biases, out=made, memory=packed.memory)


# An op is called with inference mode's tensors for a sixth of what it takes else.
_in_inference_mode = torch.inference_mode()(_one_by_one)


def _linear(x: Tensor, layer: PackedLayer) -> Tensor:
    """Map (N, K) to (N, channels): rows as the pixels of one map."""
    return _as_rows(conv_add(_as_map(x), *layer))


def _linear_glu(x: Tensor, layer: PackedLayer) -> Tensor:
    """Map (N, K) to (N, channels), gated."""
    return _as_rows(conv_glu(_as_map(x), *layer))


def _as_map(x: Tensor) -> Tensor:
    return x.reshape(1, len(x), 1, x.shape[1]).permute(0, 3, 1, 2)


def _as_rows(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1).reshape(x.shape[2], x.shape[1])


def _lists(layers: Sequence[PackedLayer]) -> tuple[list[Tensor], list[Tensor]]:
    """Return the weights and the biases."""
    return [layer.weight for layer in layers], [layer.bias for layer in layers]


def of_flat(
    weights: list[Tensor],
    biases: list[Tensor],
    mixes: list[Tensor],
    sentence_weights: list[Tensor],
    upsamples: int,
    *,
    noise_size: int,
    embedding_size: int,
) -> PackedGLAM:
    """Return the generator of which these are the tensors."""
    augment, linear, *layers, head = map(PackedLayer, weights, biases)
    of_stages = iter(layers[upsamples:])
    each = (len(layers) - upsamples) // max(1, len(mixes))
    stages = []
    for i, mix in enumerate(mixes):
        U, *rest = (next(of_stages) for _ in range(each))
        V = rest.pop(0) if mix.shape[1] == 3 * len(U.bias) else None
        M = sentence_weights[i] if sentence_weights else None
        stages.append(PackedStage(U, V, M, mix, rest))
    sizes = {"noise_size": noise_size, "embedding_size": embedding_size}
    return PackedGLAM(augment, linear, layers[:upsamples], stages, head, **sizes)


@inference_op(_NAME)
def _op(
    noise: Tensor,
    condition_noise: Tensor,
    words: Tensor,
    mask: Tensor,
    sentence: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
    mixes: list[Tensor],
    sentence_weights: list[Tensor],
    upsamples: int,
    out: Tensor,
) -> None:
    # The CPU implementation is csrc/cpu/glam.cpp.
    layers = (weights, biases, mixes, sentence_weights, upsamples)
    packed = of_flat(*layers, noise_size=noise.shape[1], embedding_size=sentence.shape[1])
    glam(noise, condition_noise, words, mask, sentence, packed, out)
