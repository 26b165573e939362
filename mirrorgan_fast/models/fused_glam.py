"""GLAM for inference: batch norms folded, weights packed, few passes from captions to grey levels.

    f_0    linear + GLU (1x1), then up-convolution + GLU up to the first size
    f_i    attention + mix; residual blocks (convolution + GLU, convolution + residual);
           up-convolution + GLU
    image  convolution + tanh + grey levels

f_i is one op of `mirrorgan_fast.ops`, and with the last one the image; so is each layer of f_0.
Maps between ops are in memory that is kept from call to call.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from mirrorgan_fast.models.glam import (
    GLAM,
    Attention,
    FirstTransformer,
    ResidualBlock,
    Transformer,
    UpBlock,
)
from mirrorgan_fast.ops import (
    Layout,
    build_info,
    conv_add,
    conv_glu,
    glam_stage,
    image_head,
    pack,
)

# On the CPU so many images go together through the first transformer, whose weights are many and
# maps small. Of the rest, whose maps are large, each thread takes one where a whole stage is one
# op, and all threads one where each layer is. On a GPU all images go together.
_TOGETHER = 16
BF16 = torch.bfloat16


class FusedGLAM:
    """A generator's last image in inference, as fast as the ops are.

    A copy: ``glam`` is not changed, and what it learns later is not in here. Not to be called by
    two threads at once: they would share the memory that is kept.

    Args:
        glam: the generator; the running averages of its batch norms are taken, in any mode.
        dtype: of weights and features, float32 or bfloat16, on a GPU also float16 (default: what is
            fastest on the device that ``glam`` is on).
        layout: of the packed weights (default: as ``pack`` has it).

    Raises:
        InputError: another data type.
    """

    @torch.inference_mode()  # of whose tensors ops are called for a sixth of what it takes else
    def __init__(
        self, glam: GLAM, dtype: torch.dtype | None = None, layout: Layout | None = None
    ) -> None:
        device = glam.augment.linear.weight.device.type
        self.dtype = fastest_dtype(device) if dtype is None else dtype
        first, head = glam.F[0], next(glam.G[-1].children())
        assert isinstance(first, FirstTransformer)
        assert isinstance(head, nn.Conv2d)
        augment = glam.augment.linear
        packing = Packing(self.dtype, layout)
        self.augment = packing.packed(augment.weight, augment.bias, glu=True)
        self.linear = packing.first_linear(first)
        self.upsample = [packing.up_conv(block) for block in first.upsample]
        self.stages = [
            FusedStage(F_att_i, F_i, packing)
            for F_att_i, F_i in zip(glam.F_att, glam.F[1:], strict=True)
        ]
        self.head = packing.packed(head.weight, None)
        self.memory = KeptMemory()

    @torch.no_grad()
    def __call__(
        self,
        noise: Tensor,  # (N, noise)
        condition_noise: Tensor,  # (N, condition)
        words: Tensor,  # (N, T, D)
        mask: Tensor,  # (N, T)
        sentence: Tensor,  # (N, D)
        out: Tensor | None = None,  # (N, S, S, 3)
    ) -> Tensor:
        """Return images, uint8 (N, S, S, 3); the arguments are those of ``GLAM.forward``.

        An image depends on its own row of the arguments alone, to the bit. ``out`` is where to
        write them.
        """
        if out is None:
            size = 4 << (len(self.upsample) + len(self.stages))
            out = torch.empty(len(noise), size, size, 3, dtype=torch.uint8, device=noise.device)
        given = (noise, condition_noise, words, mask, sentence)
        together = _TOGETHER if out.device.type == "cpu" else max(1, len(out))
        for start in range(0, len(out), together):
            rows = slice(start, start + together)
            self._paint(out[rows], *(tensor[rows] for tensor in given))
        return out

    @torch.inference_mode()
    def _paint(
        self,
        out: Tensor,
        noise: Tensor,
        condition_noise: Tensor,
        words: Tensor,
        mask: Tensor,
        sentence: Tensor,
    ) -> None:
        """Do the same for few images, into ``out``."""
        s_ca = self._augment(sentence.to(self.dtype), condition_noise)
        all_f_0 = self._first(torch.cat([s_ca, noise.to(self.dtype)], dim=1))
        if not self.stages:
            image_head(all_f_0, self.head.weight, self.head.bias, out=out)
            return
        words = words.to(self.dtype)
        projected = [stage.project(words, s_ca) for stage in self.stages]
        together = len(out)
        if out.device.type == "cpu":
            together = torch.get_num_threads() if _stages_at_once(self.dtype) else 1
        for start in range(0, len(out), together):
            rows = slice(start, start + together)
            f = all_f_0[rows]
            for i, (stage, (keys, v)) in enumerate(zip(self.stages, projected, strict=True)):
                inputs = (f, keys[rows], mask[rows], None if v is None else v[rows])
                if i == len(self.stages) - 1:
                    stage(*inputs, self.head, out=out[rows])
                    continue
                f = self.memory.map(f"f_{i + 1}", together, f, stage.channels, scale=2)
                stage(*inputs, None, out=f)

    def _augment(self, sentence: Tensor, noise: Tensor) -> Tensor:
        """Return s_ca, as ``ConditioningAugmentation`` does."""
        mu, log_var = _linear_glu(sentence, self.augment).float().chunk(2, dim=1)
        return (mu + torch.exp(0.5 * log_var) * noise).to(self.dtype)

    def _first(self, x: Tensor) -> Tensor:
        """Return f_0 = F_0(z, s_ca)."""
        f = _linear_glu(x, self.linear).view(len(x), 4, 4, -1).permute(0, 3, 1, 2)
        for i, up in enumerate(self.upsample):
            out = self.memory.map(f"f_0, {i % 2}", _TOGETHER, f, up.channels, scale=2)
            f = conv_glu(f, up.weight, up.bias, out=out)
        return f


class FusedStage:
    """f_i = F_i(F_att_i(f_{i-1}, w, s_ca))."""

    def __init__(
        self,
        F_att_i: nn.Module,  # noqa: N803
        F_i: nn.Module,  # noqa: N803
        packing: "Packing",
    ) -> None:
        assert isinstance(F_att_i, Attention)
        assert isinstance(F_i, Transformer)
        self.U = packing.packed(F_att_i.U.weight, None)
        self.V: PackedConv | None = None
        self.sentence_weight: Tensor | None = None
        mix = torch.eye(2 * F_att_i.U.out_features, device=self.U.weight.device)
        if F_att_i.V is not None:
            assert isinstance(F_att_i.mix, nn.Conv2d)
            self.V = packing.packed(F_att_i.V.weight, F_att_i.V.bias)
            mix = F_att_i.mix.weight.detach().flatten(1)
        if F_att_i.sentence_conv is not None:
            self.sentence_weight = (
                F_att_i.sentence_conv.weight.detach().flatten(1).to(packing.dtype)
            )
        self.mix = mix.to(packing.dtype, copy=True)
        *blocks, up = F_i
        convs = []
        for block in blocks:
            assert isinstance(block, ResidualBlock)
            conv, norm, second_conv, second_norm = block.block
            convs.append(packing.packed(*_folded(conv, norm), glu=True))
            convs.append(packing.packed(*_folded(second_conv, second_norm)))
        convs.append(packing.up_conv(up))
        self.channels = convs[-1].channels
        self.weights = [conv.weight for conv in convs]
        self.biases = [conv.bias for conv in convs]

    def project(
        self,
        words: Tensor,  # (N, T, D)
        s_ca: Tensor,  # (N, condition)
    ) -> tuple[Tensor, Tensor | None]:
        """Return U w (N, T, C) and V s_ca (N, C)."""
        keys = _linear(words.flatten(0, 1), self.U).unflatten(0, words.shape[:2])
        return keys, None if self.V is None else _linear(s_ca, self.V)

    def __call__(
        self,
        f: Tensor,  # (N, C, H, W)
        keys: Tensor,  # (N, T, C)
        mask: Tensor,  # (N, T)
        sentence: Tensor | None,  # (N, C)
        head: "PackedConv | None",
        out: Tensor,  # (N, C, 2H, 2W), or with a head (N, 2H, 2W, 3)
    ) -> None:
        """Write f_i, or the image that a head makes of it."""
        glam_stage(
            f,
            keys,
            mask,
            sentence,
            self.sentence_weight,
            self.mix,
            self.weights,
            self.biases,
            None if head is None else head.weight,
            None if head is None else head.bias,
            out=out,
        )


class PackedConv(NamedTuple):
    """The weight and the bias of a convolution, as the fused ops take them."""

    weight: Tensor
    """From ``pack``."""
    bias: Tensor
    """float32, zero where the layer has none."""
    channels: int
    """Of the result."""


class KeptMemory:
    """Memory for maps, kept from call to call."""

    def __init__(self) -> None:
        self._of_name: dict[str, Tensor] = {}
        self._last: dict[str, Tensor] = {}

    def map(self, name: str, most: int, like: Tensor, channels: int, scale: int = 1) -> Tensor:
        """Return a channels_last map (N, channels, scale H, scale W) that lies there.

        Args:
            name: the same memory for the same name; what was there is lost.
            most: images that there must be room for.
            like: a map (N, *, H, W) of the same data type and device.
            channels: of the map.
            scale: how many times larger than ``like`` it is.
        """
        batch, _, height, width = like.shape
        last = self._last.get(name)
        shape = (batch, channels, height * scale, width * scale)
        if last is not None and last.shape == shape and last.device == like.device:
            return last
        if like.device.type != "cpu":  # PyTorch keeps a GPU's, and a CUDA graph its own
            return torch.empty(
                shape,
                dtype=like.dtype,
                device=like.device,
                memory_format=torch.channels_last,
            )
        size = channels * height * width * scale * scale
        kept = self._of_name.get(name)
        if kept is None or kept.numel() < most * size or kept.device != like.device:
            kept = torch.empty(most * size, dtype=like.dtype, device=like.device)
            self._of_name[name] = kept
        rows = kept[: batch * size].view(batch, height * scale, width * scale, channels)
        last = self._last[name] = rows.permute(0, 3, 1, 2)
        return last

    def bytes(self) -> int:
        """Return how much is kept."""
        return sum(kept.nbytes for kept in self._of_name.values())


def fastest_dtype(device: str = "cpu") -> torch.dtype:
    """Return the data type in which a fused generator is fastest on a device of this type."""
    return BF16 if device == "cuda" or (device == "cpu" and _has_tiles()) else torch.float32


def _stages_at_once(dtype: torch.dtype) -> bool:
    """Whether a whole stage is one op on the CPU, in which each image has a thread."""
    return dtype == BF16 and _has_tiles()


def _has_tiles() -> bool:
    built = build_info()
    return built is not None and built.instruction_set == "amx"


class Packing(NamedTuple):
    """How the weights of a generator's layers are packed."""

    dtype: torch.dtype
    layout: Layout | None

    def packed(
        self,
        weight: Tensor,  # (N, C, h, w), or (N, C) of a linear layer
        bias: Tensor | None,  # (N,)
        *,
        glu: bool = False,
        upsample: bool = False,
    ) -> PackedConv:
        """Pack a layer."""
        weight = weight.detach() if weight.dim() == 4 else weight.detach()[:, :, None, None]
        bias = weight.new_zeros(len(weight)) if bias is None else bias.detach()
        packed = pack(weight, glu=glu, upsample=upsample, dtype=self.dtype, layout=self.layout)
        return PackedConv(packed, bias.float().clone(), len(bias) // 2 if glu else len(bias))

    def up_conv(self, block: nn.Module) -> PackedConv:
        """Pack an up-block."""
        assert isinstance(block, UpBlock)
        return self.packed(*_folded(*block), glu=True, upsample=True)

    def first_linear(self, first: FirstTransformer) -> PackedConv:
        """Pack F_0's linear layer, its columns in the order of a channels_last map."""

        def channels_last(rows: Tensor) -> Tensor:
            halves: Tensor = rows.unflatten(0, (2, first.channels, 4 * 4))
            return halves.transpose(1, 2).flatten(0, 2)

        weight, bias = _folded(first.linear, first.norm)
        return self.packed(channels_last(weight), channels_last(bias), glu=True)


def _folded(
    layer: nn.Module,  # without a bias
    norm: nn.Module,
) -> tuple[Tensor, Tensor]:
    """Return weight and bias of a layer together with the batch norm behind it."""
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    assert isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    weight = layer.weight * scale.view(-1, *[1] * (layer.weight.dim() - 1))
    return weight, norm.bias - norm.running_mean * scale


def _linear(x: Tensor, packed: PackedConv) -> Tensor:
    """Map (N, K) to (N, channels): rows as the pixels of one map."""
    return _as_rows(conv_add(_as_map(x), packed.weight, packed.bias))


def _linear_glu(x: Tensor, packed: PackedConv) -> Tensor:
    """Map (N, K) to (N, channels), gated."""
    return _as_rows(conv_glu(_as_map(x), packed.weight, packed.bias))


def _as_map(x: Tensor) -> Tensor:
    return x.reshape(1, len(x), 1, x.shape[1]).permute(0, 3, 1, 2)


def _as_rows(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1).reshape(x.shape[2], x.shape[1])
