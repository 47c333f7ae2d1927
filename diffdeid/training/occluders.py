"""Drawing what may lie in front of a face, for training the face parser: hands, masks, things, cloth, caps, hair, glasses.

Every function that draws takes a `Scene`, an aligned crop, and gives a `Layer` to paste over it; its randomness comes from the
generator that it is given. Crops are float32 RGB `(S, S, 3)` in [0, 1]; points are in their pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from diffdeid.geometry.landmarks import LEFT_EYE, RIGHT_EYE
from diffdeid.geometry.mask import SHIFT, face_height, fixed_point
from diffdeid.models.face_parser import FACE, FRONT, GLASSES

CHEEKS = (205, 425, 50, 280, 4, 151, 9, 118, 347)
JAW = (127, 234, 93, 132, 58, 172, 136, 150, 149, 176, 148, 152, 377, 400, 378, 379, 365, 397, 288, 361, 323, 454, 356)
HANDS_SKINS = ((0.95, 0.78, 0.68), (0.85, 0.66, 0.54), (0.72, 0.52, 0.40), (0.52, 0.35, 0.25), (0.33, 0.21, 0.15))
MASK_COLOURS = ((0.55, 0.75, 0.85), (0.4, 0.6, 0.8), (0.95, 0.95, 0.95), (0.1, 0.1, 0.11), (0.85, 0.6, 0.65), (0.6, 0.8, 0.7))
COVERED = 0.5  # opacity from which on a pixel belongs to the layer


@dataclass
class Scene:
    """A crop over which things are drawn.

    Attributes:
        image: `(S, S, 3)`.
        classes: `(S, S)` uint8, classes of the face parser.
        landmarks: `(468, 2)`.
    """

    image: np.ndarray
    classes: np.ndarray
    landmarks: np.ndarray

    @property
    def size(self) -> int:
        return len(self.image)

    @property
    def face_height(self) -> float:
        return face_height(self.landmarks)

    def skin_colour(self) -> np.ndarray:
        """Median colour `(3,)` of the skin around cheeks, nose and forehead."""
        x, y = np.clip(self.landmarks[list(CHEEKS)], 3, self.size - 4).astype(int).T
        patches = np.concatenate([self.image[y + dy, x + dx] for dx in (-2, 0, 2) for dy in (-2, 0, 2)])
        return np.median(patches, axis=0)

    def hair_colour(self, rng: np.random.Generator) -> np.ndarray:
        """A colour `(3,)` of things in front of the face, mostly hair; brown or grey if there are none."""
        rows, columns = (self.classes[::4, ::4] == FRONT).nonzero()
        if len(rows) < 20:
            return rng.uniform(0.02, 0.6) * np.array([1, rng.uniform(0.7, 1), rng.uniform(0.5, 1)])
        pick = rng.integers(0, len(rows), 9)
        return np.median(self.image[4 * rows[pick], 4 * columns[pick]], axis=0)


@dataclass
class Layer:
    """Something to paste.

    Attributes:
        colour: `(S, S, 3)` or `(3,)`.
        alpha: `(S, S)` opacity in [0, 1].
        region: `(S, S)` bool, the pixels that belong to it.
        kind: `FRONT` or `GLASSES`.
        shadow: whether it casts a shadow on things behind it.
    """

    colour: np.ndarray
    alpha: np.ndarray
    region: np.ndarray
    kind: int = FRONT
    shadow: bool = True


def paste(scene: Scene, layer: Layer, rng: np.random.Generator) -> None:
    """Put a layer in front of the scene, with a soft contact shadow at times."""
    alpha = layer.alpha[..., None]
    if layer.shadow and rng.random() < 0.6:
        reach = scene.size / 256 * rng.uniform(1.5, 10)
        shift = np.float32([[1, 0, rng.normal(0, reach)], [0, 1, rng.normal(0.5 * reach, reach)]])
        cast = _blurred(cv2.warpAffine(layer.alpha, shift, layer.alpha.shape[::-1]), reach)[..., None]
        scene.image *= 1 - rng.uniform(0.1, 0.6) * cast
    scene.image *= 1 - alpha
    scene.image += alpha * layer.colour
    scene.classes[layer.region] = layer.kind


# Hands


def draw_hand(scene: Scene, hands: np.ndarray, rng: np.random.Generator) -> Layer:
    """A hand of `hand_pictures.py`, mostly in the colour of the skin, somewhere over the face; its arm may have a sleeve."""
    size = scene.size
    picture = hands[rng.integers(len(hands))]
    side = len(picture)
    length = 0.48 * side  # of a hand in its picture
    scale = scene.face_height * rng.uniform(0.65, 1.45) / length
    flip = int(rng.choice([-1, 1]))
    angle = rng.normal(0, 1.0)  # 0 has the arm lead down
    cos, sin = math.cos(angle) * scale, math.sin(angle) * scale
    linear = np.array([[cos * flip, -sin], [sin * flip, cos]])
    held = np.array([0.5, 0.13 + 0.45 * rng.beta(0.8, 1.3)]) * side  # from the finger tips to the wrist
    target = _somewhere_on_the_face(scene, rng)
    matrix = np.column_stack([linear, target - linear @ held])
    channels = cv2.warpAffine(picture, matrix, (size, size), flags=cv2.INTER_LINEAR).astype(np.float32) / 255
    x, y, alpha, cavity, arm, nail, knuckle = np.moveaxis(channels, 2, 0)

    x, y = 2 * x - 1, 2 * y - 1
    x, y = (cos * flip * x + sin * y) / scale, (-sin * flip * x + cos * y) / scale
    z = np.sqrt(np.clip(1 - x * x - y * y, 0, 1))
    skin = _hand_colour(scene, rng).astype(np.float32)
    shade = _lit(x, y, z, rng) * (1 - rng.uniform(0.3, 0.9) * cavity)
    red = 1 - np.float32([0.0, 0.16, 0.16]) * rng.uniform(0, 1)
    mottle = rng.uniform(0, 0.12)
    shade *= 1 + mottle * _noise(size, rng.uniform(6, 30), rng) + rng.uniform(0, 0.07) * _noise(size, rng.uniform(0.8, 3), rng)
    colour = skin * (1 + knuckle[..., None] * (red - 1))
    if rng.random() < 0.7:  # bare nails are lighter, others painted
        paint = skin * np.float32([1.08, 1.05, 1.1]) if rng.random() < 0.7 else rng.random(3, np.float32)
        colour = colour + (0.8 * nail[..., None]) * (paint - colour)
    if rng.random() < 0.5:
        reached = rng.uniform(0.1, 0.95)
        sleeve = np.clip((arm - reached) * 12, 0, 1)[..., None]
        cloth = _fabric(size, rng)
        colour = colour + sleeve * (cloth - colour)
    colour = colour * shade[..., None]
    if rng.random() < 0.35:
        shine = np.clip(z * 0.6 - 0.5 * y + 0.3 * rng.normal() * x, 0, 1) ** 12
        colour = colour + rng.uniform(0.05, 0.3) * shine[..., None]
    return Layer(colour.clip(0, 1), alpha, alpha > COVERED)


def _hand_colour(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    skin = scene.skin_colour()
    if rng.random() < 0.2:
        tone = np.array(HANDS_SKINS[rng.integers(len(HANDS_SKINS))])
        skin = tone * rng.uniform(0.6, 1.15)
    if rng.random() < 0.06:
        return rng.random(3) * 0.9 + 0.05  # a glove
    return (skin * rng.uniform(0.7, 1.25) * (1 + rng.normal(0, 0.05, 3))).clip(0.02, 1)


def _lit(x: np.ndarray, y: np.ndarray, z: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Shading `(S, S)`, about 1, of normals (x right, y up, z to the viewer) under one or two lights and ambient light."""
    shade = rng.uniform(0.35, 0.8) + rng.uniform(0.1, 0.4) * z
    for _ in range(rng.integers(1, 3)):
        light = np.array([rng.normal(), rng.normal(0.4), abs(rng.normal(0.6))])
        light = [float(part) for part in light / np.linalg.norm(light)]
        shade = shade + rng.uniform(0.2, 0.6) * np.clip(light[0] * x + light[1] * y + light[2] * z, 0, 1)
    return shade


