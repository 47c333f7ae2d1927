import torch

from diffdeid.geometry.sharpness import GAINS, SHARPENED, _blurred, _detail, match_sharpness

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
        softened = match_sharpness(textured(1), source, depths)
        ratio = (_detail(softened, inside) / _detail(source, inside)).item()
        assert 0.6 < ratio < 1.1, blur
    assert _detail(match_sharpness(textured(1), torch.zeros_like(source), depths), inside) < 0.3 * _detail(textured(1), inside)


def test_a_face_with_about_as_much_detail_stays_as_it_is():
    depths, faces = torch.full((2, 1, SIZE, SIZE), 20.0), textured(1, 2)
    sources = torch.cat([1.1 * faces[:1], _blurred(textured(0), 2)])
    softened = match_sharpness(faces, sources, depths)
    assert torch.equal(softened[0], faces[0]) and not torch.equal(softened[1], faces[1])


def test_a_face_with_less_detail_is_sharpened_by_its_own_detail_and_not_by_more_than_the_most():
    depths, inside = torch.full((1, 1, SIZE, SIZE), 20.0), torch.ones(1, 1, SIZE, SIZE)
    face = 0.4 * textured(1)
    for strength, expected in ((0.6, SHARPENED * 0.6 / 0.4), (0.7, SHARPENED * 0.7 / 0.4), (4, 1 + GAINS[0])):
        sharpened = match_sharpness(face, strength * textured(1), depths, band=6)
        gain = (_detail(sharpened, inside, 6) / _detail(face, inside, 6)).item()
        assert gain <= 1.02 * expected and (strength == 4 or gain > 0.95 * expected), strength
        assert sharpened.abs().max() <= 1
        correlation = torch.corrcoef(torch.stack([sharpened.flatten(), face.flatten()]))[0, 1]
        assert correlation > 0.95  # nothing of the source is in it, and nothing new


def test_the_source_tells_only_how_much_detail_there_is():
    depths, face = torch.full((1, 1, SIZE, SIZE), 20.0), 0.4 * textured(1)
    source = 0.8 * textured(2)
    sharpened, mirrored = (match_sharpness(face, one, depths) for one in (source, source.flip(3)))
    torch.testing.assert_close(sharpened, mirrored)
    assert not torch.allclose(sharpened, face)


def test_faces_do_not_depend_on_their_batch():
    depths, faces = torch.full((3, 1, SIZE, SIZE), 20.0), textured(1, 3)
    sources = torch.cat([_blurred(textured(2), blur) for blur in (0.3, 0.8, 1.5)])
    alone = [match_sharpness(faces[row, None], sources[row, None], depths[:1]) for row in range(3)]
    torch.testing.assert_close(match_sharpness(faces, sources, depths), torch.cat(alone))


def test_where_nothing_is_erased_nothing_happens():
    faces = textured(1)
    assert torch.equal(match_sharpness(faces, textured(2), torch.full((1, 1, SIZE, SIZE), -5.0)), faces)
