"""The cases measured on a GPU: every op at the shapes of `cub`, the generator, a training step.

A case is a call of ours and a call in plain PyTorch with the same result, in bfloat16 unless stated
otherwise. `benchmarks/tests/test_gpu.py` runs small cases on the CPU.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from mirrorgan_fast.inference.renderer import fuse
from mirrorgan_fast.models.discriminator import Discriminator
from mirrorgan_fast.models.glam import GLAM
from mirrorgan_fast.models.layers import ResidualBlock, UpBlock
from mirrorgan_fast.models.mirrorgan import MirrorGAN
from mirrorgan_fast.ops import (
    batch_norm_glu,
    batch_norm_leaky_relu,
    build_info,
    conv_add,
    conv_glu,
    glam_attention_mix,
    image_head,
    pack,
    use,
    word_similarity,
)
from mirrorgan_fast.ops.glam_attention_mix import reference as attention_reference
from mirrorgan_fast.recipes import find_recipe
from mirrorgan_fast.training.objectives import discriminator_loss, generator_loss
from mirrorgan_fast.vocabulary import END, Vocabulary

BF16 = torch.bfloat16
GAMMA1, GAMMA2 = 4.0, 5.0


class Case(NamedTuple):
    """A call of ours, and the same in plain PyTorch."""

    name: str
    ours: Callable[[], Any]
    eager: Callable[[], Any]
    compiles: bool = False
    """Whether it is also compared with torch.compile, which takes long: only for larger cases."""
    operations: float = 0.0
    """The least number of operations of the products."""
    nbytes: float = 0.0
    """The least number of bytes read and written."""
    images: int = 0
    """Images made by a call."""


class Sizes(NamedTuple):
    """The sizes of the cases: by default those of `cub`; ``SMALL`` is for tests on the CPU."""

    batch: int = 64
    training_batch: int = 16
    channels: int = 32
    size: int = 128
    words: int = 18
    pairs: int = 48
    regions: int = 289
    depth: int = 256
    batches: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128, 256)
    recipe: str = "cub-paper"


SMALL = Sizes(2, 2, 32, 8, 3, 2, 5, 16, (1, 2), "birds-painted")


def cases(device: str, sizes: Sizes, *, largest_first: bool = False) -> Iterator[Case]:
    """Yield the cases one by one, because each takes memory."""
    torch.manual_seed(0)
    parts = [_convolutions, _attention, _batch_norms, _similarity, _training_step, _generator]
    for part in reversed(parts) if largest_first else parts:
        yield from part(device, sizes)


def similarity_by_loop(words: Tensor, mask: Tensor, regions: Tensor) -> Tensor:
    """Return the word similarity caption by caption, as DAMSM's published code computes it."""
    columns = []
    for word, real in zip(words, mask, strict=True):
        scores = torch.einsum("td,nrd->ntr", word[real], regions).float()
        looks = (scores.softmax(dim=1) * GAMMA1).softmax(dim=2)
        seen = looks @ regions.float()
        cosines = functional.cosine_similarity(seen, word[real].float(), dim=2)
        columns.append((cosines * GAMMA2).logsumexp(dim=1))
    return torch.stack(columns, dim=1)


def _map(device: str, *shape: int, dtype: torch.dtype = BF16) -> Tensor:
    x = torch.randn(shape, device=device, dtype=dtype)
    return x.contiguous(memory_format=torch.channels_last)