# Masks


def draw_mask(scene: Scene, rng: np.random.Generator) -> Layer:
    """A medical mask or one of cloth, over nose, mouth and chin, or pulled down; with its ear loops."""
    size, points = scene.size, scene.landmarks
    down = points[152] - points[6]
    centre = points[1]
    jaw = points[list(JAW)]
    lower = jaw[(jaw - centre) @ down > rng.uniform(-0.15, 0.1) * (down @ down)]
    lower = centre + (lower - centre) * rng.uniform(0.86, 1.1) + down * rng.uniform(-0.02, 0.1)
    height = rng.choice([rng.uniform(0.15, 0.4), rng.uniform(0.45, 0.75)], p=[0.8, 0.2])
    bridge = points[6] + height * down
    left, right = lower[0], lower[-1]
    sag = rng.uniform(0, 0.12) * down
    top = [right + 0.33 * (bridge - right) + sag, bridge, left + 0.33 * (bridge - left) + sag]
    outline = _smooth(np.concatenate([lower, np.stack(top)]), 96)
    alpha = _filled(outline, size)

    across = ((right - left) / max(np.linalg.norm(right - left), 1)).astype(np.float32)
    grid = _grid(size) - centre.astype(np.float32)
    width = max(float(np.linalg.norm(right - left)) / 2, 1)
    u = grid @ across / width
    v = grid @ (down / (down @ down)).astype(np.float32)
    base = np.float32(MASK_COLOURS[rng.integers(len(MASK_COLOURS))]) * rng.uniform(0.75, 1.05)
    colour = _fabric(size, rng) if rng.random() < 0.3 else base * (1 + 0.03 * rng.standard_normal(3, np.float32))
    light = rng.normal(0, 0.3)
    shade = rng.uniform(0.75, 1.1) * (1 - rng.uniform(0.2, 0.5) * u**2 + light * u)
    if rng.random() < 0.6:  # pleats
        for middle in np.linspace(-0.05, 0.55, rng.integers(2, 5)).tolist():
            shade = shade - rng.uniform(0.1, 0.3) * np.exp(-(((v - middle - 0.1 * u**2) / rng.uniform(0.012, 0.03)) ** 2))
    else:  # a fold in the middle
        shade = shade + rng.uniform(-0.2, 0.2) * np.sign(u) * np.exp(-np.abs(u) * rng.uniform(1, 4))
    shade = shade + 0.04 * _noise(size, rng.uniform(1, 8), rng)
    if rng.random() < 0.5:  # a wire along its upper edge
        shade = shade * (1 - 0.2 * (alpha - _filled(outline + 0.04 * down, size)).clip(0, 1))
    loops = np.zeros((size, size), np.float32)
    if rng.random() < 0.8:
        thickness = max(1, round(size / 256 * rng.uniform(1, 3)))
        for corner, ear in ((left, points[127]), (right, points[356])):
            outwards = (ear - centre) * rng.uniform(0.05, 0.2)
            for start in (corner, corner + 0.5 * down):
                line = _smooth(np.stack([start, start + outwards, ear + outwards]), 12)
                loops = np.maximum(loops, _stroke(line, size, thickness))
        loops *= alpha.max()
    colour = np.broadcast_to(colour, (size, size, 3)) * shade[..., None]
    return Layer(colour.clip(0, 1), np.maximum(alpha, loops), np.maximum(alpha, loops) > COVERED)


