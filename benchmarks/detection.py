"""Measure how well faces are found, in pictures composed of faces, backgrounds and other things, so that the truth is known.

    python benchmarks/detection.py FACES... --backgrounds FOLDER [--things FOLDER] [--pictures 150]
                                   [--set detection_threshold=0.5] [--json] [--save FOLDER]

    FACES          folders of pictures of one large upright face each
    --backgrounds  pictures without faces; a fifth of the backgrounds are drawn patterns
    --things       cut-outs without faces, as PNG with transparency: hands, hair, animals, clocks; half of the things are drawn
    --set          another variant of the analyser, measured on the same pictures; NAME=VALUE,NAME=VALUE, repeatable

Pictures have 0.3 to 3 megapixels and 0 to 30 faces of 12 to 400 pixels (root of the area of the landmarks' box), 60 % of them
within 20° of upright, the others turned by any angle. Some faces are partly hidden, blurred or cut by the border; some pictures
are blurred, dark, pale, grey, noisy or JPEG. A found box is right if it shares 40 % with the truth, or if it contains the centre
of the truth and is half to twice as large. All others are false alarms, except second boxes about one face.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from diffdeid.geometry.align import square_matrix, warp
from diffdeid.geometry.boxes import bounding_box, intersection_over_union
from diffdeid.io.images import read_image
from diffdeid.models.face_analyser import FaceAnalyserModel
from diffdeid.structures import Face

ROOT = Path(__file__).parents[1]
SIZES = (12, 20, 32, 64, 160, 400)  # pixels, the limits of the rows of the table
SCORES = (0, 0.4, 0.5, 0.6, 0.7, 1)
UPRIGHT = 20  # degrees
SHARES = {"hidden": 0.15, "cut": 0.07, "blurred": 0.1}  # of the faces
FAULTS = {"blurred": 0.15, "dark": 0.1, "pale": 0.1, "grey": 0.1, "noisy": 0.15, "JPEG": 0.3}  # of the pictures
ROOM = 0.05  # part of a face's box that another head may share, and of that head


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("faces", nargs="+", type=Path)
    parser.add_argument("--backgrounds", type=Path, required=True)
    parser.add_argument("--things", type=Path)
    parser.add_argument("--pictures", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", default=ROOT / "weights/diffdeid/face_analyser")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE,…")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--save", type=Path, help="folder for the pictures, with the truth in green and what was found in red")
    args = parser.parse_args()
    analyser = FaceAnalyserModel.from_pretrained(args.model)
    composer = Composer(args.faces, args.backgrounds, args.things, analyser)
    results = {}
    for variant in ["", *args.set]:
        analyser = FaceAnalyserModel.from_pretrained(args.model)
        analyser.register_to_config(**options_of(variant, dict(analyser.config)))
        results[variant or "as it is"] = looks = []
        for number in range(args.pictures):
            scene = composer.compose(args.seed, number)
            looks.append(look_at(scene, analyser))
            if args.save and not variant:
                args.save.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(args.save / f"{number:04}.jpg"), drawn(scene.image, looks[-1])[:, :, ::-1])
    summaries = {variant: summary(looks) for variant, looks in results.items()}
    if args.json:
        print(json.dumps(summaries, indent=1))
    else:
        for variant, figures in summaries.items():
            show(variant, figures)


def options_of(variant: str, known: dict[str, object]) -> dict[str, float]:
    """`NAME=VALUE,…` as options of the analyser."""
    options = dict(pair.split("=") for pair in variant.split(",") if pair)
    if unknown := options.keys() - known:
        raise SystemExit(f"--set takes options of the face analyser, not {', '.join(sorted(unknown))}.")
    return {name: type(known[name])(value) for name, value in options.items()}


# 1. Pictures


@dataclass(frozen=True)
class Portrait:
    """A picture `(H, W, 3)` of one face and the points `(N, 2)` that its box holds."""

    image: np.ndarray
    points: np.ndarray


@dataclass(frozen=True)
class Truth:
    """A face in a composed picture: its box, the root of the area of its upright box, its turn in degrees, and its faults."""

    box: np.ndarray
    size: float
    turn: float
    faults: frozenset[str]


@dataclass
class Scene:
    """A composed picture.

    Attributes:
        image: `(H, W, 3)` uint8.
        truths: its faces.
        things: kind and box of things that are not faces, whether or not something covers them.
        faults: what is wrong with all of it.
    """

    image: np.ndarray
    truths: list[Truth] = field(default_factory=list)
    things: list[tuple[str, np.ndarray]] = field(default_factory=list)
    faults: frozenset[str] = frozenset()


class Composer:
    """Composes pictures of known content; each depends only on the seed and its number."""

    def __init__(self, faces: Sequence[Path], backgrounds: Path, things: Path | None, analyser: FaceAnalyserModel):
        portraits = [portrait_of(path, analyser) for folder in faces for path in pictures_of(folder)]
        self.portraits = [portrait for portrait in portraits if portrait is not None]
        self.backgrounds = [np.asarray(read_image(path).image) for path in pictures_of(backgrounds)]
        paths = [] if things is None else pictures_of(things)
        self.things = [cv2.cvtColor(cv2.imread(str(path), cv2.IMREAD_UNCHANGED), cv2.COLOR_BGRA2RGBA) for path in paths]

    def compose(self, seed: int, number: int) -> Scene:
        rng = np.random.default_rng((seed, number))
        pixels, aspect = np.exp(rng.uniform(*np.log((0.3e6, 3e6)))), np.exp(rng.uniform(-0.45, 0.45))
        height, width = round((pixels * aspect) ** 0.5), round((pixels / aspect) ** 0.5)
        scene = self._background(rng, height, width)
        for _ in range(rng.integers(0, 13)):
            self._put_thing(rng, scene)
        wanted = round(30 * rng.random() ** 2)
        for size in sorted(np.exp(rng.uniform(*np.log((SIZES[0], SIZES[-1])), wanted)), reverse=True):
            self._put_face(rng, scene, min(size, 0.5 * min(height, width)))
        return spoilt(rng, scene)

    def _background(self, rng: np.random.Generator, height: int, width: int) -> Scene:
        if rng.random() < 0.2:
            return pattern(rng, height, width)
        photo = self.backgrounds[rng.integers(len(self.backgrounds))]
        scale = max(height / photo.shape[0], width / photo.shape[1]) * rng.uniform(1, 1.5)
        photo = cv2.resize(photo, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
        top, left = (rng.integers(have - want + 1) for have, want in zip(photo.shape, (height, width), strict=False))
        photo = photo[top : top + height, left : left + width]
        return Scene(np.ascontiguousarray(photo[:, ::-1] if rng.random() < 0.5 else photo))

    def _put_thing(self, rng: np.random.Generator, scene: Scene) -> None:
        is_cut_out = bool(self.things) and rng.random() < 0.5
        thing = self.things[rng.integers(len(self.things))] if is_cut_out else face_like(rng)
        side, angle = np.exp(rng.uniform(*np.log((16, 300)))), turn(rng)
        centre, target = np.array(thing.shape[1::-1]) / 2, rng.random(2) * scene.image.shape[1::-1]
        paste(scene.image, thing[:, :, :3], thing[:, :, 3], placed(centre, max(thing.shape[:2]), side, angle, target))
        scene.things.append(("cut-outs" if is_cut_out else "drawings", np.concatenate([target - side / 2, target + side / 2])))

    def _put_face(self, rng: np.random.Generator, scene: Scene, size: float) -> None:
        """Add one more face, unless there is no room."""
        portrait = self.portraits[rng.integers(len(self.portraits))]
        photo, points = portrait.image, portrait.points
        if rng.random() < 0.5:
            photo, points = photo[:, ::-1], points * (-1, 1) + (photo.shape[1], 0)
        box = bounding_box(points)
        extent = box[2:] - box[:2]
        angle = turn(rng)
        faults = {name for name, share in SHARES.items() if rng.random() < share}
        head = head_mask(rng, photo.shape[:2], box)
        photo = np.clip(photo * rng.uniform(0.75, 1.15), 0, 255).astype(np.uint8)
        if "hidden" in faults:
            self._hide(rng, photo, box)
        limit = np.array(scene.image.shape[1::-1])
        for _ in range(40):
            target = rng.random(2) * (limit - 1.2 * size) + 0.6 * size
            if "cut" in faults:  # up to 45 % of the size beyond one of the four borders
                axis, over = rng.integers(2), rng.uniform(0.05, 0.45)
                target[axis] = rng.choice([(0.5 - over) * size, limit[axis] - (0.5 - over) * size])
            matrix = placed((box[:2] + box[2:]) / 2, extent.prod() ** 0.5, size, angle, target)
            where = clipped(bounding_box(points @ matrix[:, :2].T + matrix[:, 2]), limit)
            rows, columns = np.nonzero(head > 64)
            ends = np.stack([columns, rows], axis=1)[:: max(1, len(rows) // 500)] @ matrix[:, :2].T + matrix[:, 2]
            reach = bounding_box(ends)
            if all(max(part_in(truth.box, reach), part_in(reach, truth.box)) < ROOM for truth in scene.truths):
                if "blurred" in faults:  # by up to 4 % of the size
                    photo = cv2.GaussianBlur(photo, (0, 0), rng.uniform(0.01, 0.04) * extent.prod() ** 0.5)
                paste(scene.image, photo, head, matrix)
                scene.truths.append(Truth(where, size, angle, frozenset(faults)))
                return

    def _hide(self, rng: np.random.Generator, photo: np.ndarray, box: np.ndarray) -> None:
        """Cover 15 to 40 % of a face, from one side of its box."""
        depth, side = rng.uniform(0.15, 0.4), rng.integers(4)
        low, high = box[:2].copy(), box[2:].copy()
        extent = high - low
        axis = side % 2
        if side < 2:
            high[axis], low[axis] = low[axis] + depth * extent[axis], low[axis] - 0.3 * extent[axis]
        else:
            low[axis], high[axis] = high[axis] - depth * extent[axis], high[axis] + 0.3 * extent[axis]
        x0, y0 = np.maximum(low, 0).astype(int)
        x1, y1 = np.minimum(high, photo.shape[1::-1]).astype(int)
        if rng.random() < 0.3:
            photo[y0:y1, x0:x1] = rng.integers(0, 256, 3)
        elif x1 > x0 and y1 > y0:
            photo[y0:y1, x0:x1] = self._background(rng, max(y1 - y0, 64), max(x1 - x0, 64)).image[: y1 - y0, : x1 - x0]


def pictures_of(folder: Path) -> list[Path]:
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in {".jpg", ".jpeg", ".png", ".webp"})
    if not paths:
        raise SystemExit(f"`{folder}` must hold pictures (JPEG, PNG or WebP), it has none.")
    return paths


def portrait_of(path: Path, analyser: FaceAnalyserModel) -> Portrait | None:
    """The face of a picture, by its landmarks, or by the detector's box if the mesh sees none; both are easy on large faces."""
    image = np.asarray(read_image(path).image)
    found = analyser.glance(image, 0.5) or analyser.detect(image)
    if not found:
        return None
    (face,) = analyser(image, [max(found, key=lambda face: np.prod(face.box[2:] - face.box[:2]))])
    if face.landmarks is not None:
        return Portrait(image, face.landmarks[:, :2])
    angles = np.linspace(0, 2 * np.pi, 64)
    centre, half = (face.box[:2] + face.box[2:]) / 2, (face.box[2:] - face.box[:2]) / 2
    return Portrait(image, centre + half * np.stack([np.cos(angles), np.sin(angles)], axis=1))


