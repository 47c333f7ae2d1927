import torch

from diffdeid.geometry.sharpness import _blurred, _detail, sharpen, soften

SIZE = 64


def textured(seed: int, count: int = 1) -> torch.Tensor:
    """Pictures with a given amount of detail, in [-1, 1]."""
    noise = torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))
    return (0.3 * _blurred(noise, 0.6)).clamp(-1, 1)


def test_a_face_gets_no_more_detail_than_its_source():
    depths = torch.full((1, 1, SIZE, SIZE), 20.0)
    inside = torch.ones_like(depths)
    for blur in (0.4, 0.7, 1.0):
        source = _blurred(textured(0), blur)
        softened = soften(textured(1), source, depths)
        ratio = (_detail(softened, inside) / _detail(source, inside)).item()
        assert 0.6 < ratio < 1.1, blur
    assert _detail(soften(textured(1), torch.zeros_like(source), depths), inside) < 0.3 * _detail(textured(1), inside)


def test_a_face_with_less_detail_stays_as_it_is():
    depths, faces = torch.full((2, 1, SIZE, SIZE), 20.0), textured(1, 2)
    sources = torch.cat([2 * textured(0), _blurred(textured(0), 2)])
    softened = soften(faces, sources, depths)
    assert torch.equal(softened[0], faces[0]) and not torch.equal(softened[1], faces[1])


def test_faces_do_not_depend_on_their_batch():
    depths, faces = torch.full((3, 1, SIZE, SIZE), 20.0), textured(1, 3)
    sources = torch.cat([_blurred(textured(2), blur) for blur in (0.3, 0.8, 1.5)])
    alone = [soften(faces[row, None], sources[row, None], depths[:1]) for row in range(3)]
    torch.testing.assert_close(soften(faces, sources, depths), torch.cat(alone))


def test_where_nothing_is_erased_nothing_happens():
    faces = textured(1)
    assert torch.equal(soften(faces, textured(2), torch.full((1, 1, SIZE, SIZE), -5.0)), faces)


def test_sharpening_strengthens_detail_and_leaves_the_rest():
    face, everywhere = _blurred(textured(1), 3) + 0.05 * textured(2), torch.ones(1, 1, SIZE, SIZE)
    deep, edge = torch.full((1, 1, SIZE, SIZE), 20.0), torch.zeros(1, 1, SIZE, SIZE)
    assert _detail(sharpen(face, deep), everywhere) > 1.05 * _detail(face, everywhere)
    assert torch.equal(sharpen(face, edge), face)  # no halos where it meets the picture
    smooth = torch.linspace(-0.9, 0.9, SIZE).expand(1, 3, SIZE, SIZE)
    torch.testing.assert_close(sharpen(smooth, deep)[..., 4:-4], smooth[..., 4:-4], atol=1e-5, rtol=0)
    assert sharpen(2 * textured(1), deep).abs().max() <= 1


def test_a_finer_band_sees_finer_detail():
    """The source has stripes of 8 pixels, the face fainter ones of 2: only the finer band sees that these are too sharp."""
    size, columns = 4 * SIZE, torch.arange(4 * SIZE)
    depths = torch.full((1, 1, size, size), 80.0)
    source = (0.3 * torch.sin(columns * torch.pi / 4)).expand(1, 3, size, size)
    face = (0.06 * (-1.0) ** columns).expand(1, 3, size, size)
    assert torch.equal(soften(face, source, depths), face)
    assert soften(face, source, depths, band=0.5).abs().mean() < 0.04
