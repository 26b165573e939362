"""The whole generator as one op. tests/models compares it with the model itself."""

import threading

import pytest
import torch
from torch import Tensor, nn

from mirrorgan_fast.errors import InputError
from mirrorgan_fast.ops import (
    Layout,
    PackedGLAM,
    PackedLayer,
    PackedStage,
    build_info,
    conv_glu,
    glam,
    pack,
    use,
)
from mirrorgan_fast.ops.glam import from_flat

BF16 = torch.bfloat16
Z, K, D = 7, 10, 12
HAS_AMX = build_info() is not None and build_info().instruction_set == "amx"
needs_amx = pytest.mark.skipif(not HAS_AMX, reason="this processor has no AMX")


def generator(
    form: str = "authors",
    channels: int = 32,
    blocks: int = 2,
    stages: int = 2,
    image_channels: int = 3,
    dtype: torch.dtype = BF16,
    layout: Layout = "tiles",
) -> PackedGLAM:
    """Return a generator with random weights, for images of 16 * 2^stages pixels."""
    rng = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=rng)

    def layer(
        out: int, size: int, side: int, *, glu: bool = False, up: bool = False
    ) -> PackedLayer:
        weight = normal(out, size, side, side) / (size * side * side) ** 0.5
        packed = pack(weight, glu=glu, upsample=up, dtype=dtype, layout=layout)
        return PackedLayer(packed, 0.3 * normal(out))

    def stage() -> PackedStage:
        parts = 2 if form == "words" else 3
        wide = 2 * channels
        layers = []
        for _ in range(blocks):
            layers += [layer(2 * wide, wide, 3, glu=True), layer(wide, wide, 3)]
        return PackedStage(
            layer(channels, D, 1),
            layer(channels, K, 1) if parts == 3 else None,
            normal(channels, channels).to(dtype) if form == "authors" else None,
            (normal(wide, parts * channels) / (parts * channels) ** 0.5).to(dtype),
            [*layers, layer(2 * channels, wide, 3, glu=True, up=True)],
        )

    return PackedGLAM(
        layer(4 * K, D, 1, glu=True),
        layer(2 * 16 * 4 * channels, K + Z, 1, glu=True),
        [
            layer(4 * channels, 4 * channels, 3, glu=True, up=True),
            layer(2 * channels, 2 * channels, 3, glu=True, up=True),
        ],
        [stage() for _ in range(stages)],
        PackedLayer(*(4 * tensor for tensor in layer(image_channels, channels, 3))),
        noise_size=Z,
        embedding_size=D,
    )


def make_inputs(batch: int, words: int = 5, seed: int = 1) -> list[Tensor]:
    rng = torch.Generator().manual_seed(seed)
    sizes = (batch, Z), (batch, K), (batch, words, D), (batch, D)
    noise, condition_noise, w, s = (torch.randn(size, generator=rng) for size in sizes)
    mask = torch.rand((batch, words), generator=rng) > 0.3
    return [noise, condition_noise, w, mask, s]


def run_ops_one_by_one(inputs: list[Tensor], packed: PackedGLAM) -> Tensor:
    """Return the images of the generator's single ops."""
    before, packed.runs_as_one_op = packed.runs_as_one_op, False
    result = glam(*inputs, packed)
    packed.runs_as_one_op = before
    return result


@needs_amx
@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"form": "paper"},
        {"form": "words", "stages": 1},
        {"blocks": 0, "image_channels": 1},
        {"stages": 3, "blocks": 1, "image_channels": 4},
    ],
)
def test_one_op_and_single_ops_give_the_same_bits(sizes):
    packed = generator(**sizes)
    assert packed.runs_as_one_op
    for batch, words in ((1, 1), (2, 18), (5, 130), (19, 3)):
        inputs = make_inputs(batch, words, seed=batch)
        inputs[1].zero_()  # it is multiplied by exp(), whose last bit differs between libraries
        expected = run_ops_one_by_one(inputs, packed)
        assert expected.float().std() > 20
        assert torch.equal(glam(*inputs, packed), expected)