def head_mask(rng: np.random.Generator, shape: tuple[int, int], box: np.ndarray) -> np.ndarray:
    """A soft mask, 0…255, of a head with its hair about the box of a face: between an ellipse and a rounded square."""
    height, width = shape
    face = box[2:] - box[:2]
    centre = (box[:2] + box[2:]) / 2 - (0, 0.15 * face[1])
    half = np.minimum(face * rng.uniform((0.75, 0.78), (1, 0.95)), (0.49 * width, 0.49 * height))
    centre = np.clip(centre, half, (width, height) - half)
    power = rng.uniform(2, 4)
    x, y = (np.abs((np.arange(count) + 0.5 - c) / h) for count, c, h in zip((width, height), centre, half, strict=True))
    inside = 1 - (x[None] ** power + y[:, None] ** power) ** (1 / power)  # 1 in the middle, 0 at the border
    return (np.clip(inside / rng.uniform(0.06, 0.2), 0, 1) * 255).astype(np.uint8)


def turn(rng: np.random.Generator) -> float:
    """Draw an angle in degrees, mostly near upright."""
    return rng.uniform(-UPRIGHT, UPRIGHT) if rng.random() < 0.6 else rng.uniform(-180, 180)


def placed(centre: np.ndarray, extent: float, size: float, angle: float, target: np.ndarray) -> np.ndarray:
    """The similarity that maps `centre` to `target` and `extent` pixels to `size`, turned by `angle` degrees."""
    radians = np.deg2rad(angle)
    matrix = square_matrix(centre, (np.cos(radians), -np.sin(radians)), extent, size)
    return matrix + np.column_stack([np.zeros((2, 2)), target - size / 2])


