"""Renders of heads turned too far for landmark detectors, with exact labels, for training the head mesh.

There are two kinds: heads, skins and lights drawn from the priors of the morphable model; and heads of photographs, whose pixels
are laid on the fitted mesh and seen from elsewhere (face profiling as for 300W-LP, Zhu et al. 2016). Parts of a head that a
photograph does not show get the colour of the nearest point that it shows, on this side or the other. Hair is volume and colour
on the scalp.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import grid_sample, normalize
from torch.nn.functional import interpolate as resize
from tqdm import tqdm

from diffdeid.geometry.align import ffhq_matrix, scale_of, square_matrix, upright
from diffdeid.geometry.camera import project, to_camera
from diffdeid.geometry.eyes import eye_coordinates, gaze_from_iris, iris_centres, paint_eyes
from diffdeid.geometry.landmarks import LEFT_EYE, RIGHT_EYE
from diffdeid.geometry.lighting import shade
from diffdeid.geometry.rasterizer import interpolate, rasterize
from diffdeid.geometry.renderer import vertex_normals
from diffdeid.geometry.rotation import rotation_matrix, rotation_vector
from diffdeid.models.face_analyser import HEAD_MARGIN
from diffdeid.models.morphable_model import MorphableModel
from diffdeid.structures import MorphableCoefficients
from diffdeid.training.data import MARGIN, FaceStore
from diffdeid.training.reconstructor_data import jittered_labels, picture_landmarks, turned_light

YAW, PITCH, ROLL = 100, 60, 30  # degrees to either side
BOX_IN_LANDMARKS = 1.08  # side of a detector's box in that of the landmarks' box
PHOTO_SIZE = 288  # pixels
FACING = 0.25, 0.5  # least z of the normal of a point that a photograph shows well: on the face, and elsewhere
NEAR = 500  # vertices around a point among which the nearest shown one is searched
VISIBILITY_SIZE = 96  # pixels of the crop in which visibility is determined
HAIR_VOLUME = 0.35  # decimetres
HAIR = ((0.06, 0.05, 0.05), (0.12, 0.08, 0.06), (0.25, 0.16, 0.1), (0.45, 0.3, 0.18), (0.65, 0.5, 0.3), (0.45, 0.2, 0.1),
        (0.5, 0.5, 0.5), (0.8, 0.79, 0.77))  # fmt: skip


@dataclass
class HeadMap:
    """The neighbourhoods of the mesh.

    Attributes:
        place: `(V, 3)` vertices of the mean head.
        neighbours: `(V, V)` sparse, row-normalised: averages a value over the neighbours of each vertex.
        near: `(V, NEAR)`, the nearest vertices, nearest first, with both sides of the head folded together; eyeballs count as
            far from the rest.
    """

    place: Tensor
    neighbours: Tensor
    near: Tensor


def head_map(model: MorphableModel) -> HeadMap:
    """Compute the neighbourhoods of the mesh of a head."""
    place, count = model.mean.float(), model.config.num_vertices
    edges = torch.cat([model.triangles[:, pair] for pair in ([0, 1], [1, 2], [2, 0])])
    edges = torch.cat([edges, edges.flip(1), torch.arange(count).repeat(2, 1).T]).unique(dim=0)
    weight = 1 / edges[:, 0].bincount(minlength=count)[edges[:, 0]].float()
    folded = torch.cat([place[:, :1].abs(), place[:, 1:], 10.0 * model.eyeballs[:, None].clamp(max=1)], dim=1)
    neighbours = torch.sparse_coo_tensor(edges.T, weight, (count, count), check_invariants=True).coalesce()
    return HeadMap(place, neighbours, torch.cdist(folded, folded).topk(NEAR, largest=False).indices)


def render_heads(
    model: MorphableModel, store: FaceStore, names: list[str], count: int, size: int, seed: int
) -> tuple[np.ndarray, dict[str, Tensor]]:
    """Render pictures `(count, S, S, 4)` uint8 with opacity, and labels like those of `reconstructor_data.read_faces`.

    Args:
        names: photographs to take heads and skins from, for two renders in three.
        size: pixels of the crop proper; a multiple of 16 makes the margin a whole number.
    """
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    where, side = head_map(model), round(size / (1 - 2 * MARGIN))
    pictures = np.empty((count, side, side, 4), np.uint8)
    labels: dict[str, list[Tensor]] = {}
    for start in tqdm(range(0, count, 12), desc="rendering", unit="dozen", disable=None):
        number = min(12, count - start)
        if start // 12 % 3 < 2:
            photos, coefficients = photographed(store, names, number, rng)
        else:
            photos, coefficients = None, invented(model, number, generator)
        angles = rng.uniform(-1, 1, (number, 3)) * [PITCH, YAW, ROLL]
        window = partial(window_matrix, rng=rng)
        pictures[start : start + number], found = render_some(
            model, where, coefficients, photos, angles, window, size, HAIR_VOLUME, generator
        )
        for name, values in found.items():
            labels.setdefault(name, []).append(values)
    return pictures, {name: torch.cat(values) for name, values in labels.items()}


def photographed(
    store: FaceStore, names: list[str], count: int, rng: np.random.Generator
) -> tuple[Tensor, MorphableCoefficients]:
    """Draw photographs `(count, 3, PHOTO_SIZE, PHOTO_SIZE)` 0…1 with margin, each the least turned of three, and their fits."""
    photos, fits = [], []
    for _ in range(count):
        tries = [store.open(names[number]) for number in rng.integers(len(names), size=3)]
        fitted = torch.from_numpy(np.stack([file.get_tensor("fit") for file in tries])).float()
        best = int(MorphableCoefficients.unpack(fitted).pose[:, :3].norm(dim=1).argmin())
        photo = torch.from_numpy(tries[best].get_tensor("image")).permute(2, 0, 1)[None].float() / 255
        photos.append(resize(photo, size=(PHOTO_SIZE, PHOTO_SIZE), mode="area"))
        fits.append(fitted[best])
    return torch.cat(photos), MorphableCoefficients.unpack(torch.stack(fits))


def invented(model: MorphableModel, count: int, generator: torch.Generator) -> MorphableCoefficients:
    """Draw heads from the priors, but faces at rest and faces with strong expressions more often than in photographs."""

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    def drawn(mean: Tensor, whitening: Tensor) -> Tensor:
        return mean + torch.linalg.solve(whitening, noise(len(mean), count)).T

    _, num_expression, num_albedo, _, _, _ = MorphableCoefficients.SIZES
    expression = torch.zeros(count, num_expression)
    units = drawn(model.expression_mean, model.expression_whitening).clamp(0, 1)
    units = units * torch.where(uniform(count, 1) < 0.3, 0.2, 1.0)
    strong = (uniform(count, units.shape[1]) < 0.05) & (uniform(count, 1) < 0.4)
    units = torch.where(strong, 0.3 + 0.7 * uniform(*units.shape), units)
    expression[:, : units.shape[1]] = units
    light = drawn(model.illumination_mean, model.illumination_whitening) * (0.7 + 0.5 * uniform(count, 1))
    return MorphableCoefficients(
        noise(count, model.config.num_identity),
        expression,
        0.8 * noise(count, num_albedo),
        light,
        torch.zeros(count, 6),
        0.08 * noise(count, 4),
    )


@torch.no_grad()
def render_some(
    model: MorphableModel,
    where: HeadMap,
    coefficients: MorphableCoefficients,
    photos: Tensor | None,
    angles: np.ndarray,
    window: Callable[[np.ndarray], np.ndarray],
    size: int,
    hair_volume: float,
    generator: torch.Generator,
) -> tuple[np.ndarray, dict[str, Tensor]]:
    """Render B turned heads in windows, `(B, S, S, 4)` uint8 with opacity; gives the pictures and their labels.

    Args:
        coefficients: of the heads, as the `photos` `(B, 3, S, S)` show them, if there are any.
        angles: `(B, 3)` degrees, about the x, y and z axis: where the heads look.
        window: landmarks `(468, 3)` in crop sizes -> the matrix `(2, 3)` from the shown part of the picture to 0…1.
        size: pixels of the crop proper.
        hair_volume: how far hair stands out at most, decimetres.
        generator: of the hair.
    """
    count = len(coefficients.pose)
    head = model(coefficients.shape, coefficients.expression, coefficients.albedo)
    hair = hair_on(where, model, count, generator)
    outward = vertex_normals(head.vertices, model.triangles)
    bumps = 0.6 + 0.4 * torch.sin(6 * where.place @ torch.randn(3, count, generator=generator)).T  # (B, V)
    volume = hair * bumps * hair_volume * torch.rand(count, 1, generator=generator)
    vertices = head.vertices + volume[..., None] * outward

    # The turned pose, and the irises seen in it
    before = rotation_matrix(coefficients.pose[:, :3])
    about_x, about_y, about_z = rotation_matrix(torch.from_numpy(np.deg2rad(angles)).float().diag_embed()).unbind(1)
    turn = about_z @ about_y @ about_x
    irises = iris_points(model, head.vertices, head.landmarks, coefficients)
    light = turned_light(coefficients.illumination, turn @ before.mT) if photos is not None else coefficients.illumination
    pose = torch.cat([rotation_vector(turn), torch.zeros(count, 3)], dim=1)
    turned = replace(coefficients, illumination=light, pose=pose)
    pose, light = windowed(turned, head.landmarks, model, window)
    landmarks = picture_landmarks(head.landmarks, pose)
    seen_irises = project(to_camera(irises, pose), 1)[..., :2]
    gaze = gaze_from_iris(landmarks, seen_irises[:, :, None])
    found = replace(turned, illumination=light, pose=pose, gaze=gaze)
    labels = {"coefficients": found.pack(), "landmarks": landmarks, "iris": iris_centres(landmarks, gaze)}

    # Pixels
    placed = to_camera(vertices, pose)
    margin = (round(size / (1 - 2 * MARGIN)) - size) // 2
    side = size + 2 * margin
    fragments = rasterize(project(placed, size, margin), model.triangles, side)
    if photos is None:
        colours = painted(model, head.albedo, hair, generator)
        eyes = eye_coordinates(placed, to_camera(head.landmarks, pose), model.eyeballs, gaze)
        attributes = torch.cat([colours, vertex_normals(placed, model.triangles), eyes], dim=-1)
        albedo, normals, eyes = interpolate(attributes, model.triangles, fragments).split(3, dim=-1)
        picture = shade(paint_eyes(albedo, eyes), normalize(normals, dim=-1, eps=1e-12), light)
    else:
        attributes = torch.cat(laid_on(model, where, vertices, coefficients.pose, photos), dim=-1)
        points, shown, colours = interpolate(attributes, model.triangles, fragments).split([2, 1, 3], dim=-1)
        pixels = grid_sample(photos, points, padding_mode="border", align_corners=False).permute(0, 2, 3, 1)
        picture = colours + shown * (pixels - colours)
    rgba = torch.cat([picture.clamp(0, 1), fragments.mask[..., None].float()], dim=-1)
    return (255 * rgba).round().byte().numpy(), labels


def hair_on(where: HeadMap, model: MorphableModel, count: int, generator: torch.Generator) -> Tensor:
    """How far vertices are covered by hair, `(count, V)` 0…1, with random hairlines and lengths; some heads are bald."""
    x, y, z = where.place.T
    line, nape, bare, covered = torch.rand(4, count, 1, generator=generator)
    ears = (x.abs() > 0.72) & (z > -0.55) & (z < -0.1) & (y > -0.3) & (y < 0.42)
    front = y > 0.5 + 0.5 * line - 0.2 * (z < 0.3)
    back = (z < -0.2) & (y > -0.9 + 0.7 * nape)
    scalp = (
        (front | back | (ears & (covered < 0.15))) & (~ears | (covered < 0.15)) & (model.face_region == 0) & (model.eyeballs == 0)
    )
    hair = (scalp & (bare > 0.1)).float().T
    for _ in range(4):
        hair = torch.sparse.mm(where.neighbours, hair)
    return hair.T


def painted(model: MorphableModel, albedo: Tensor, hair: Tensor, generator: torch.Generator) -> Tensor:
    """Albedo `(B, V, 3)` with hair, ears and neck, because the model has learned only the skin of the face."""
    count, vertices = hair.shape
    face = model.face_region.float()[:, None]
    skin = (albedo * face).sum(1, keepdim=True) / face.sum() * (0.75 + 0.3 * torch.rand(count, 1, 1, generator=generator))
    rest = ((model.face_region == 0) & (model.eyeballs == 0)).float()[:, None]
    albedo = albedo + 0.8 * rest * (skin - albedo)
    shades = torch.tensor(HAIR)[torch.randint(len(HAIR), (count,), generator=generator)]
    grain = 1 + 0.5 * (torch.rand(count, vertices, 1, generator=generator) - 0.5)
    return albedo + hair[..., None] * (shades[:, None] * grain - albedo)


def laid_on(
    model: MorphableModel, where: HeadMap, vertices: Tensor, pose: Tensor, photos: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Lay photographs `(B, 3, S, S)` on the heads in them.

    Returns:
        Where vertices lie in the photographs, `(B, V, 2)` in coordinates of `grid_sample`; whether they are seen there,
        `(B, V, 1)` 0 or 1; and their colours `(B, V, 3)`, for unseen vertices those of the nearest seen ones.
    """
    placed = to_camera(vertices, pose)
    normals = vertex_normals(placed, model.triangles)
    margin = round(VISIBILITY_SIZE * MARGIN / (1 - 2 * MARGIN))
    fragments = rasterize(project(placed, VISIBILITY_SIZE, margin), model.triangles, VISIBILITY_SIZE + 2 * margin)
    points = (2 * project(placed, 1)[..., :2] - 1) * (1 - 2 * MARGIN)
    colours = grid_sample(photos, points[:, None], padding_mode="border", align_corners=False)[:, :, 0].permute(0, 2, 1)
    seen = torch.zeros(vertices.shape[:2], dtype=torch.bool)
    for row, drawn in enumerate(fragments.triangle):
        seen[row, model.triangles[drawn[drawn >= 0].unique()].flatten()] = True
    facing = torch.where(model.face_region > 0, *FACING)
    seen &= (normals[..., 2] > facing) & (points.abs().amax(-1) < 0.98)
    for row, shown in enumerate(seen):
        found = shown[where.near]  # (V, NEAR)
        nearest = where.near.gather(1, found.byte().argmax(1, keepdim=True))[:, 0]
        usual = colours[row, shown].mean(0)
        filled = torch.where(found.any(1, keepdim=True), colours[row, nearest], usual)
        colours[row] = torch.where(shown[:, None], colours[row], filled)
    for _ in range(3):
        mean = torch.sparse.mm(where.neighbours, colours.permute(1, 0, 2).flatten(1)).unflatten(1, (-1, 3)).permute(1, 0, 2)
        colours = torch.where(seen[..., None], colours, mean)
    return points, seen[..., None].float(), colours


