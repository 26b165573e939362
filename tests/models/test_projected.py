"""The projected discriminator: what it sees, and its logits against their formulas."""

import torch
from torch import Tensor
from torch.nn import functional

from mirrorgan_fast.models.config import AttnGANConfig
from mirrorgan_fast.models.projected import ProjectedDiscriminator

CONFIG = AttnGANConfig(image_size=32, stages=1, embedding_size=16, discriminator="projected")


def discriminator(seed: int = 0) -> ProjectedDiscriminator:
    torch.manual_seed(seed)
    return ProjectedDiscriminator(CONFIG)


def test_maps_are_those_of_the_eyes_mixed() -> None:
    """Against the mixing written out, from the coarsest map to the finest."""
    D = discriminator().double()
    D.eyes.double()
    images = torch.rand(2, 3, 128, 128, dtype=torch.float64) * 2 - 1
    wanted: list[Tensor] = []
    for i in (3, 2, 1, 0):
        x = functional.conv2d(D.eyes.maps(images)[i], D.across[i].weight, D.across[i].bias)
        if wanted:
            x = x + functional.interpolate(wanted[-1], scale_factor=2, mode="bilinear")
        wanted.append(
            functional.conv2d(x, D.upward[i].weight, D.upward[i].bias, padding=1) / 2**0.5
        )
    for ours, theirs, size in zip(D.look(images), wanted[::-1], (32, 16, 8, 4), strict=True):
        assert ours.shape == (2, 64, size, size)
        torch.testing.assert_close(ours, theirs)


def test_what_it_sees_is_fixed_and_gradients_reach_the_image() -> None:
    D, again, other = discriminator(), discriminator(), discriminator(1)
    learned = {name for name, parameter in D.named_parameters() if parameter.requires_grad}
    assert learned == {name for name in dict(D.named_parameters()) if name.startswith("heads.")}
    assert not [name for name in D.state_dict() if name.startswith("eyes.")]
    kept = [name for name in D.state_dict() if name.startswith(("across.", "upward."))]
    assert len(kept) == 16
    image = torch.rand(1, 3, 48, 48).requires_grad_()
    maps = D.look(image)
    for ours, same, else_ in zip(maps, again.look(image), other.look(image), strict=True):
        assert torch.equal(ours, same)
        assert not torch.allclose(ours, else_)
    D.unconditional(D(maps)).sum().backward()
    assert image.grad is not None
    assert float(image.grad.abs().max()) > 0


def test_logits_are_those_of_the_image_and_of_its_product_with_the_sentence() -> None:
    D = discriminator().eval()
    with torch.no_grad():
        judged = D(D.look(torch.rand(3, 3, 64, 64) * 2 - 1))
        sentence = torch.randn(3, 16)
        logits = D.judge(judged, sentence)
        assert logits.unconditional.shape == logits.conditional.shape == (3, 64)
        direction = sentence / sentence.norm(dim=1, keepdim=True) * 4
        for i, (head, features) in enumerate(zip(D.heads, judged.maps, strict=True)):
            own = slice(16 * i, 16 * i + 16)
            alone = torch.einsum("nchw,c->nhw", features, head.logit.weight[0, :, 0, 0])
            alone = alone + head.logit.bias
            torch.testing.assert_close(logits.unconditional[:, own], alone.flatten(1))
            told = torch.einsum("nchw,cd,nd->nhw", features, head.projection.weight, direction)
            with_sentence = (alone + told / 128**0.5).flatten(1)
            torch.testing.assert_close(logits.conditional[:, own], with_sentence)
        torch.testing.assert_close(D.conditional(judged, 0.01 * sentence), logits.conditional)


def test_convolutions_of_the_heads_have_spectral_norm_1() -> None:
    D = discriminator().train()
    for _ in range(30):  # each call improves the estimate of the norm
        D(D.look(torch.rand(2, 3, 32, 32)))
    for head in D.heads:
        for layers in head.features:
            weight = layers[0].weight.detach().flatten(1)
            assert abs(float(torch.linalg.matrix_norm(weight, ord=2)) - 1) < 0.05