def paste(image: np.ndarray, photo: np.ndarray, mask: np.ndarray, matrix: np.ndarray) -> None:
    """Blend a warped picture into another one."""
    height, width = photo.shape[:2]
    corners = np.array([[0, 0], [width, 0], [0, height], [width, height]]) @ matrix[:, :2].T + matrix[:, 2]
    x0, y0 = np.maximum(np.floor(corners.min(axis=0)).astype(int), 0)
    x1, y1 = np.minimum(np.ceil(corners.max(axis=0)).astype(int), image.shape[1::-1])
    if x1 <= x0 or y1 <= y0:
        return
    local = matrix - [[0, 0, x0], [0, 0, y0]]
    colour = warp(photo, local, (x1 - x0, y1 - y0), cv2.BORDER_REPLICATE).astype(np.float32)
    opacity = warp(mask, local, (x1 - x0, y1 - y0), cv2.BORDER_CONSTANT)[:, :, None] / np.float32(255)
    part = image[y0:y1, x0:x1]
    part[...] = np.rint(part + opacity * (colour - part))


def pattern(rng: np.random.Generator, height: int, width: int) -> Scene:
    """A background of clouds, at times with bricks, leaves, letters or a crowd of face-like drawings."""
    image = np.zeros((height, width, 3), np.float32) + rng.integers(40, 216, 3)
    for cells in (2, 8, 32, 128):
        clouds = (rng.normal(size=(cells, cells, 1)) + 0.4 * rng.normal(size=(cells, cells, 3))).astype(np.float32)
        image += 40 / cells**0.4 * cv2.resize(clouds, (width, height), interpolation=cv2.INTER_CUBIC)
    image, things = np.clip(image, 0, 255).astype(np.uint8), []
    kind, step = rng.choice(["clouds", "bricks", "leaves", "letters", "crowd"]), int(rng.integers(12, 80))
    for row, y in enumerate(range(0, height, step) if kind != "clouds" else ()):
        for x in range(-(row % 2) * step, width, 2 * step if kind == "bricks" else step):
            colour, (dx, dy) = rng.integers(0, 256, 3).tolist(), rng.integers(-step // 4, step // 4 + 1, 2).tolist()
            if kind == "bricks":
                shade = rng.uniform(0.7, 1.1)
                cv2.rectangle(image, (x, y), (x + 2 * step - 3, y + step - 3), (180 * shade, 90 * shade, 70 * shade), -1)
            elif kind == "leaves":
                axes = (step // 2, max(1, step // 5))
                shade = (colour[0] // 3, 60 + colour[1] // 2, colour[2] // 4)
                cv2.ellipse(image, (x + dx, y + dy), axes, float(colour[0]), 0, 360, shade, -1, cv2.LINE_AA)
            elif kind == "letters":
                letter, width_of_line = chr(rng.integers(33, 127)), max(1, step // 20)
                cv2.putText(image, letter, (x, y), cv2.FONT_HERSHEY_COMPLEX, step / 25, (0, 0, 0), width_of_line, cv2.LINE_AA)
            else:
                target = np.array((x + dx, y + dy))
                paste(image, *np.split(face_like(rng), (3,), axis=2), placed(np.full(2, 64), 128, step, 0, target))
                things.append(("drawings", np.concatenate([target - step / 2, target + step / 2])))
    return Scene(image, things=things)


def face_like(rng: np.random.Generator) -> np.ndarray:
    """Draw a disc with dots, bars or hands, like a socket, a clock or the front of a car; RGBA `(128, 128, 4)`."""
    image = np.zeros((128, 128, 4), np.uint8)
    skin = rng.random() < 0.5
    colour = (*(np.array((225, 170, 140)) * rng.uniform(0.3, 1) if skin else rng.integers(60, 256, 3)).astype(int).tolist(), 255)
    dark = (*rng.integers(0, 60, 3).tolist(), 255)
    cv2.ellipse(image, (64, 64), (int(rng.integers(40, 60)), 60), 0, 0, 360, colour, -1, cv2.LINE_AA)
    if rng.random() < 0.3:  # a clock
        for hand in rng.uniform(0, 2 * np.pi, 2):
            cv2.line(image, (64, 64), (int(64 + 45 * np.cos(hand)), int(64 + 45 * np.sin(hand))), dark, 4, cv2.LINE_AA)
        cv2.circle(image, (64, 64), 57, dark, 3, cv2.LINE_AA)
        return image
    for side in (-1, 1):
        place = (64 + side * int(rng.integers(14, 26)), int(rng.integers(45, 65)))
        cv2.ellipse(image, place, (int(rng.integers(3, 11)), int(rng.integers(3, 9))), 0, 0, 360, dark, -1, cv2.LINE_AA)
    if rng.random() < 0.6:
        cv2.ellipse(image, (64, 94), (int(rng.integers(8, 26)), int(rng.integers(2, 8))), 0, 0, 360, dark, -1, cv2.LINE_AA)
    return image


def spoilt(rng: np.random.Generator, scene: Scene) -> Scene:
    """The picture as bad cameras and bad light would make it."""
    faults = frozenset(name for name, share in FAULTS.items() if rng.random() < share)
    image = scene.image.astype(np.float32)
    if "blurred" in faults:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.6, 2))
    if "dark" in faults:
        image *= rng.uniform(0.15, 0.4)
    if "pale" in faults:
        image = 128 + (image - 128) * rng.uniform(0.25, 0.5) + rng.uniform(-40, 60)
    if "grey" in faults:
        image = np.repeat(image @ np.float32([0.299, 0.587, 0.114])[:, None], 3, axis=2)
    if "noisy" in faults:
        image += rng.normal(0, rng.uniform(4, 18), image.shape)
    image = np.clip(np.rint(image), 0, 255).astype(np.uint8)
    if "JPEG" in faults:
        quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(15, 60))]
        image = cv2.imdecode(cv2.imencode(".jpg", image, quality)[1], cv2.IMREAD_COLOR)
    return Scene(image, scene.truths, scene.things, faults)


