import torch

from diffdeid.training.discriminator import PatchDiscriminator, adversarial_loss, discriminator_loss


def features(level: float, count: int = 4) -> list[torch.Tensor]:
    """Maps of two depths; the first channel says how real they are."""
    generator = torch.Generator().manual_seed(int(100 * level))
    maps = [torch.rand(count, width, size, size, generator=generator) for width, size in ((6, 8), (12, 4))]
    for one in maps:
        one[:, 0] += level
    return maps


def test_it_learns_to_tell_real_from_generated():
    torch.manual_seed(0)
    discriminator, weight = PatchDiscriminator((6, 12), channels=8), torch.ones(4, 1, 16, 16)
    optimizer = torch.optim.Adam(discriminator.parameters(), lr=1e-2)
    for _ in range(60):
        loss = discriminator_loss(discriminator, features(2), features(0), weight)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 1
    discriminator.eval()
    with torch.no_grad():  # other maps of both kinds
        assert adversarial_loss(discriminator(features(2.1)), weight) < adversarial_loss(discriminator(features(0.1)), weight)


def test_places_without_weight_do_not_count():
    torch.manual_seed(0)
    discriminator, weight = PatchDiscriminator((6, 12), channels=8).eval(), torch.zeros(4, 1, 16, 16)
    weight[..., :4, :] = 1
    before, after = features(0), features(0)
    for one in after:
        one[..., -one.shape[-2] // 4 :, :] += 7  # out of the sight of the convolutions
    discriminator(before)
    judged = [adversarial_loss(discriminator(maps), weight) for maps in (before, after)]
    torch.testing.assert_close(*judged)


def test_the_scales_of_features_are_settled_once():
    discriminator = PatchDiscriminator((6, 12), channels=8)
    discriminator(features(1))
    settled = discriminator.scales.clone()
    discriminator([100 * one for one in features(1)])
    torch.testing.assert_close(discriminator.scales, settled)