def iris_points(model: MorphableModel, vertices: Tensor, landmarks: Tensor, coefficients: MorphableCoefficients) -> Tensor:
    """The centres of the irises on the eyeballs, `(B, 2, 3)` in head space, so that they are seen where ω says."""
    placed, marks = to_camera(vertices, coefficients.pose), to_camera(landmarks, coefficients.pose)
    frame = eye_coordinates(placed, marks, model.eyeballs, coefficients.gaze)  # x: along the gaze
    irises = []
    for eye in (1, 2):
        ball = model.eyeballs == eye
        centre = vertices[:, ball].mean(1, keepdim=True)
        offsets = vertices[:, ball] - centre
        radius = offsets.norm(dim=-1).mean(1)
        # offsets · direction = radius · frame_x, in least squares over the ball
        direction = torch.linalg.lstsq(offsets, frame[:, ball, :1] * offsets.norm(dim=-1, keepdim=True)).solution[..., 0]
        irises.append(centre[:, 0] + radius[:, None] * normalize(direction, dim=-1))
    return torch.stack(irises, dim=1)


def windowed(
    coefficients: MorphableCoefficients,
    landmarks: Tensor,
    model: MorphableModel,
    window: Callable[[np.ndarray], np.ndarray],
) -> tuple[Tensor, Tensor]:
    """p and γ of heads with `landmarks` `(B, 468, 3)` as seen in their windows."""
    seen = picture_landmarks(landmarks, coefficients.pose)
    jitters: dict[str, list] = {"angle": [], "zoom": [], "shift": [], "gain": []}
    for points in seen.double().numpy():
        matrix = window(points)
        linear = matrix[:, :2]
        jitters["zoom"].append(scale_of(matrix))
        jitters["angle"].append(np.arctan2(linear[0, 1], linear[0, 0]))
        jitters["shift"].append(np.linalg.solve(linear, 0.5 - matrix[:, 2]) - 0.5)
        jitters["gain"].append(np.ones(3))
    jitter = {name: torch.from_numpy(np.array(values)).float() for name, values in jitters.items()}
    labels = {"coefficients": coefficients.pack(), "landmarks": seen, "iris": seen[:, :2, :2]}
    moved = jittered_labels(labels, jitter, model.at_landmarks(model.mean).mean(0))["coefficients"]
    moved = MorphableCoefficients.unpack(moved)
    return moved.pose, moved.illumination