# 2. Comparison


@dataclass(frozen=True)
class Look:
    """What was found in a picture.

    Attributes:
        shape: of the picture, (height, width).
        truths, things, faults: those of the scene.
        found: faces.
        matches: for each found face the number of its truth, -1 for a false alarm.
        seconds: how long the search took.
    """

    shape: tuple[int, int]
    truths: list[Truth]
    things: list[tuple[str, np.ndarray]]
    faults: frozenset[str]
    found: list[Face]
    matches: list[int]
    seconds: float


def look_at(scene: Scene, analyser: FaceAnalyserModel) -> Look:
    started = time.perf_counter()
    found = analyser(scene.image)
    seconds = time.perf_counter() - started
    height, width = scene.image.shape[:2]
    return Look((height, width), scene.truths, scene.things, scene.faults, found, matched(scene, found), seconds)


def matched(scene: Scene, found: Sequence[Face]) -> list[int]:
    """For each found face the number of the truth that its box overlaps most, -1 if it fits none."""
    limit = np.array(scene.image.shape[1::-1])
    matches = []
    for face in found:
        box = clipped(face.box, limit)
        shares = [intersection_over_union(box, truth.box) if about(box, truth.box) else 0 for truth in scene.truths]
        matches.append(int(np.argmax(shares)) if max(shares, default=0) > 0 else -1)
    return matches