@needs_amx
@pytest.mark.parametrize("threads", [1, 3, 4])
def test_threads_and_batches_do_not_change_bits(threads):
    packed, inputs = generator(), make_inputs(7)
    batched = glam(*inputs, packed)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        assert torch.equal(glam(*inputs, packed), batched)
        assert torch.equal(glam(*(t[4:6] for t in inputs), packed), batched[4:6])
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, BF16])
@pytest.mark.parametrize("implementation", ["reference", "cpu"])
def test_nan_stays_in_its_image(implementation, dtype):
    packed, inputs = generator(dtype=dtype), make_inputs(3)
    with use(implementation):
        clean = glam(*inputs, packed)
        for argument in (0, 1, 2, 4):
            dirty = [t.clone() for t in inputs]
            dirty[argument][1] = torch.nan
            images = glam(*dirty, packed)
            assert (images[1] == 0).all()
            assert torch.equal(images[[0, 2]], clean[[0, 2]])


def test_only_whole_tiles_run_as_one_op():
    assert generator().runs_as_one_op == HAS_AMX
    assert not generator(channels=24).runs_as_one_op
    assert not generator(image_channels=5).runs_as_one_op
    assert not generator(stages=0).runs_as_one_op
    assert not generator(layout="rows").runs_as_one_op
    assert glam(*make_inputs(2), generator(channels=24)).shape == (2, 64, 64, 3)


def test_writes_to_out():
    packed, inputs = generator(), make_inputs(2)
    out = torch.zeros(2, 64, 64, 3, dtype=torch.uint8)
    assert glam(*inputs, packed, out=out) is out
    assert torch.equal(out, glam(*inputs, packed))
    assert glam(*make_inputs(0), packed).shape == (0, 64, 64, 3)


def test_strided_inputs():
    packed, inputs = generator(), make_inputs(3)
    strided = [t.transpose(0, 1).contiguous().transpose(0, 1) for t in inputs]
    assert not strided[2].is_contiguous()
    assert torch.equal(glam(*strided, packed), glam(*inputs, packed))


WRONG = [
    ("noise", 0, torch.zeros(2, Z, dtype=torch.float64), f"torch.float32 of shape (2, {Z})"),
    ("noise", 0, torch.zeros(2, Z + 1), f"(2, {Z})"),
    ("noise", 0, torch.zeros(()), f"(N, {Z})"),
    ("noise", 0, torch.zeros(2, Z, device="meta"), "on cpu"),
    ("condition_noise", 1, torch.zeros(2, K + 1), f"(2, {K})"),
    ("words", 2, torch.zeros(2, D), f"(N, T, {D})"),
    ("words", 2, torch.zeros(2, 0, D), "T > 0"),
    ("words", 2, torch.zeros(2, 5, D + 1), f"(2, 5, {D})"),
    ("words", 2, torch.zeros(3, 5, D), f"(2, 5, {D})"),
    ("mask", 3, torch.zeros(2, 5), "torch.bool of shape (2, 5)"),
    ("sentence", 4, torch.zeros(2, D + 1), f"(2, {D})"),
]


@pytest.mark.parametrize(("argument", "index", "wrong", "wanted"), WRONG)
def test_refuses(argument, index, wrong, wanted):
    inputs = make_inputs(2)
    inputs[index] = wrong
    with pytest.raises(InputError, match=rf"^glam: {argument}: found ") as error:
        glam(*inputs, generator())
    assert wanted in str(error.value)


def test_refuses_a_wrong_out():
    packed, inputs = generator(), make_inputs(2)
    valid = torch.zeros(2, 64, 64, 3, dtype=torch.uint8)
    for out in (valid[:, 1:], valid.float(), valid.mT.contiguous().mT, valid.to("meta")):
        with pytest.raises(InputError, match=r"^glam: out: found "):
            glam(*inputs, packed, out=out)


