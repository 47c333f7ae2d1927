from dataclasses import fields

import numpy as np
import pytest
import torch

from diffdeid.geometry.align import square_matrix
from diffdeid.structures import FaceCrop, MorphableCoefficients


def test_coefficients_survive_packing():
    packed = torch.randn(3, 261)
    coefficients = MorphableCoefficients.unpack(packed)
    assert torch.equal(coefficients.pack(), packed)
    again = MorphableCoefficients.unpack(coefficients.pack())
    assert all(torch.equal(getattr(again, field.name), getattr(coefficients, field.name)) for field in fields(again))


def test_coefficients_have_the_documented_order_and_sizes():
    coefficients = MorphableCoefficients.unpack(torch.arange(261.0)[None])
    starts = {field.name: int(getattr(coefficients, field.name)[0, 0]) for field in fields(coefficients)}
    assert starts == dict(shape=0, expression=80, albedo=144, illumination=224, pose=251, gaze=257)


@pytest.mark.parametrize("size", [0, 260, 262])
def test_another_number_of_coefficients_is_refused(size):
    with pytest.raises(ValueError, match=f"261.*{size}"):
        MorphableCoefficients.unpack(torch.zeros(2, size))


def crop() -> FaceCrop:
    """100 pixels around (50, 40), turned so that down in the picture is right in the crop."""
    return FaceCrop(np.zeros((200, 200, 3), np.uint8), square_matrix((50, 40), (0, 1), 100, 200))


def test_points_move_into_the_crop():
    np.testing.assert_allclose(crop().to_crop(np.array([[50.0, 40], [50, 50], [40, 40]])), [[100, 100], [120, 100], [100, 120]])


def test_depth_is_scaled_like_the_picture():
    points = np.random.default_rng(0).normal(size=(5, 3))
    mapped = crop().to_crop(points)
    np.testing.assert_allclose(mapped[:, :2], crop().to_crop(points[:, :2]))
    np.testing.assert_allclose(mapped[:, 2], 2 * points[:, 2])


def test_points_of_any_shape_move_into_the_crop():
    points = np.random.default_rng(0).normal(size=(2, 5, 2))
    np.testing.assert_allclose(crop().to_crop(points)[1, 3], crop().to_crop(points[1, 3]))