def about(box: np.ndarray, truth: np.ndarray) -> bool:
    """Whether a found box fits a true one."""
    if intersection_over_union(box, truth) >= 0.4:
        return True
    centre, ratio = (truth[:2] + truth[2:]) / 2, (np.prod(box[2:] - box[:2]) / np.prod(truth[2:] - truth[:2])) ** 0.5
    return bool((box[:2] < centre).all() and (centre < box[2:]).all() and 0.5 < ratio < 2)


def clipped(box: np.ndarray, limit: np.ndarray) -> np.ndarray:
    """The part of a box in the picture."""
    return np.concatenate([np.clip(box[:2], 0, limit), np.clip(box[2:], 0, limit)])


def part_in(box: np.ndarray, other: np.ndarray) -> float:
    """How much of a box, 0…1, lies in another one."""
    extent = (np.minimum(box[2:], other[2:]) - np.maximum(box[:2], other[:2])).clip(0)
    return float(extent.prod() / np.prod(box[2:] - box[:2]))


def summary(looks: Sequence[Look]) -> dict:
    """Recall, precision, false alarms and time, of all pictures together."""
    faces = [(truth, look.faults, number in look.matches) for look in looks for number, truth in enumerate(look.truths)]
    boxes = [(face, match >= 0) for look in looks for face, match in zip(look.found, look.matches, strict=True)]
    megapixels = sum(look.shape[0] * look.shape[1] for look in looks) / 1e6
    recall = {}
    for low, high in zip(SIZES, SIZES[1:], strict=False):
        for turned in (False, True):
            last = high - (high < SIZES[-1])
            hits = [hit for truth, _, hit in faces if low <= truth.size < last + 1 and is_turned(truth) == turned]
            recall[f"{low}–{last} px, {'turned' if turned else 'upright'}"] = rate(hits)
    faults = {name: rate([hit for truth, _, hit in faces if name in truth.faults]) for name in SHARES}
    faults |= {f"picture {name}": rate([hit for _, spoilt, hit in faces if name in spoilt]) for name in FAULTS}
    precision = {}
    for name, has in (("with landmarks", True), ("without landmarks", False)):
        rights = [(face.score, right) for face, right in boxes if (face.landmarks is not None) == has]
        precision[name] = rate([right for _, right in rights])
        for low, high in zip(SCORES, SCORES[1:], strict=False):
            some = [right for score, right in rights if low <= score < high + (high == 1)]
            precision[f"{name}, score {low}–{high}"] = rate(some)
    alarms = [
        (face.landmarks is not None, cause(look, face))
        for look in looks
        for face, match in zip(look.found, look.matches, strict=True)
        if match < 0
    ]
    causes = {"all": round(len(alarms) / megapixels, 3)}
    causes |= {
        f"{name}, on {why}": round(alarms.count((has, why)) / megapixels, 3)
        for name, has in (("with landmarks", True), ("without landmarks", False))
        for why in ("drawings", "cut-outs", "parts of faces", "backgrounds")
    }
    return {
        "pictures": len(looks),
        "megapixels": round(megapixels, 1),
        "recall": rate([hit for *_, hit in faces]),
        "recall by size": recall,
        "recall by fault": faults,
        "precision": precision,
        "second boxes": sum(right for _, right in boxes) - sum(hit for *_, hit in faces),
        "false alarms per megapixel": causes,
        "covered by false alarms, %": round(100 * float(np.mean([false_area(look) for look in looks])), 3),
        "seconds per megapixel": round(sum(look.seconds for look in looks) / megapixels, 3),
    }