# Things


def draw_thing(scene: Scene, textures: Sequence[np.ndarray], rng: np.random.Generator) -> Layer:
    """Something held in front of the face or flying past it: cup, microphone, phone, card, spoon, stick, leaves, or a blob.

    Args:
        textures: `(h, w, 3)` uint8 pictures, from which surfaces of some things are cut.
    """
    size = scene.size
    scale = scene.face_height * rng.uniform(0.12, 0.6)
    angle = rng.uniform(-np.pi, np.pi) if rng.random() < 0.5 else rng.normal(0, 0.35)
    axes = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]) * scale
    centre = _somewhere_on_the_face(scene, rng)
    parts = _SILHOUETTES[rng.choice(list(_SILHOUETTES))](rng)
    u, v = np.moveaxis((_grid(size) - centre.astype(np.float32)) @ np.linalg.inv(axes).astype(np.float32), 2, 0)
    colour, alpha = np.zeros((size, size, 3), np.float32), np.zeros((size, size), np.float32)
    for part in parts:
        mask = _filled(part @ axes + centre, size)
        surface = _surface(scene, textures, u, v, rng)
        colour = colour + mask[..., None] * (surface - colour)
        alpha = np.maximum(alpha, mask)
    return Layer(colour.clip(0, 1), alpha, alpha > COVERED)


