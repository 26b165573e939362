"""MirrorGAN's generator in inference as one op, from the text encoder's features to 8-bit images.

    s_ca  = mu(s) + sigma(s) o eps                          linear + GLU
    f_0   = F_0(z, s_ca)                                    linear + GLU, then up-blocks
    f_i   = F_i(F_att_i(f_{i-1}, w, s_ca)), i = 1 ... m-1   `glam_stage`
    image = G_{m-1}(f_{m-1})                                `image_head`

For a single image, Python and PyTorch take a seventh of the whole time between these ops. One op
saves that.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mirrorgan_fast.ops.checks import check_out, check_tensor, refuse
from mirrorgan_fast.ops.choice import REFERENCE, choose
from mirrorgan_fast.ops.conv_add import conv_add
from mirrorgan_fast.ops.conv_glu import conv_glu
from mirrorgan_fast.ops.glam_stage import glam_stage, runs_as_one_op
from mirrorgan_fast.ops.image_head import image_head
from mirrorgan_fast.ops.inference_op import inference_op
from mirrorgan_fast.ops.kept_memory import KeptMemory
from mirrorgan_fast.ops.packing import in_tiles
from mirrorgan_fast.ops.parts import in_parts

_NAME = "glam"
_SIDE = 4  # height and width of the map that F_0's linear layer makes
# On the CPU this many images go through F_0 in one batch: its weights are many and its maps small.
# Through the later stages, whose maps are large, they go one at a time, or one per thread if the
# generator runs as one op. On a GPU all images are one batch.
_CPU_BATCH = 16


class PackedLayer(NamedTuple):
    """A layer's weights for the inference ops."""

    weight: Tensor
    """From ``pack``."""
    bias: Tensor
    """float32, zero where the layer has none."""


class PackedStage(NamedTuple):
    """The weights of a stage i = 1 ... m - 1, for `glam_stage`."""

    U: PackedLayer
    """Projects the words (D to C)."""
    V: PackedLayer | None
    """Projects s_ca (K to C); None without sentence attention."""
    sentence_weight: Tensor | None
    """M of the authors' form, (C, C), or None."""
    mix: Tensor
    """(C', 3C), or (C', 2C) without sentence attention."""
    layers: list[PackedLayer]
    """Two for each residual block, the first with GLU, the second with residual; then the
    up-block."""