def rate(hits: Sequence[bool]) -> tuple[int, float | None]:
    """How many hits and misses there are, and the share of hits."""
    return len(hits), round(float(np.mean(hits)), 4) if hits else None


def cause(look: Look, face: Face) -> str:
    """What a false alarm shows."""
    if any(part_in(face.box, truth.box) > 0.5 or part_in(truth.box, face.box) > 0.5 for truth in look.truths):
        return "parts of faces"
    centre = (face.box[:2] + face.box[2:]) / 2
    kinds = [kind for kind, box in look.things if (box[:2] < centre).all() and (centre < box[2:]).all()]
    return kinds[-1] if kinds else "backgrounds"


def is_turned(truth: Truth) -> bool:
    return abs(truth.turn) > UPRIGHT


def false_area(look: Look) -> float:
    """The part of a picture, 0…1, inside boxes of false alarms but outside of faces."""
    area = np.zeros(look.shape, bool)
    limit = np.array(look.shape[::-1])
    for value, boxes in (
        (True, [face.box for face, match in zip(look.found, look.matches, strict=True) if match < 0]),
        (False, [truth.box for truth in look.truths]),
    ):
        for box in boxes:
            x0, y0, x1, y1 = np.rint(clipped(box, limit)).astype(int)
            area[y0:y1, x0:x1] = value
    return float(area.mean())