@needs_amx
def test_compiled_op_checks_for_itself():
    """A wrong direct call must not crash the process."""
    packed, inputs = generator("words"), make_inputs(2)
    out = torch.zeros(2, 64, 64, 3, dtype=torch.uint8)
    weights, biases, mixes, _, upsamples = packed.flat
    narrow = pack(torch.ones(30, K + Z, 1, 1), glu=True, upsample=False, dtype=BF16)
    valid = (*inputs, weights, biases, mixes, [], upsamples, out)
    wrong = [
        (0, inputs[0][:1]),
        (0, torch.zeros(())),
        (0, torch.zeros(2, Z + 40)),
        (1, torch.zeros(2, K + 1)),
        (1, torch.zeros(2, 0)),
        (2, torch.zeros(2, 5, D + 30)),
        (3, inputs[3].float()),
        (4, inputs[4].double()),
        (5, weights[:-1]),
        (5, []),
        (5, [weights[0], narrow, *weights[2:]]),
        (5, weights[:5] + weights[6:] + weights[5:6]),
        (5, [w.float() for w in weights]),
        (6, biases[:-1]),
        (6, [b[:2] for b in biases]),
        (6, [biases[0], torch.zeros(30), *biases[2:]]),
        (7, []),
        (7, mixes[:1]),
        (7, [m[:, 1:] for m in mixes]),
        (7, [torch.zeros((), dtype=BF16)] * 2),
        (7, [torch.zeros(64, 0, dtype=BF16)] * 2),
        (8, generator().flat[3]),
        (9, 0),
        (9, 1),
        (9, 3),
        (9, -1),
        (9, 1000),
        (10, out[:1]),
        (10, out.float()),
        (10, torch.zeros(2, 32, 32, 3, dtype=torch.uint8)),
    ]
    refused = []

    def call_all() -> None:
        for index, value in wrong:
            try:
                torch.ops.mirrorgan.glam(*valid[:index], value, *valid[index + 1 :])
            except ValueError as error:
                refused.append(str(error))
        no_pixel = [weights[0], narrow, *weights[4:]]
        matching_biases = [biases[0], torch.zeros(30), *biases[4:]]
        try:
            torch.ops.mirrorgan.glam(*inputs, no_pixel, matching_biases, mixes, [], 0, out)
        except ValueError as error:
            refused.append(str(error))

    # A new thread, whose workspaces no valid call has made large enough.
    thread = threading.Thread(target=call_all)
    thread.start()
    thread.join()
    assert len(refused) == len(wrong) + 1
    assert all(error.startswith("glam: ") and ", wanted " in error for error in refused)
    torch.ops.mirrorgan.glam(*valid)


class Painter(nn.Module):
    """A module that calls the op."""

    def __init__(self) -> None:
        super().__init__()
        self.packed = generator()

    def forward(self, *inputs: Tensor) -> Tensor:
        """Call the op."""
        return glam(*inputs, self.packed)


@needs_amx
@torch.no_grad()
def test_compiles_and_exports_as_one_op():
    inputs, painter = make_inputs(2), Painter()
    expected = painter(*inputs)
    torch.compiler.reset()
    assert torch.equal(torch.compile(painter, fullgraph=True)(*inputs), expected)
    program = torch.export.export(painter, tuple(inputs))
    assert any("mirrorgan.glam." in str(node.target) for node in program.graph.nodes)
    assert torch.equal(program.module()(*inputs), expected)


@pytest.mark.parametrize("dtype", [torch.float32, BF16])
def test_compiles_as_single_ops(dtype):
    packed, inputs = generator(dtype=dtype), make_inputs(2)
    packed.runs_as_one_op = False
    torch.compiler.reset()
    compiled = torch.compile(glam, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*inputs, packed), glam(*inputs, packed))
    assert torch.ones(3).sum() == 3  # a failed trace once broke all later calls


@needs_amx
def test_opcheck():
    packed = generator()
    out = torch.zeros(2, 64, 64, 3, dtype=torch.uint8)
    torch.library.opcheck(torch.ops.mirrorgan.glam, (*make_inputs(2), *packed.flat, out))


@pytest.mark.parametrize("sizes", [{}, {"form": "words"}, {"form": "paper", "stages": 0}])
def test_from_flat_restores_the_generator(sizes):
    packed, inputs = generator(**sizes), make_inputs(2)
    again = from_flat(*packed.flat, noise_size=Z, embedding_size=D)
    assert again.flat[0][3] is packed.flat[0][3]
    assert torch.equal(run_ops_one_by_one(inputs, again), run_ops_one_by_one(inputs, packed))


def test_a_backward_pass_notices_an_overwritten_tensor():
    x = torch.randn(1, 32, 16, 16).contiguous(memory_format=torch.channels_last)
    weight = pack(torch.randn(64, 32, 3, 3), glu=True, upsample=False, dtype=torch.float32)
    scale = torch.ones((), requires_grad=True)
    kept = torch.zeros_like(x)
    loss = (scale * kept).sum()
    with torch.no_grad():
        conv_glu(x, weight, torch.zeros(64), out=kept)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
