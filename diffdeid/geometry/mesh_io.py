"""Meshes as files: Wavefront OBJ (text, with the vertex colours that most viewers read) and Stanford PLY (binary)."""

from __future__ import annotations

import numpy as np

PLY_VERTEX = np.dtype([("position", "<f4", 3), ("colour", "u1", 3)])
PLY_TRIANGLE = np.dtype([("count", "u1"), ("corners", "<i4", 3)])


def write_obj(vertices: np.ndarray, triangles: np.ndarray, colours: np.ndarray) -> bytes:
    """The content of an .obj file; its indices count from 1.

    Args:
        vertices: `(V, 3)`, any unit.
        triangles: `(T, 3)` vertex indices, counter-clockwise from outside.
        colours: `(V, 3)`, clipped to 0…1.

    >>> print(write_obj(np.eye(3), np.array([[0, 1, 2]]), np.ones((3, 3))).decode().splitlines()[0])
    v 1.00000 0.00000 0.00000 1.0000 1.0000 1.0000
    """
    corners = np.concatenate([vertices, np.clip(colours, 0, 1)], axis=1)
    lines = ["v {:.5f} {:.5f} {:.5f} {:.4f} {:.4f} {:.4f}".format(*corner) for corner in corners]
    lines += ["f {} {} {}".format(*triangle) for triangle in triangles + 1]
    return "".join(line + "\n" for line in lines).encode()


def write_ply(vertices: np.ndarray, triangles: np.ndarray, colours: np.ndarray) -> bytes:
    """The content of a binary little-endian .ply file with 8-bit colours; arguments as for `write_obj`."""
    points = np.empty(len(vertices), PLY_VERTEX)
    points["position"], points["colour"] = vertices, np.round(np.clip(colours, 0, 1) * 255)
    polygons = np.empty(len(triangles), PLY_TRIANGLE)
    polygons["count"], polygons["corners"] = 3, triangles
    header = [
        "ply",
        "format binary_little_endian 1.0",
        f"element vertex {len(points)}",
        *(f"property float {axis}" for axis in "xyz"),
        *(f"property uchar {channel}" for channel in ("red", "green", "blue")),
        f"element face {len(polygons)}",
        "property list uchar int vertex_indices",
        "end_header",
    ]
    return ("\n".join(header) + "\n").encode() + points.tobytes() + polygons.tobytes()
