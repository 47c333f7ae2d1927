import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffdeid.geometry.mesh_io import write_obj, write_ply


def read_obj(content: bytes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    lines = [line.split() for line in content.decode().splitlines()]
    points = np.array([line[1:] for line in lines if line[0] == "v"], float).reshape(-1, 6)
    triangles = np.array([line[1:] for line in lines if line[0] == "f"], int).reshape(-1, 3) - 1
    return points[:, :3], triangles, points[:, 3:]


def read_ply(content: bytes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Reads what the header announces, without `mesh_io`'s types."""
    header, body = content.split(b"end_header\n", 1)
    lines = [line.split() for line in header.decode().splitlines()]
    assert lines[:2] == [["ply"], ["format", "binary_little_endian", "1.0"]]
    counts = {line[1]: int(line[2]) for line in lines if line[0] == "element"}
    properties = [tuple(line[1:]) for line in lines if line[0] == "property"]
    assert properties[:3] == [("float", axis) for axis in "xyz"]
    assert properties[3:6] == [("uchar", channel) for channel in ("red", "green", "blue")]
    assert properties[6:] == [("list", "uchar", "int", "vertex_indices")]
    assert len(body) == 15 * counts["vertex"] + 13 * counts["face"]
    points = np.frombuffer(body[: 15 * counts["vertex"]], np.uint8).reshape(-1, 15)
    polygons = np.frombuffer(body[15 * counts["vertex"] :], np.uint8).reshape(-1, 13)
    assert (polygons[:, 0] == 3).all()
    return points[:, :12].copy().view("<f4"), polygons[:, 1:].copy().view("<i4"), points[:, 12:] / 255


@pytest.mark.parametrize(("write", "read", "tolerance"), [(write_obj, read_obj, 1e-4), (write_ply, read_ply, 1 / 509)])
@given(seed=st.integers(0, 1000), vertices=st.integers(0, 40), triangles=st.integers(0, 40))
@settings(max_examples=20, deadline=None)
def test_a_mesh_survives_the_round_trip(write, read, tolerance, seed, vertices, triangles):
    rng = np.random.default_rng(seed)
    points, colours = rng.normal(size=(vertices, 3)), rng.uniform(size=(vertices, 3))
    corners = rng.integers(0, max(vertices, 1), (triangles, 3))
    again_points, again_corners, again_colours = read(write(points, corners, colours))
    np.testing.assert_allclose(again_points, points, atol=1e-5, rtol=1e-6)
    np.testing.assert_array_equal(again_corners, corners)
    np.testing.assert_allclose(again_colours, colours, atol=tolerance)


@pytest.mark.parametrize(("write", "read"), [(write_obj, read_obj), (write_ply, read_ply)])
def test_colours_out_of_range_are_clipped(write, read):
    colours = np.array([[-1.0, 0.5, 2.0]] * 3)
    assert read(write(np.eye(3), np.array([[0, 1, 2]]), colours))[2][0] == pytest.approx([0, 0.5, 1], abs=0.01)
    assert colours[0, 2] == 2