def _plain(module: nn.Module, *inputs: Tensor) -> Callable[[], Tensor]:
    """Return a call of a module in evaluation mode, in bfloat16 and channels_last."""
    narrow = module.eval().to(BF16, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def run() -> Tensor:
        with torch.no_grad():
            result: Tensor = narrow(*inputs)
            return result

    return run


def _folded(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    scale = (norm.weight / (norm.running_var + norm.eps).sqrt()).detach()  # type: ignore[operator]
    weight = convolution.weight.detach() * scale[:, None, None, None]
    return weight, (norm.bias - norm.running_mean * scale).detach()  # type: ignore[operator]


def _convolutions(device: str, sizes: Sizes) -> Iterator[Case]:
    channels, size, batch = 2 * sizes.channels, sizes.size, sizes.batch
    pixels = batch * size * size
    x = _map(device, batch, channels, size, size)
    layout = "rows" if device == "cuda" else "tiles"

    block = ResidualBlock(channels).to(device)
    first, glu, second, norm = block.block
    weight, bias = _folded(first, glu)
    packed = pack(weight, glu=True, upsample=False, dtype=BF16, layout=layout)
    yield from _also_in_cuda(
        device,
        Case(
            f"conv_glu, {channels} channels at {size} px, batch {batch}",
            lambda: conv_glu(x, packed, bias),
            _plain(nn.Sequential(first, glu), x),
            compiles=True,
            operations=2.0 * pixels * 9 * channels * 2 * channels,
            nbytes=2.0 * pixels * (channels + channels),
        ),
    )
    second_weight, second_bias = _folded(second, norm)
    second_packed = pack(second_weight, glu=False, upsample=False, dtype=BF16, layout=layout)
    plain = _plain(nn.Sequential(second, norm), x)
    yield from _also_in_cuda(
        device,
        Case(
            f"conv_add, {channels} channels at {size} px, batch {batch}",
            lambda: conv_add(x, second_packed, second_bias, x),
            lambda: plain() + x,
            operations=2.0 * pixels * 9 * channels * channels,
            nbytes=2.0 * pixels * 3 * channels,
        ),
    )
    up = UpBlock(channels, channels // 2).to(device)
    up_weight, up_bias = _folded(*up)
    up_packed = pack(up_weight, glu=True, upsample=True, dtype=BF16, layout=layout)
    yield from _also_in_cuda(
        device,
        Case(
            f"conv_glu on the upsampled map, {channels} channels from {size} px, batch {batch}",
            lambda: conv_glu(x, up_packed, up_bias),
            _plain(up, x),
            compiles=True,
            operations=2.0 * 4 * pixels * 4 * channels * channels,
            nbytes=2.0 * pixels * (channels + 4 * channels // 2),
        ),
    )
    head = nn.Conv2d(sizes.channels, 3, 3, padding=1, bias=False).to(device)
    f = _map(device, batch, sizes.channels, 2 * size, 2 * size)
    head_packed = pack(head.weight, glu=False, upsample=False, dtype=BF16, layout=layout)
    head_bias = torch.zeros(3, device=device)
    plain_head = _plain(nn.Sequential(head, nn.Tanh()), f)
    yield Case(
        f"image_head at {2 * size} px, batch {batch}",
        lambda: image_head(f, head_packed, head_bias),
        lambda: _levels(plain_head()),
        operations=2.0 * 4 * pixels * 9 * sizes.channels * 3,
        nbytes=4.0 * pixels * (2 * sizes.channels + 3),
    )


def _also_in_cuda(device: str, case: Case) -> Iterator[Case]:
    """Yield a case and, if the CUDA kernel was built, that too; also on the CPU, for tests."""
    yield case
    built = build_info()
    if device == "cpu" or (built is not None and built.cuda_architectures != ""):

        def ours() -> Any:
            with use("cuda"):
                return case.ours()

        name = f"the same in CUDA C++, against Triton, {case.name}"
        yield case._replace(name=name, ours=ours, eager=case.ours, compiles=False)


def _levels(image: Tensor) -> Tensor:
    return image.float().add(1).mul(127.5).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def backward(
    run: Callable[..., Tensor], leaves: Sequence[Tensor], parameters: Sequence[Tensor] = ()
) -> Callable[[], Any]:
    """Return a call that runs forward and backward: the gradients of leaves and parameters."""
    leaves = [leaf.detach().requires_grad_() for leaf in leaves]
    cotangents: list[Tensor] = []

    def call() -> Any:
        with torch.enable_grad():
            result = run(*leaves)
        if not cotangents:  # the same numbers for ours and others, in the layout of each result
            rng = torch.Generator().manual_seed(1)
            cotangents.append(
                torch.empty_like(result).copy_(torch.randn(result.shape, generator=rng))
            )
        return torch.autograd.grad(result, (*leaves, *parameters), cotangents[0])

    return call


def _both(
    run: Callable[..., Tensor], leaves: list[Tensor]
) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Return calls that run forward and backward, of ours and of the reference."""

    def of(implementation: str) -> Callable[[], Any]:
        def call(*given: Tensor) -> Tensor:
            with use(implementation):
                return run(*given)

        return backward(call, leaves)

    return of("triton"), of("reference")


def _attention(device: str, sizes: Sizes) -> Iterator[Case]:
    channels, size, words = sizes.channels, sizes.size, sizes.words
    for batch, trains in ((sizes.batch, False), (sizes.training_batch, True)):
        f = _map(device, batch, channels, size, size)
        keys = torch.randn(batch, words, channels, device=device, dtype=BF16)
        sentence = torch.randn(batch, channels, device=device, dtype=BF16)
        weight, mix = (
            torch.randn(rows, columns, device=device, dtype=BF16) / columns**0.5
            for rows, columns in ((channels, channels), (2 * channels, 3 * channels))
        )
        mask = torch.ones(batch, words, dtype=torch.bool, device=device)
        pixels = batch * size * size
        about = f"{channels} channels at {size} px, {words} words, batch {batch}"
        moved = 2.0 * pixels * (channels + 2 * channels)
        if trains:

            def run(
                f: Tensor,
                keys: Tensor,
                sentence: Tensor,
                weight: Tensor,
                mix: Tensor,
                mask: Tensor = mask,
            ) -> Tensor:
                return glam_attention_mix(f, keys, mask, sentence, weight, mix)

            ours, eager = _both(run, [f, keys, sentence, weight, mix])
            moved += 2.0 * pixels * (2 * channels + channels + channels)
            yield Case(f"glam_attention_mix and its backward, {about}", ours, eager, nbytes=moved)
            continue
        arguments = (f, keys, mask, sentence, weight, mix)

        def ours(arguments: tuple[Any, ...] = arguments) -> Tensor:
            return glam_attention_mix(*arguments)

        def eager(arguments: tuple[Any, ...] = arguments) -> Tensor:
            return attention_reference(*arguments)

        case = Case(f"glam_attention_mix, {about}", ours, eager, compiles=True, nbytes=moved)
        yield from _also_in_cuda(device, case)


def _batch_norms(device: str, sizes: Sizes) -> Iterator[Case]:
    batch, channels, size = sizes.training_batch, 4 * sizes.channels, sizes.size // 2
    x = _map(device, batch, channels, size, size)
    weight, bias = torch.randn(2, channels, device=device)
    about = f"{channels} channels at {size} px, batch {batch}"
    for op, kept in ((batch_norm_glu, 0.5), (batch_norm_leaky_relu, 1.0)):

        def run(x: Tensor, weight: Tensor, bias: Tensor, op: Any = op) -> Tensor:
            result: Tensor = op(x, weight, bias)[0]
            return result

        ours, eager = _both(run, [x, weight, bias])
        # forward: statistics, then the result; backward: sums, then the gradient of x
        moved = x.nbytes * (1 + 1 + kept + 2 * (1 + kept) + 1)
        yield Case(f"{op.__name__} and its backward, {about}", ours, eager, nbytes=moved)


def _similarity(device: str, sizes: Sizes) -> Iterator[Case]:
    words, regions = (
        torch.randn(sizes.pairs, count, sizes.depth, device=device, dtype=BF16) / sizes.depth**0.25
        for count in (sizes.words, sizes.regions)
    )
    mask = torch.ones(sizes.pairs, sizes.words, dtype=torch.bool, device=device)

    def ours(words: Tensor, regions: Tensor) -> Tensor:
        with use("triton"):
            return word_similarity(words, mask, regions, gamma1=GAMMA1, gamma2=GAMMA2)

    def loop(words: Tensor, regions: Tensor) -> Tensor:
        return similarity_by_loop(words, mask, regions)

    leaves = [words, regions]
    product = 2.0 * sizes.pairs**2 * sizes.words * sizes.regions * sizes.depth
    yield Case(
        f"word_similarity and its backward against a loop over captions, {sizes.pairs} pairs",
        backward(ours, leaves),
        backward(loop, leaves),
        operations=6 * product,  # 2 for scores and context vectors, and twice as many for gradients
    )


def _training_step(device: str, sizes: Sizes) -> Iterator[Case]:
    """The core of a training step: G and all D, without the frozen networks."""
    config = find_recipe(sizes.recipe).config  # type: ignore[arg-type]
    batch = sizes.training_batch
    given = (
        torch.randn(batch, config.noise_size, device=device),
        torch.randn(batch, config.condition_size, device=device),
        torch.randn(batch, config.caption_length, config.embedding_size, device=device),
        torch.ones(batch, config.caption_length, dtype=torch.bool, device=device),
        torch.randn(batch, config.embedding_size, device=device),
    )
    reals = [_map(device, batch, 3, s, s, dtype=torch.float32) for s in config.stage_sizes]

    def stepping(implementation: str) -> Callable[[], None]:
        glam = GLAM(config).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        all_D = nn.ModuleList([Discriminator(config, s) for s in config.stage_sizes])
        all_D.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        fused = device == "cuda"
        adam_G = torch.optim.Adam(glam.parameters(), 2e-4, (0.5, 0.999), fused=fused)
        adam_D = torch.optim.Adam(all_D.parameters(), 2e-4, (0.5, 0.999), fused=fused)

        def step() -> None:
            with use(implementation):
                with torch.autocast(device, BF16):
                    fakes = glam(*given).images
                    losses = [
                        discriminator_loss(
                            D_i.judge(D_i(real), given[-1]),
                            D_i.judge(D_i(fake.detach()), given[-1]),
                        )
                        for D_i, real, fake in zip(all_D, reals, fakes, strict=True)
                    ]
                adam_D.zero_grad()
                torch.stack(losses).sum().backward()
                adam_D.step()
                all_D.requires_grad_(False)
                with torch.autocast(device, BF16):
                    losses = [
                        generator_loss(D_i.judge(D_i(fake), given[-1]), "paper")
                        for D_i, fake in zip(all_D, fakes, strict=True)
                    ]
                adam_G.zero_grad()
                torch.stack(losses).sum().backward()
                adam_G.step()
                all_D.requires_grad_(True)

        return step

    yield Case(
        f"training step of {sizes.recipe} without frozen networks, batch {batch}",
        stepping("triton"),
        stepping("reference"),
        compiles=True,
        images=batch,
    )


def _generator(device: str, sizes: Sizes) -> Iterator[Case]:
    config = find_recipe(sizes.recipe).config  # type: ignore[arg-type]
    vocabulary = Vocabulary([END, *(f"w{i}" for i in range(5000))])
    model = MirrorGAN(config, vocabulary).eval().to(device)
    fused = fuse(model, BF16)
    narrow = model.glam.to(BF16, memory_format=torch.channels_last)  # type: ignore[call-overload]
    for batch in sizes.batches:
        tokens = torch.randint(1, 5000, (batch, config.caption_length), device=device)
        lengths = torch.full((batch,), config.caption_length, device=device)
        noise = torch.randn(batch, config.noise_size, device=device)
        condition_noise = torch.randn(batch, config.condition_size, device=device)

        def ours(
            given: tuple[Tensor, ...] = (tokens, lengths, noise, condition_noise),
        ) -> Tensor:
            return fused.render(*given)

        @torch.no_grad()
        def eager(
            given: tuple[Tensor, ...] = (tokens, lengths, noise, condition_noise),
        ) -> Tensor:
            with use("reference"):
                words, sentence = model.stem(given[0], given[1])
                mask = torch.ones(words.shape[:2], dtype=torch.bool, device=device)
                inputs = (given[2].to(BF16), given[3].to(BF16), words.to(BF16), mask)
                return _levels(narrow(*inputs, sentence.to(BF16)).images[-1])

        yield Case(
            f"tokens to gray levels, {sizes.recipe}, batch {batch}",
            ours,
            eager,
            compiles=batch == sizes.batch,
            images=batch,
        )
