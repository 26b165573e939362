"""The form in which the fused convolutions take their weights.

A 3x3 convolution with padding 1 has nine taps, a 1x1 convolution has one. A 3x3 convolution of a
map that is first upsampled by two (nearest neighbor) is computed on the small map, as four phases
of four taps: one phase for each of the four pixels that a pixel becomes. Rows and columns of the
kernel that fall on the same pixel are summed.

On a CPU, a 3x3 convolution uses Winograd's form (Lavin and Gray, "Fast Algorithms for Convolutional
Neural Networks", 2016), unless it makes an image of up to three channels. In float32 a tile of 4x4
results takes 36 products instead of 144. In bfloat16, which would lose too much precision there, a
tile of 2x2 results takes 16 instead of 36. On the upsampled map 2x2 results take 9 instead of 16.
Each product is a 1x1 convolution of a sum of inputs, and its weight is a sum of taps. In float32 a
NaN or an infinity therefore also reaches other results of its tile, up to three pixels away. In
bfloat16 with AMX the form is only faster on the upsampled map, and only with many channels.

On a CPU the weights are in the layout ``tiles``: blocks of 32 output channels and, for each tap,
steps of 32 input channels. Each step of a block is two tiles of 16 output channels. In bfloat16 a
tile has shape (16, 32), with pairs of input channels next to each other, as AMX multiplies them. In
float32 it has shape (32, 16). With a GLU the first tile of a block holds values, the second their
gates. Blocks and steps that are not full are padded with zeros.

On a GPU they are in the layout ``rows``, (phases, taps, C, N): one row for each input channel of
each tap. With a GLU each value is followed by its gate.
"""

from math import prod
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from mirrorgan_fast.errors import InputError
from mirrorgan_fast.ops.build_info import instruction_set
from mirrorgan_fast.ops.checks import refuse
from mirrorgan_fast.ops.choice import CUDA, REFERENCE, TRITON, choose

Layout = Literal["tiles", "rows"]

_HALF, _DEPTH = 16, 32
# From this many channels on, AMX's products take longer than the processing of their sums.
_MANY_CHANNELS = 512
_IMAGE_CHANNELS = 3  # up to this many, `image_head` has its own form, with plain taps
_PHASES = ((0, 0), (0, 1), (1, 0), (1, 1))
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_DIMS: dict[Layout, int] = {"tiles": 7, "rows": 4}
_LAYOUTS: dict[str, Layout] = {"cpu": "tiles", "triton": "rows", "cuda": "rows"}
"""The layout that each implementation of a convolution takes."""


class _Winograd(NamedTuple):
    """Winograd's form in one dimension."""

    weights: tuple[tuple[float, ...], ...]
    """The matrix that turns three taps into the weights of the products."""
    taps: tuple[tuple[float, ...], ...]
    """The matrix that turns these weights back into taps."""


def _four_results() -> _Winograd:
    """Return the form for four results: polynomials at 0, 5/8, -5/8, 3/2, -3/2 and infinity."""
    near, far = 5 / 8, 3 / 2  # of the candidates, the points with the smallest error in float32
    points = (0.0, near, -near, far, -far)
    scales = [prod(p - other for other in points if other != p) for p in points]
    weights = [
        (1 / scale, p / scale, p**2 / scale) for p, scale in zip(points, scales, strict=True)
    ]
    middle = scales[1] / (2 * near)
    return _Winograd(
        (*weights, (0, 0, 1)),
        ((scales[0], 0, 0, 0, 0, 0), (0, middle, -middle, 0, 0, 0), (0, 0, 0, 0, 0, 1)),
    )


_FOUR_BY_FOUR = _four_results()
_TWO_BY_TWO = _Winograd(
    ((1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1)),
    ((1, 0, 0, 0), (0, 1, -1, 0), (0, 0, 0, 1)),
)
_UPSAMPLED = _Winograd(((1, 0, 0), (1, 1, 1), (0, 0, 1)), ((1, 0, 0), (-1, 1, -1), (0, 0, 1)))
_FORM_OF_PRODUCTS = {36: _FOUR_BY_FOUR, 16: _TWO_BY_TWO, 9: _UPSAMPLED}
_TAPS = ((1, 9), (4, 4))
"""(phases, taps per phase) of a 3x3 convolution that is not in Winograd's form."""
_ONE_BY_ONE = (1, 1)
_TILE_SHAPE = {torch.float32: (_DEPTH, _HALF), torch.bfloat16: (_HALF, _DEPTH)}


def layout_on(device: torch.device) -> Layout:
    """Return the layout that the implementations for a device need."""
    return "tiles" if device.type == "cpu" else "rows"