def _surface(scene: Scene, textures: Sequence[np.ndarray], u: np.ndarray, v: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    size = scene.size
    draw = rng.random()
    if draw < 0.3:
        colour = _cut(textures[rng.integers(len(textures))], size, rng)
    elif draw < 0.5:
        colour = _fabric(size, rng)
    else:
        colour = np.broadcast_to(_plain_colour(rng), (size, size, 3))
    round_ = rng.uniform(0, 0.7)
    shade = rng.uniform(0.7, 1.15) * (1 - round_ * np.clip(u, -1, 1) ** 2 + rng.normal(0, 0.25) * u + rng.normal(0, 0.15) * v)
    shade = shade + rng.uniform(0, 0.06) * _noise(size, rng.uniform(0.7, 12), rng)
    colour = colour * shade[..., None]
    if rng.random() < 0.3:
        colour = colour + rng.uniform(0.1, 0.6) * np.exp(-(((u - rng.uniform(-0.5, 0.5)) / 0.08) ** 2))[..., None]
    return colour


def _plain_colour(rng: np.random.Generator) -> np.ndarray:
    grey = rng.random()
    colour = grey + rng.uniform(0, 0.6) * (rng.random(3) - 0.5) * (rng.random() < 0.7)
    return colour.clip(0.01, 1).astype(np.float32)


def _ellipse(rng: np.random.Generator, centre=(0, 0), radii=(1, 1)) -> np.ndarray:
    angles = np.linspace(0, 2 * np.pi, 32, endpoint=False)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1) * radii + centre


def _box(left: float, top: float, right: float, bottom: float) -> np.ndarray:
    return np.array([[left, top], [right, top], [right, bottom], [left, bottom]], float)


def _cup(rng: np.random.Generator) -> list[np.ndarray]:
    narrow, tall = rng.uniform(0.6, 1), rng.uniform(0.9, 1.8)
    body = np.array([[-1, -tall], [1, -tall], [narrow, tall], [-narrow, tall]])
    return [body, _ellipse(rng, (0, tall), (narrow, 0.15)), _ellipse(rng, (0, -tall), (1, rng.uniform(0.1, 0.3)))]


def _microphone(rng: np.random.Generator) -> list[np.ndarray]:
    width = rng.uniform(0.25, 0.5)
    return [_box(-width, 0.5, width, 8), _ellipse(rng, (0, 0), (1, rng.uniform(0.9, 1.4)))]


def _phone(rng: np.random.Generator) -> list[np.ndarray]:
    tall = rng.uniform(1.3, 2.2)
    parts = [_smooth_box(1, tall, 0.15)]
    return parts + [_ellipse(rng, (-0.6, y * tall), (0.18, 0.18)) for y in (-0.85, -0.65, -0.45)[: rng.integers(0, 4)]]


def _smooth_box(half_width: float, half_height: float, corner: float) -> np.ndarray:
    angles = np.linspace(0, 2 * np.pi, 32, endpoint=False) + np.pi / 32
    unit = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return np.sign(unit) * (np.array([half_width, half_height]) - corner) + corner * unit


def _spoon(rng: np.random.Generator) -> list[np.ndarray]:
    return [_box(-0.12, 0, 0.12, 6), _ellipse(rng, (0, 0), (0.45, 0.65))]


def _card(rng: np.random.Generator) -> list[np.ndarray]:
    tall = rng.uniform(0.4, 1.6)
    parts = [_box(-1.2, -tall, 1.2, tall)]
    lines = np.linspace(-0.7, 0.6, rng.integers(0, 5)) * tall
    return parts + [_box(-0.9, y, rng.uniform(0, 0.9), y + 0.08) for y in lines]


def _leaves(rng: np.random.Generator) -> list[np.ndarray]:
    parts = []
    for _ in range(rng.integers(1, 6)):
        angle, length = rng.uniform(0, 2 * np.pi), rng.uniform(0.7, 1.6)
        leaf = _ellipse(rng, (0, length / 2), (rng.uniform(0.1, 0.45), length / 2))
        turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        parts.append(leaf @ turn)
    return parts


def _blob(rng: np.random.Generator) -> list[np.ndarray]:
    count = rng.integers(4, 10)
    angles = np.linspace(0, 2 * np.pi, count, endpoint=False) + rng.uniform(0, 0.4, count)
    radii = rng.uniform(0.5, 1.3, count)
    return [_smooth(np.stack([np.cos(angles), np.sin(angles)], axis=1) * radii[:, None], 64)]


def _stick(rng: np.random.Generator) -> list[np.ndarray]:
    width = rng.uniform(0.05, 0.25)
    return [_box(-width, -rng.uniform(0, 2), width, 8)]


_SILHOUETTES = {
    "cup": _cup,
    "microphone": _microphone,
    "phone": _phone,
    "spoon": _spoon,
    "card": _card,
    "leaves": _leaves,
    "blob": _blob,
    "stick": _stick,
}


# Cloth