class PackedGLAM:
    """The packed layers of a generator, and each thread's memory for the maps between them.

    Args:
        augment: The conditioning augmentation (D to 2K, with GLU).
        linear: F_0's linear layer (K + Z to a 4x4 map in channels_last order, with GLU).
        upsample: F_0's up-blocks.
        stages: The later stages, all with the same number of layers.
        head: The last stage's image head.
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
        """All tensors, as arguments of the op."""
        self.runs_as_one_op = bool(stages) and all(in_tiles(layer.weight) for layer in layers)
        """Whether the compiled op accepts these layers."""
        for i, stage in enumerate(stages):
            self.runs_as_one_op &= runs_as_one_op(
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
    """Generate images.

    For inference: there is no gradient. If the generator cannot run as one op, its ops run one by
    one.

    Args:
        noise: z, float32, standard normal.
        condition_noise: eps, float32, standard normal.
        words: w from STEM, float32.
        mask: bool, true at real words, false at padding.
        sentence: s from STEM, float32.
        packed: The generator. All layers are computed in its data type.
        out: Where to write the images. None: a new tensor is made.

    Returns:
        ``out``, uint8. An image depends only on its own row of the arguments, bit for bit.

    Raises:
        InputError: Shapes, data types or devices do not match.
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
    for name, tensor, wanted_shape, dtype in wanted:
        check_tensor(_NAME, name, tensor, noise, wanted_shape, dtype)
    shape = (batch, packed.image_size, packed.image_size, len(packed.head.bias))
    if out is None:
        out = torch.empty(shape, dtype=torch.uint8, device=device)
    else:
        check_out(_NAME, out, noise, shape, torch.uint8, torch.contiguous_format)
    choice = choose(_NAME, device.type, packed.dtype, needs_grad=False)
    as_one_op = packed.runs_as_one_op and choice.implementation != REFERENCE
    tensors = (noise, condition_noise, words, mask, sentence, out)
    # torch.compile cannot slice a tensor that was made in inference mode, and needs no such mode.
    one_by_one = _one_by_one if torch.compiler.is_compiling() else _one_by_one_in_inference_mode
    for rows in in_parts(tensors, _CPU_BATCH if device.type == "cpu" else batch):
        if as_one_op:
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
    """Run the generator's ops one by one, each in its fastest implementation."""
    dtype = packed.dtype
    mu, log_var = _linear_glu(sentence.to(dtype), packed.augment).float().chunk(2, dim=1)
    s_ca = (mu + torch.exp(0.5 * log_var) * condition_noise).to(dtype)
    f = _linear_glu(torch.cat([s_ca, noise.to(dtype)], dim=1), packed.linear)
    f = f.view(len(f), _SIDE, _SIDE, -1).permute(0, 3, 1, 2)
    for i, up in enumerate(packed.upsample):
        upsampled = packed.memory.map(f"f_0, {i % 2}", _CPU_BATCH, f, len(up.bias) // 2, scale=2)
        f = conv_glu(f, *up, out=upsampled)
    if not packed.stages:
        image_head(f, *packed.head, out=out)
        return
    all_words = words.to(dtype).flatten(0, 1)
    keys = [_linear(all_words, stage.U).unflatten(0, mask.shape) for stage in packed.stages]
    sentences = [None if stage.V is None else _linear(s_ca, stage.V) for stage in packed.stages]
    f_0, batch = f, 1 if out.device.type == "cpu" else len(out)
    for start in range(0, len(out), batch):
        rows = slice(start, start + batch)
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
            f_i = packed.memory.map(f"f_{i + 1}", batch, f, channels, scale=2)
            f = glam_stage(*attention, weights, biases, out=f_i, memory=packed.memory)


# Calling an op takes a sixth of the time if its tensors were made in inference mode.
_one_by_one_in_inference_mode = torch.inference_mode()(_one_by_one)


def _linear(x: Tensor, layer: PackedLayer) -> Tensor:
    """Map (N, K) to (N, channels): the rows become the pixels of one feature map."""
    return _as_rows(conv_add(_as_map(x), *layer))


def _linear_glu(x: Tensor, layer: PackedLayer) -> Tensor:
    """Map (N, K) to (N, channels) with a GLU."""
    return _as_rows(conv_glu(_as_map(x), *layer))


def _as_map(x: Tensor) -> Tensor:
    return x.reshape(1, len(x), 1, x.shape[1]).permute(0, 3, 1, 2)


def _as_rows(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1).reshape(x.shape[2], x.shape[1])


def _lists(layers: Sequence[PackedLayer]) -> tuple[list[Tensor], list[Tensor]]:
    """Return the weights and the biases of the layers."""
    return [layer.weight for layer in layers], [layer.bias for layer in layers]


def from_flat(
    weights: list[Tensor],
    biases: list[Tensor],
    mixes: list[Tensor],
    sentence_weights: list[Tensor],
    upsamples: int,
    *,
    noise_size: int,
    embedding_size: int,
) -> PackedGLAM:
    """Return the generator whose `PackedGLAM.flat` these tensors are."""
    augment, linear, *layers, head = map(PackedLayer, weights, biases)
    stage_layers = iter(layers[upsamples:])
    layers_per_stage = (len(layers) - upsamples) // max(1, len(mixes))
    stages = []
    for i, mix in enumerate(mixes):
        U, *rest = (next(stage_layers) for _ in range(layers_per_stage))
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
    packed = from_flat(*layers, noise_size=noise.shape[1], embedding_size=sentence.shape[1])
    glam(noise, condition_noise, words, mask, sentence, packed, out)