def pack(
    weight: Tensor,  # (N, C, 3, 3) or (N, C, 1, 1)
    *,
    glu: bool,
    upsample: bool,
    dtype: torch.dtype,
    layout: Layout | None = None,
) -> Tensor:
    """Pack the weights of a convolution.

    Args:
        weight: Weight of a 3x3 convolution with padding 1 or of a 1x1 convolution, in any
            floating-point data type.
        glu: The op applies a GLU: the second half of the N channels are gates.
        upsample: The op convolves the map upsampled by two; 3x3 only.
        dtype: Data type of the maps to convolve: float32, bfloat16 or, in ``rows``, float16.
        layout: None: ``tiles`` on a CPU, ``rows`` on other devices.

    Returns:
        In ``dtype``: tiles (phases or products, blocks, taps, steps, 2, 32, 16), in bfloat16
        (..., 16, 32); or rows (phases, taps, C, N).

    Raises:
        InputError: The weight has another shape or data type.
    """
    sides = ((3, 3),) if upsample else ((3, 3), (1, 1))
    if weight.dim() != 4 or weight.shape[2:] not in sides or not weight.is_floating_point():
        raise InputError(
            f"pack: weight: found {weight.dtype} of shape {tuple(weight.shape)}, wanted floating "
            f"point of shape (N, C, 3, 3){'' if upsample else ' or (N, C, 1, 1)'}"
        )
    layout = _checked_layout(layout, dtype, weight.device)
    if weight.numel() == 0 or (glu and weight.shape[0] % 2):
        raise InputError(
            f"pack: weight: found shape {tuple(weight.shape)}, wanted at least one channel, "
            "and an even number of output channels for a GLU"
        )
    wide = weight.detach().to(torch.promote_types(weight.dtype, torch.float32))
    form = _winograd_form(weight, dtype, glu=glu, upsample=upsample) if layout == "tiles" else None
    if form is not None:
        products = _nested(form.weights, wide)  # (N, C, p, q)
        phases = products.flatten(2).permute(2, 0, 1)[..., None, None]  # (P, N, C, 1, 1)
    else:
        phases = _phases(wide) if upsample else wide[None]  # (P, N, C, h, w)
    return _arranged(phases, dtype, layout, glu=glu)


def pack_transposed(
    weight: Tensor,  # (C, N, 4, 4)
    *,
    dtype: torch.dtype,
    layout: Layout | None = None,
) -> Tensor:
    """Pack the weights of a transposed 4x4 convolution with stride 2 and padding 1, without a GLU.

    It is a convolution of the map upsampled by two, whose four phases have taps of their own.

    Args:
        weight: Weight in any floating-point data type, as ``nn.ConvTranspose2d`` has it.
        dtype: As in `pack`.
        layout: As in `pack`.

    Returns:
        As `pack` with ``upsample``.

    Raises:
        InputError: The weight has another shape or data type.
    """
    if weight.dim() != 4 or weight.shape[2:] != (4, 4) or not weight.is_floating_point():
        raise InputError(
            f"pack_transposed: weight: found {weight.dtype} of shape {tuple(weight.shape)}, wanted "
            f"floating point of shape (C, N, 4, 4)"
        )
    layout = _checked_layout(layout, dtype, weight.device)
    if weight.numel() == 0:
        raise InputError(
            f"pack_transposed: weight: found shape {tuple(weight.shape)}, wanted at least one "
            f"channel"
        )
    wide = weight.detach().to(torch.promote_types(weight.dtype, torch.float32)).transpose(0, 1)
    # The pixels before, at and after a pixel meet the taps 3, 1 for its even and 2, 0 for its odd
    # result.
    taps = ((3, 1), (2, 0))
    phases = torch.stack([wide[:, :, taps[low]][..., taps[right]] for low, right in _PHASES])
    return _arranged(phases, dtype, layout, glu=False)


def _checked_layout(layout: Layout | None, dtype: torch.dtype, device: torch.device) -> Layout:
    """Return the layout, by default that of the device; both must go together with ``dtype``."""
    if layout is None:
        layout = layout_on(device)
    if layout not in _DIMS:
        raise InputError(f"pack: layout: found {layout!r}, wanted {' or '.join(_DIMS)}")
    dtypes = _DTYPES if layout == "rows" else _DTYPES[:2]
    if dtype not in dtypes:
        raise InputError(f"pack: dtype: found {dtype}, wanted {' or '.join(map(str, dtypes))}")
    return layout