def draw_cloth(scene: Scene, textures: Sequence[np.ndarray], rng: np.random.Generator) -> Layer:
    """A scarf over the lower face, a hood over the forehead, a band across the face, or a veil at its side."""
    size = scene.size
    u, v = _upright(scene)
    wave = rng.normal(0, 0.06) * u + rng.normal(0, 0.25) * u**2
    wave = wave + sum(rng.normal(0, 0.012) * np.sin(k * 4 * u + rng.uniform(0, 6)) for k in (1, 2, 4))
    kind = rng.choice(["scarf", "hood", "band", "side"], p=[0.4, 0.3, 0.1, 0.2])
    if kind == "scarf":
        edge = v - rng.uniform(0.1, 0.6) - wave
    elif kind == "hood":
        edge = rng.uniform(-0.35, -0.02) - v + wave
    elif kind == "band":
        edge = rng.uniform(0.04, 0.12) - np.abs(v - rng.uniform(-0.4, 0.6) - wave)
    else:
        edge = int(rng.choice([-1, 1])) * u - rng.uniform(0.0, 0.4) + rng.normal(0, 0.3) * v + rng.normal(0, 0.3) * v**2
    alpha = _within(edge, scene).astype(np.float32)

    colour = _material(textures, size, rng)
    rim = 1 - rng.uniform(0, 0.4) * np.exp(-((edge / 0.02) ** 2))
    shade = _folds(u, v, rng) * rim + 0.04 * _noise(size, rng.uniform(0.8, 4), rng)
    return Layer((colour * shade[..., None]).clip(0, 1), alpha, alpha > COVERED)


# Parts of a brim, from below: least and largest height in heights of the face, and how often a cap has them.
_BRIM = (
    (0.01, 0.12, 0.6),  # underside
    (0.008, 0.03, 0.4),  # edge
    (0.02, 0.14, 0.7),  # upper side
    (0.005, 0.015, 0.5),  # seam
)


def draw_cap(scene: Scene, textures: Sequence[np.ndarray], rng: np.random.Generator) -> Layer:
    """A cap or helmet over the forehead, with or without a brim; the scene is darkened by the shadow of most brims."""
    size = scene.size
    u, v = _upright(scene)
    u = u + rng.normal(0, 0.08)  # heads that are turned wear it to one side
    height = rng.uniform(-0.38, -0.08) - v + rng.uniform(-0.3, 0.9) * u**2 + rng.normal(0, 0.15) * u  # above its lower edge
    wide, reach = rng.uniform(0.42, 0.6), rng.uniform(0.4, 0.75)  # of the crown and of the brim, to each side
    tapering = np.sqrt(np.clip(1 - (u / reach) ** 2, 0, 1))
    parts = [rng.uniform(low, high) * (rng.random() < share) for low, high, share in _BRIM]  # heights
    tops = np.cumsum(parts)
    brim = tops[-1] * tapering

    picture = _material(textures, size, rng) * _folds(u, v, rng)[..., None]
    dark, edge, seam = _plain_colour(rng) * rng.uniform(0.05, 0.5), _plain_colour(rng), _plain_colour(rng) * 0.4
    tones = [dark, edge, _material(textures, size, rng), seam]
    for part, top, tone in reversed(list(zip(parts, tops, tones, strict=True))):  # each lies over what is above it
        if part > 0:
            picture = picture + _within(top * tapering - height, scene)[..., None] * (tone - picture)
    round_ = rng.uniform(0, 0.6)
    shade = 1 - round_ * (u / max(wide, reach)) ** 2 + rng.normal(0, 0.3) * u + 0.04 * _noise(size, rng.uniform(0.8, 4), rng)

    visor = np.minimum(brim - height, reach - np.abs(u))
    alpha = _within(np.minimum(height, np.maximum(wide - np.abs(u), visor)), scene).astype(np.float32)
    if rng.random() < 0.7:
        depth, length = rng.uniform(0.2, 0.75), rng.uniform(0.02, 0.3)
        below = np.clip(1 + height / length, 0, 1) * (height < brim) * np.clip((reach - np.abs(u)) / length, 0, 1)
        scene.image *= 1 - depth * below[..., None]
    return Layer((picture * shade[..., None]).clip(0, 1).astype(np.float32), alpha, alpha > COVERED)


def _within(depth: np.ndarray, scene: Scene) -> np.ndarray:
    """How much of each pixel lies within an edge, 0…1, by its depth inside in heights of the face."""
    soft = 1.2 / scene.face_height
    return np.clip(0.5 + depth / (2 * soft), 0, 1)


def _material(textures: Sequence[np.ndarray], size: int, rng: np.random.Generator) -> np.ndarray:
    return _cut(textures[rng.integers(len(textures))], size, rng) if rng.random() < 0.35 else _fabric(size, rng)