def window_matrix(points: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random window, like an aligned crop or a square about a detected box, on a head with landmarks `(468, 3)` in sizes."""
    if rng.random() < 0.5:
        matrix = ffhq_matrix(points, 1)
        side, turn, shift = 1 / scale_of(matrix) * rng.uniform(0.93, 1.07), rng.uniform(-5, 5), rng.uniform(-0.03, 0.03, 2)
        centre = np.linalg.solve(matrix[:, :2], 0.5 - matrix[:, 2])
        right = matrix[0, :2]
    else:
        low, high = points[:, :2].min(0), points[:, :2].max(0)
        side = HEAD_MARGIN * BOX_IN_LANDMARKS * max(high - low) * rng.uniform(0.8, 1.2)
        turn, shift = np.clip(rng.normal(0, 12), -30, 30), rng.uniform(-0.12, 0.12, 2)
        turn = rng.uniform(-60, 60) if rng.random() < 0.15 else turn  # the five points may be far off
        centre = (low + high) / 2
        right_eye, left_eye = points[list(RIGHT_EYE), :2].mean(0), points[list(LEFT_EYE), :2].mean(0)
        right = upright(left_eye - right_eye, (points[61, :2] + points[291, :2] - right_eye - left_eye) / 2)
    turn = np.deg2rad(turn)
    right = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) @ right
    return square_matrix(centre + side * shift, right, side, 1)