def _arranged(
    phases: Tensor,  # (P, N, C, h, w)
    dtype: torch.dtype,
    layout: Layout,
    *,
    glu: bool,
) -> Tensor:
    """Return kernels in a layout."""
    taps = phases.flatten(3).permute(0, 3, 2, 1)  # (P, taps, C, N)
    if layout == "rows":
        if glu:
            taps = taps.unflatten(3, (2, -1)).transpose(3, 4).flatten(3)
        return taps.to(dtype).contiguous()
    taps = functional.pad(taps, (0, 0, 0, -taps.shape[2] % _DEPTH))
    halves = taps.chunk(2, dim=3) if glu else (taps,)
    columns = [functional.pad(half, (0, -half.shape[3] % _block(glu))) for half in halves]
    if glu:
        tiles = torch.stack([half.unflatten(3, (-1, _HALF)) for half in columns], dim=4)
    else:
        tiles = columns[0].unflatten(3, (-1, 2, _HALF))  # (P, taps, K, blocks, 2, 16)
    steps = tiles.unflatten(2, (-1, _DEPTH)).permute(0, 4, 1, 2, 5, 3, 6)
    if dtype == torch.bfloat16:
        steps = steps.unflatten(5, (-1, 2)).transpose(6, 7).flatten(6)
    packed: Tensor = steps.to(dtype).contiguous()
    return packed


