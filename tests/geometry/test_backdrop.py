"""The background is continued up to the outline of a head."""

import pytest
import torch

from diffdeid.geometry.backdrop import continue_backdrop, spread

SIZE = 64


@pytest.fixture
def scene():
    """A generated crop of noise, a photo that gets lighter to the right, an erased square, and a head in its left half."""
    generator = torch.Generator().manual_seed(0)
    faces = torch.rand(1, 3, SIZE, SIZE, generator=generator) * 2 - 1
    sources = torch.linspace(-1, 1, SIZE).expand(1, 3, SIZE, SIZE).clone()
    depths = torch.full((1, 1, SIZE, SIZE), -1.0)
    depths[..., 16:48, 16:48] = 1
    heads = torch.zeros(1, 1, SIZE, SIZE)
    heads[..., 10:54, 10:32] = 1
    return faces, sources, depths, heads


def continued(faces, sources, depths, heads, aside: bool = True) -> torch.Tensor:
    return continue_backdrop(faces, sources, depths, heads, torch.tensor([aside]))


def rough(sources: torch.Tensor) -> torch.Tensor:
    """The same picture as seen through a chequered cloth."""
    rows, columns = torch.arange(SIZE)[:, None] // 2, torch.arange(SIZE) // 2
    return (sources + 0.5 * ((rows + columns) % 2 * 2 - 1)).clamp(-1, 1)


@pytest.mark.parametrize(("aside", "contrast"), [(True, 1.0), (False, 0.5)])
def test_the_picture_goes_on_beyond_the_head_and_the_head_stays(scene, aside, contrast):
    faces, sources, depths, heads = scene
    sources = contrast * sources  # frontal heads ask for a plainer background
    result = continued(faces, sources, depths, heads, aside)
    assert (result[..., 20:44, 38:46] - sources[..., 20:44, 38:46]).abs().max() < 0.35
    assert torch.equal(result[..., :30], faces[..., :30])
    assert torch.equal(result * (depths <= 0), faces * (depths <= 0))


def test_beside_a_head_that_looks_at_the_camera_only_a_plain_background_goes_on(scene):
    """Hair and clothes, which are not plain, are painted better than continued; a head in profile has none there."""
    faces, sources, depths, heads = scene
    beyond = (..., slice(20, 44), slice(38, 46))
    frontal, aside = (continued(faces, rough(sources), depths, heads, aside) for aside in (False, True))
    assert (frontal - faces)[beyond].abs().max() < 1e-3
    assert (aside - faces)[beyond].abs().mean() > 0.3


@pytest.mark.parametrize(("aside", "reach"), [(True, 3), (False, 1)])
def test_a_head_ends_near_its_render(aside, reach):
    """A frontal one hardly reaches beyond it, which would leave a rim of what was painted there."""
    faces, sources, depths, heads = torch.ones(1, 3, 256, 256), torch.zeros(1, 3, 256, 256), *torch.zeros(2, 1, 1, 256, 256)
    depths[..., 40:216], depths[..., :40], depths[..., 216:] = 1, -1, -1
    heads[..., :128] = 1
    row = continued(faces, sources, depths, heads, aside)[0, 0, 128]
    assert (row[: 128 + reach - 3] == 1).all() and (row[128 + reach + 3 : 210] == 0).all()
    assert 0.4 < row[127 + reach] < 0.9 and row[128 + reach] < row[127 + reach]


@pytest.mark.parametrize("aside", [True, False])
def test_nothing_of_what_is_erased_is_read(scene, aside):
    faces, sources, depths, heads = scene
    other = torch.where(depths > 0, -sources, sources)
    assert torch.equal(continued(*scene, aside), continued(faces, other, depths, heads, aside))


@pytest.mark.parametrize("aside", [True, False])
def test_nothing_of_the_head_is_spread_over_the_backdrop(scene, aside):
    faces, sources, depths, heads = scene
    coloured = torch.where(heads > 0, torch.tensor(1.0), sources)
    assert torch.equal(continued(*scene, aside), continued(faces, coloured, depths, heads, aside))


@pytest.mark.parametrize("aside", [True, False])
def test_a_crop_that_shows_nothing_else_than_the_head_stays(scene, aside):
    faces, sources, depths, heads = scene
    assert torch.equal(continued(faces, sources, depths, torch.ones_like(heads), aside), faces)
    assert torch.equal(continued(faces, sources, torch.ones_like(depths), heads, aside), faces)


@pytest.mark.parametrize("size", [1, 2, 7, 64])
def test_known_pixels_stay_and_others_take_colours_between_them(size):
    generator = torch.Generator().manual_seed(size)
    pictures, known = torch.rand(2, 3, size, size, generator=generator), torch.rand(2, 1, size, size, generator=generator) < 0.3
    known[..., 0, 0] = True
    filled = spread(pictures * known, known.float())
    if size > 2:
        torch.testing.assert_close(filled * known, pictures * known)
    assert filled.min() >= (pictures * known + ~known).min() - 1e-5
    assert filled.max() <= (pictures * known).max() + 1e-5


def test_one_known_colour_is_everywhere():
    known = torch.zeros(1, 1, 33, 20)
    known[..., 5, 7] = 1
    torch.testing.assert_close(spread(0.6 * known.expand(-1, 3, -1, -1), known), torch.full((1, 3, 33, 20), 0.6))