def _folds(u: np.ndarray, v: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The shading `(S, S)` of cloth with folds in one direction."""
    direction = rng.uniform(0, np.pi)
    along = math.cos(direction) * u + math.sin(direction) * v + 0.1 * _noise(len(u), 30, rng)
    folds = sum(rng.uniform(0, 0.25) * np.sin(rng.uniform(8, 40) * along + rng.uniform(0, 6)) for _ in range(2))
    return rng.uniform(0.7, 1.1) * (1 + folds)


def _upright(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """How far each pixel `(S, S)` is to the side of the bridge of the nose, and below it, in heights of the face."""
    down = ((scene.landmarks[152] - scene.landmarks[10]) / scene.face_height).astype(np.float32)
    grid = (_grid(scene.size) - scene.landmarks[168].astype(np.float32)) / np.float32(scene.face_height)
    return grid @ np.array([down[1], -down[0]]), grid @ down


# Hair


def draw_strands(scene: Scene, rng: np.random.Generator) -> Layer:
    """A lock of hair that falls from above, or hangs from a side, over the face."""
    size, points = scene.size, scene.landmarks
    root = points[rng.choice([10, 338, 109, 67, 297, 103, 332, 54, 284, 162, 389])] + rng.normal(0, 0.05, 2) * scene.face_height
    end = _somewhere_on_the_face(scene, rng)
    sweep = rng.normal(0, 0.2, 2) * scene.face_height
    spread = rng.uniform(0.005, 0.12) * scene.face_height
    colour = scene.hair_colour(rng)
    picture, alpha = np.zeros((size, size, 3), np.float32), np.zeros((size, size), np.float32)
    for _ in range(rng.integers(1, 7) if rng.random() < 0.4 else rng.integers(8, 45)):
        from_, to = root + rng.normal(0, spread, 2), end + rng.normal(0, 1.5 * spread, 2)
        middle = (from_ + to) / 2 + sweep + rng.normal(0, spread, 2)
        line = _smooth(np.stack([from_, middle, to]), 16, closed=False)
        strand = _stroke(line, size, int(rng.integers(1, 4))) * rng.uniform(0.5, 1)
        tone = colour * rng.uniform(0.6, 1.35)
        rows, columns = strand.nonzero()
        weight = strand[rows, columns, None]
        picture[rows, columns] += weight * (tone - picture[rows, columns])
        np.maximum(alpha, strand, out=alpha)
    picture = np.where(alpha[..., None] > 0, picture / np.maximum(alpha, 0.3)[..., None], 0)
    return Layer(picture.clip(0, 1).astype(np.float32), alpha, alpha > COVERED)


def borrow_hair(scene: Scene, other: Scene, rng: np.random.Generator) -> Layer:
    """The hair, or hat, of another crop, shifted over this face."""
    size = scene.size
    hair = (other.classes == FRONT).astype(np.float32)
    scale, turn = rng.uniform(0.75, 1.15), rng.normal(0, 0.12)
    flip = int(rng.choice([-1, 1]))
    linear = scale * np.array([[flip * np.cos(turn), -np.sin(turn)], [flip * np.sin(turn), np.cos(turn)]])
    place = scene.landmarks[168] + np.array([rng.normal(0, 0.12), rng.uniform(-0.02, 0.3)]) * scene.face_height
    matrix = np.column_stack([linear, place - linear @ other.landmarks[168]])
    colour = cv2.warpAffine(other.image, matrix, (size, size), borderMode=cv2.BORDER_REFLECT)
    alpha = _blurred(cv2.warpAffine(hair, matrix, (size, size)), 0.8)
    if rng.random() < 0.3:
        colour = (colour * rng.uniform(0.6, 1.4) * (1 + rng.normal(0, 0.08, 3))).clip(0, 1).astype(np.float32)
    return Layer(colour, alpha, alpha > COVERED)


# Glasses


def draw_glasses(scene: Scene, rng: np.random.Generator) -> Layer:
    """Spectacles or sunglasses with rims, bridge and temples."""
    size, points = scene.size, scene.landmarks
    right, left = points[list(RIGHT_EYE)].mean(0), points[list(LEFT_EYE)].mean(0)
    across = left - right
    distance = np.linalg.norm(across)
    across = across / distance
    down = np.array([-across[1], across[0]])
    radii = distance * np.array([rng.uniform(0.3, 0.46), rng.uniform(0.2, 0.42)])
    power = rng.uniform(0.5, 1)  # 1 gives ellipses, less makes them boxes
    angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    unit = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    unit = np.sign(unit) * np.abs(unit) ** power
    lower = rng.uniform(-0.05, 0.12) * distance * down
    rims = [eye + lower + (unit * radii) @ np.stack([across, down]) for eye in (right, left)]
    lenses = np.maximum(*(_filled(rim, size) for rim in rims))
    thickness = max(1, round(size / 256 * rng.uniform(1, 6)))
    frame = np.maximum(*(_stroke(np.concatenate([rim, rim[:1]]), size, thickness) for rim in rims))
    ends = [right + lower + radii[0] * across, left + lower - radii[0] * across]
    frame = np.maximum(frame, _stroke(np.stack(ends), size, thickness))
    for eye, ear, sign in ((right, points[127], -1), (left, points[356], 1)):
        hinge = eye + lower + sign * radii[0] * across
        frame = np.maximum(frame, _stroke(np.stack([hinge, ear]), size, thickness))
    dark = rng.random() < 0.5
    opacity = rng.uniform(0.55, 0.98) if dark else rng.uniform(0, 0.2)
    tint = _plain_colour(rng) * (0.3 if dark else 1)
    v = ((_grid(size) - right.astype(np.float32)) @ (down / distance).astype(np.float32))[..., None]
    lens = tint * (1 + rng.uniform(-0.5, 1.5) * v)
    if rng.random() < 0.4:
        lens = lens + rng.uniform(0, 0.5) * np.clip(_noise(size, rng.uniform(8, 25), rng), 0, 1)[..., None]
    rim_colour = _plain_colour(rng) * float(rng.choice([0.2, 1]))
    if rng.random() < 0.15 and not dark:
        frame *= 0.4
    colour = lens + frame[..., None] * (rim_colour - lens)
    alpha = np.maximum(frame, opacity * lenses)
    return Layer(colour.clip(0, 1).astype(np.float32), alpha, np.maximum(lenses, frame) > COVERED, GLASSES, shadow=False)


# What does not hide the face


def mark_skin(scene: Scene, rng: np.random.Generator) -> None:
    """Draw freckles, paint or tattoos on the skin, which shows through."""
    size = scene.size
    ink = np.zeros((size, size), np.float32)
    if rng.random() < 0.35:
        for _ in range(rng.integers(20, 120)):
            x, y = _somewhere_on_the_face(scene, rng)
            radius, depth = int(rng.integers(8, 26)), rng.uniform(0.2, 0.8)
            cv2.circle(ink, fixed_point(np.array([x, y])), radius, depth, -1, cv2.LINE_8, SHIFT)
        tint = np.array([0.75, 0.6, 0.5])
    else:
        for _ in range(rng.integers(1, 5)):
            start = _somewhere_on_the_face(scene, rng)
            line = _smooth(start + rng.normal(0, 0.12, (4, 2)) * scene.face_height, 24, closed=False)
            mark = _filled(line, size) if rng.random() < 0.4 else _stroke(line, size, int(rng.integers(1, 9)))
            ink = np.maximum(ink, mark * rng.uniform(0.4, 0.9))
        tint = rng.random(3) * 1.1
    ink = _blurred(ink, rng.uniform(0.5, 2)) * (scene.classes == FACE)
    scene.image *= 1 + ink[..., None] * (tint - 1)


def cast_shadow(scene: Scene, hands: np.ndarray, rng: np.random.Generator) -> None:
    """Draw a hard or soft shadow of a hand, of bars or of an edge that are outside of the picture."""
    size = scene.size
    draw = rng.random()
    if draw < 0.4:
        shadow = draw_hand(scene, hands, rng).alpha
    elif draw < 0.7:
        angle, pitch = rng.uniform(0, np.pi), rng.uniform(0.05, 0.3) * size
        along = _grid(size) @ np.float32([math.cos(angle), math.sin(angle)]) + 3 * _noise(size, 20, rng)
        shadow = (np.sin(2 * np.pi * along / pitch) > rng.uniform(-0.5, 0.7)).astype(np.float32)
    else:
        angle = rng.uniform(0, 2 * np.pi)
        from_edge = _grid(size) - _somewhere_on_the_face(scene, rng).astype(np.float32)
        along = from_edge @ np.float32([math.cos(angle), math.sin(angle)]) + 5 * _noise(size, 25, rng)
        shadow = (along > 0).astype(np.float32)
    shadow = _blurred(shadow, rng.uniform(0.7, 6))[..., None]
    scene.image *= 1 - shadow * rng.uniform(0.25, 0.75) * rng.uniform(0.85, 1, 3)


# Tools


def _somewhere_on_the_face(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """A point `(2,)`, anywhere on the face or a little beside it."""
    weights = rng.dirichlet([0.6] * 3)
    point = weights @ scene.landmarks[rng.integers(0, 468, 3)]
    return point + rng.normal(0, 0.06, 2) * scene.face_height


def _grid(size: int) -> np.ndarray:
    return np.stack(np.meshgrid(np.arange(size) + 0.5, np.arange(size) + 0.5), axis=2).astype(np.float32)


def _blurred(image: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur; a wide one is computed on a smaller grid."""
    size = image.shape[0]
    if sigma < 6:
        return cv2.GaussianBlur(image, (0, 0), sigma)
    small = cv2.resize(image, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA)
    return cv2.resize(cv2.GaussianBlur(small, (0, 0), sigma / 4), (size, size), interpolation=cv2.INTER_LINEAR)


def _noise(size: int, grain: float, rng: np.random.Generator) -> np.ndarray:
    """Smooth noise `(size, size)` with a standard deviation of about 1 and grains that are `grain` pixels wide."""
    count = max(4, round(size / grain))
    return cv2.resize(rng.standard_normal((count, count), np.float32), (size, size), interpolation=cv2.INTER_CUBIC)


def _filled(outline: np.ndarray, size: int) -> np.ndarray:
    """The inside of a polygon `(n, 2)`, `(size, size)` from 0 to 1, smooth at the edge."""
    canvas = np.zeros((size, size), np.uint8)
    cv2.fillPoly(canvas, [fixed_point(np.clip(outline, -4000, 4000))], 255, cv2.LINE_AA, SHIFT)
    return canvas.astype(np.float32) / 255


def _stroke(line: np.ndarray, size: int, thickness: int) -> np.ndarray:
    canvas = np.zeros((size, size), np.uint8)
    cv2.polylines(canvas, [fixed_point(np.clip(line, -4000, 4000))], False, 255, thickness, cv2.LINE_AA, SHIFT)
    return canvas.astype(np.float32) / 255


def _smooth(points: np.ndarray, count: int, closed: bool = True) -> np.ndarray:
    """Points `(count, 2)` on a quadratic spline that follows the corners `(n, 2)`."""
    points = np.asarray(points, float)
    if closed:
        before, after = np.roll(points, 1, axis=0), np.roll(points, -1, axis=0)
    else:
        before, after = points[[0, *range(len(points) - 1)]], points[[*range(1, len(points)), -1]]
    t = np.linspace(0, 1, max(2, count // len(points)), endpoint=False)[:, None]
    pieces = [
        (1 - t) ** 2 * (a + b) / 2 + 2 * t * (1 - t) * b + t**2 * (b + c) / 2
        for a, b, c in zip(before, points, after, strict=True)
    ]
    return np.concatenate(pieces)


def _cut(texture: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """A random part `(size, size, 3)` of a picture, in [0, 1]."""
    side = int(rng.uniform(0.3, 1) * min(texture.shape[:2]))
    top, left = (rng.integers(0, length - side + 1) for length in texture.shape[:2])
    part = np.rot90(texture[top : top + side, left : left + side], rng.integers(4))
    return cv2.resize(np.ascontiguousarray(part), (size, size), interpolation=cv2.INTER_LINEAR).astype(np.float32) / 255


def _fabric(size: int, rng: np.random.Generator) -> np.ndarray:
    """Plain, striped, checked or flowery cloth `(size, size, 3)`."""
    first, second = _plain_colour(rng), _plain_colour(rng)
    draw = rng.random()
    if draw < 0.45:
        return np.broadcast_to(first.astype(np.float32), (size, size, 3))
    if draw < 0.8:
        angle, pitch = rng.uniform(0, np.pi), size * rng.uniform(0.015, 0.15)
        grid = _grid(size)
        pattern = np.sin(2 * np.pi / pitch * (grid @ np.float32([np.cos(angle), np.sin(angle)])))
        if rng.random() < 0.5:
            pattern = pattern * np.sin(2 * np.pi / pitch * (grid @ np.float32([-np.sin(angle), np.cos(angle)])))
        pattern = np.clip(0.5 + rng.uniform(1, 6) * pattern, 0, 1)
    else:
        pattern = np.clip(0.5 + 2 * _noise(size, size * rng.uniform(0.02, 0.1), rng), 0, 1)
    return (first + pattern[..., None] * (second - first)).astype(np.float32)