def show(variant: str, figures: dict) -> None:
    print(f"\n{variant}: {figures['pictures']} pictures, {figures['megapixels']} megapixels")
    print(f"  {'recall':46} {line(figures['recall'])}")
    for group in ("recall by size", "recall by fault", "precision"):
        print(f"  {group}")
        for name, value in figures[group].items():
            print(f"    {name:44} {line(value)}")
    print("  false alarms per megapixel")
    for name, value in figures["false alarms per megapixel"].items():
        print(f"    {name:44} {value:8.3f}")
    for name in ("second boxes", "covered by false alarms, %", "seconds per megapixel"):
        print(f"  {name:46} {figures[name]:8}")


def line(value: tuple[int, float | None]) -> str:
    count, part = value
    return f"{count:6} {'–' if part is None else f'{part:8.1%}'}"


def drawn(image: np.ndarray, look: Look) -> np.ndarray:
    """The picture with true boxes in green, found ones in red, or in blue with landmarks; false alarms are thick."""
    image = image.copy()
    for truth in look.truths:
        x0, y0, x1, y1 = np.rint(truth.box).astype(int).tolist()
        cv2.rectangle(image, (x0, y0), (x1, y1), (0, 255, 0), 1)
    for face, match in zip(look.found, look.matches, strict=True):
        x0, y0, x1, y1 = np.rint(face.box).astype(int).tolist()
        cv2.rectangle(image, (x0, y0), (x1, y1), (255, 0, 0) if face.landmarks is None else (0, 80, 255), 1 if match >= 0 else 3)
    return image


if __name__ == "__main__":
    main()