def convolve_packed(
    x: Tensor,  # (N, C, H, W)
    weight: Tensor,  # packed
    bias: Tensor,  # (N',)
    *,
    glu: bool,
) -> Tensor:
    """Convolve with packed weights in plain PyTorch; return (N, N', H', W'), float32 or wider."""
    wide = torch.promote_types(x.dtype, torch.float32)
    kernels = unpack(weight, x.shape[1], len(bias), glu=glu).to(wide)
    x, bias = x.to(wide), bias.to(wide)
    if len(kernels) == 1:
        return functional.conv2d(x, kernels[0], bias, padding=kernels.shape[3] // 2)
    phases = [
        functional.conv2d(functional.pad(x, (1 - right, right, 1 - low, low)), kernel, bias)
        for (low, right), kernel in zip(_PHASES, kernels, strict=True)
    ]
    pairs = torch.stack(phases, dim=-1).unflatten(-1, (2, 2))  # (N, N', H, W, 2, 2)
    upsampled: Tensor = pairs.permute(0, 1, 2, 4, 3, 5).flatten(4, 5).flatten(2, 3)
    return upsampled


def check_packed(
    op: str, x: Tensor, weight: Tensor, bias: Tensor, *, glu: bool, channels: int | None = None
) -> int:
    """Check the inputs of a fused convolution; return by how much it upsamples, 1 or 2.

    Args:
        op: Name of the op, for errors.
        x: The map to convolve. With ``channels``, any map of its data type and device.
        weight: Packed weight.
        bias: Bias of the convolution.
        glu: Whether a GLU follows.
        channels: Channels of the map to convolve. None: those of ``x``.
    """
    if x.dim() != 4 or x.shape[1] == 0 or x.dtype not in _DTYPES:
        refuse(op, "x", x, "float32 or bfloat16 (or float16) of shape (N, C, H, W), C > 0")
    channels = x.shape[1] if channels is None else channels
    size = bias.numel()
    if bias.dim() != 1 or bias.dtype != torch.float32 or (glu and size % 2):
        refuse(op, "bias", bias, f"float32 of shape ({'2C' if glu else 'C'},)")
    if in_tiles(weight):
        fits = _fits_tiles(weight, channels, size, glu=glu)
    else:
        fits = weight.dim() == _DIMS["rows"] and weight.shape[2:] == (channels, size)
        fits = fits and weight.shape[:2] in (*_TAPS, _ONE_BY_ONE)
    if not fits:
        refuse(op, "weight", weight, f"a weight from pack() for {channels} channels and this bias")
    if weight.dtype != x.dtype or (
        in_tiles(weight) and weight.shape[5:] != _TILE_SHAPE.get(x.dtype)
    ):
        refuse(op, "weight", weight, f"a weight from pack() in {x.dtype}, as x")
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor.device != x.device:
            refuse(op, name, tensor, f"device {x.device}, as x")
        if not tensor.is_contiguous():
            refuse(op, name, tensor, "a contiguous tensor")
    return 2 if weight.shape[0] in (4, 9) else 1


def _fits_tiles(weight: Tensor, channels: int, size: int, *, glu: bool) -> bool:
    """Return whether tiles have a known form, and the right number for these sizes.

    Args:
        weight: Weight in tiles.
        channels: Channels of the map to convolve.
        size: Size of the bias.
        glu: Whether a GLU follows.
    """
    parts, blocks, taps, steps, halves, *tile = weight.shape
    # Packed for float32, whatever data type the weight was converted to afterwards.
    wide = tile == [_DEPTH, _HALF]
    makes_image = not glu and size <= _IMAGE_CHANNELS
    forms: tuple[tuple[int, int], ...] = ((9, 1), (36 if wide else 16, 1), _ONE_BY_ONE, (4, 4))
    if not wide or makes_image:
        forms += _TAPS
    # Inequalities rather than divisions: torch.compile can solve them for symbolic sizes.
    outputs, block = size // 2 if glu else size, _block(glu)
    return (
        (parts, taps) in forms
        and (blocks - 1) * block < outputs <= blocks * block
        and (steps - 1) * _DEPTH < channels <= steps * _DEPTH
        and halves == 2
        and (wide or tile == [_HALF, _DEPTH])
    )


def choose_packed(op: str, x: Tensor, weight: Tensor, *, needs_grad: bool) -> str:
    """Choose an implementation of a convolution that reads the layout of the packed weight."""
    implementation = choose(op, x.device.type, weight.dtype, needs_grad=needs_grad).implementation
    layout = _LAYOUTS.get(implementation)
    if layout is not None and weight.dim() != _DIMS[layout]:
        return REFERENCE
    if implementation == CUDA and taps_of(weight) == 1:
        return TRITON  # the CUDA kernels are for 3x3 convolutions only
    return implementation


def _winograd_form(
    weight: Tensor, dtype: torch.dtype, *, glu: bool, upsample: bool
) -> _Winograd | None:
    makes_image = not glu and weight.shape[0] <= _IMAGE_CHANNELS
    # Without an extension ("") only the reference runs, which would have to undo the form.
    prefers_taps = dtype == torch.bfloat16 and instruction_set() in ("amx", "")
    many_channels = upsample and weight.shape[1] >= _MANY_CHANNELS
    if weight.shape[2] != 3 or makes_image or (prefers_taps and not many_channels):
        return None
    if upsample:
        return _UPSAMPLED
    return _FOUR_BY_FOUR if dtype == torch.float32 else _TWO_BY_TWO


def _phases(weight: Tensor) -> Tensor:
    """Map kernels (N, C, 3, 3) to (4, N, C, 2, 2): sum the taps that fall on the same pixel."""
    rows = _pairs(weight, dim=2)
    return torch.stack([_pairs(rows[low], dim=3)[right] for low, right in _PHASES])


def _pairs(weight: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Sum three taps to two, for the even pixels of the upsampled map and for the odd ones."""
    first, second, third = weight.unbind(dim)
    even, odd = (first, second + third), (first + second, third)
    return torch.stack(even, dim), torch.stack(odd, dim)


def _nested(matrix: tuple[tuple[float, ...], ...], kernels: Tensor) -> Tensor:
    """Apply the matrix to the rows and the columns of kernels (N, C, h, w), in float64."""
    m = torch.tensor(matrix, dtype=torch.float64, device=kernels.device)
    return m @ kernels.double() @ m.T


def in_tiles(weight: Tensor) -> bool:
    """Return whether a packed weight has the layout ``tiles``."""
    return weight.dim() == _DIMS["tiles"]


def taps_of(weight: Tensor) -> int:
    """Return how many taps a packed convolution has, per phase."""
    if weight.dim() == _DIMS["rows"]:
        return weight.shape[1]
    form = _FORM_OF_PRODUCTS.get(weight.shape[0])
    if form is not None:
        return 4 if form is _UPSAMPLED else 9
    return weight.shape[2]


def unpack(weight: Tensor, channels: int, out_channels: int, *, glu: bool) -> Tensor:
    """Return the kernels (P, N, C, h, w) that were packed, in the same data type."""
    taps = taps_of(weight)
    side = {9: 3, 4: 2, 1: 1}[taps]
    if weight.dim() == _DIMS["rows"]:
        kernels = weight
        if glu:
            kernels = weight.unflatten(3, (-1, 2)).transpose(3, 4).flatten(3)
        from_rows: Tensor = kernels.permute(0, 3, 2, 1).unflatten(3, (side, side))
        return from_rows
    steps = weight
    if weight.dtype == torch.bfloat16:
        steps = steps.unflatten(6, (_HALF, 2)).transpose(6, 7).flatten(5, 6)
    tiles = steps.permute(0, 2, 3, 5, 1, 4, 6).flatten(2, 3)  # (P, taps, K, B, 2, 16)
    if glu:
        halves = [tiles[..., i, :].flatten(3)[..., : out_channels // 2] for i in range(2)]
        columns = torch.cat(halves, dim=3)
    else:
        columns = tiles.flatten(3)[..., :out_channels]
    columns = columns[:, :, :channels].permute(0, 3, 2, 1)  # (P, N, C, taps)
    form = _FORM_OF_PRODUCTS.get(len(weight))
    if form is not None:
        products = columns[..., 0].permute(1, 2, 0)  # (N, C, P)
        whole = _nested(form.taps, products.unflatten(2, (len(form.weights), -1)))
        return (_phases(whole) if form is _UPSAMPLED else whole[None]).to(weight.dtype)
    unpacked: Tensor = columns.unflatten(3, (side, side))
    return unpacked


def _block(glu: bool) -> int:
    """Return how many channels of the result a block has."""
    return _HALF if glu else 2 * _HALF
