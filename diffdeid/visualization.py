"""The 3D reconstruction of the faces of a photo, drawn and as mesh files. For developers: it shows the source faces."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diffdeid.engine.pictures import draw_seeds
from diffdeid.errors import ImageError, NoFaceFoundError
from diffdeid.geometry.camera import project, to_camera
from diffdeid.geometry.eyes import eye_coordinates, paint_eyes
from diffdeid.geometry.mesh_io import write_obj, write_ply
from diffdeid.geometry.pixels import on_host, to_bytes
from diffdeid.geometry.renderer import Rendering, render
from diffdeid.io.files import taken, write_whole
from diffdeid.io.images import check_writable, read_image, write_image
from diffdeid.models.conditioning import exchange_shape
from diffdeid.models.morphable_model import MorphableModel, MorphableModelOutput
from diffdeid.options import DeidentifyOptions
from diffdeid.pipelines.pipeline_diffdeid import DiffDeIDPipeline
from diffdeid.stages.detect import why_covered
from diffdeid.structures import Face, FaceJob, MorphableCoefficients

MESH_WRITERS = {".obj": write_obj, ".ply": write_ply}
GREY, WHITE = 0.6, 1.0
LANDMARK_COLOUR = (0.1, 1.0, 0.3)
STUDIO_LIGHT = (0.5, 0, 0.5, 0, 0, 0, 0, 0, 0)  # spherical harmonics: light from all sides, and more from the viewer
SIDE_DISTANCE = 3.0  # decimetres back, so that the whole head fits


@torch.no_grad()
def reconstruct_photo(
    pipe: DiffDeIDPipeline,
    photo: Path,
    output: Path,
    mesh: Path | None,
    reconstruction: Literal["fit", "network"],
    seed: int | None,
    overwrite: bool,
) -> list[Path]:
    """Draw all faces of a photo, one row each, largest first.

    Args:
        output: the picture to write.
        mesh: an .obj or .ply file for the head, in head space and decimetres; several faces are numbered `_1`, `_2`, ….
        reconstruction: "fit" or "network", as in `DiffDeIDPipeline`.
        seed: of the other identities; fresh randomness when `None`.

    Returns:
        The files written.

    Raises:
        NoFaceFoundError: no face with landmarks was found.
        ImageError: the photo cannot be read, or an output exists and `overwrite` is off.
        ValueError: the suffix of `mesh` is unknown, or an output is the input.
    """
    if mesh is not None and mesh.suffix.lower() not in MESH_WRITERS:
        raise ValueError(f"A mesh must be one of {', '.join(MESH_WRITERS)}, got `{mesh}`.")
    check_writable(output, False, overwrite)
    picture = read_image(photo)
    pixels = np.asarray(picture.image)
    faces = [face for face in pipe.detect_faces(pixels) if why_covered(face) is None]
    if not faces:
        raise NoFaceFoundError(f"No face whose landmarks can be placed was found in `{photo}`.")
    meshes = []
    if mesh is not None:
        numbers = [""] if len(faces) == 1 else [f"_{number}" for number in range(1, len(faces) + 1)]
        meshes = [mesh.with_name(mesh.stem + number + mesh.suffix) for number in numbers]
    for path in (output, *meshes):
        if path.exists() and path.samefile(photo):
            raise ValueError(f"`{path}` is the input and would be an output. Inputs are never written to.")
        if path.exists() and not overwrite:
            raise ImageError(taken(path))

    jobs = [FaceJob(pixels, face) for face in faces]
    source = pipe.engine.reconstruct(jobs, DeidentifyOptions(attributes="any", reconstruction=reconstruction))
    generator = torch.Generator()
    generator.seed() if seed is None else generator.manual_seed(seed)
    panels = draw(pipe.morphable_model, (source.images.permute(0, 2, 3, 1) + 1) / 2, source.coefficients, generator)
    sheet = Image.fromarray(panels.mul(255).round().byte().cpu().numpy())
    files = [encode_mesh(pipe.morphable_model, source.coefficients.pick([row]), path.suffix) for row, path in enumerate(meshes)]

    for path in (output, *meshes):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_image(output, sheet, icc_profile=picture.icc_profile, overwrite=overwrite)
    for path, content in zip(meshes, files, strict=True):
        try:
            write_whole(path, content, overwrite)
        except FileExistsError as error:  # another program wrote it meanwhile
            raise ImageError(taken(path)) from error
    return [output, *meshes]


@torch.no_grad()
def draw(model: MorphableModel, crops: Tensor, coefficients: MorphableCoefficients, generator: torch.Generator) -> Tensor:
    """Draw five panels side by side, one row for each face, `(B * S, 5 * S, 3)` in 0…1.

    They show the crop; the crop under the render, with the landmarks of the fitted head; the render; the render of somebody else
    (random α' and δ', with the same skin tone) in the same pose, light, expression and gaze; and the head from the side.

    Args:
        crops: `(B, S, S, 3)` in 0…1.
        coefficients: ρ of their faces.
    """
    size = crops.shape[1]
    own = _render(model, coefficients, size)
    overlay = torch.where(own.mask[..., None], (crops + own.image.clamp(0, 1)) / 2, crops)
    head = model(coefficients.shape, coefficients.expression)
    points = project(to_camera(head.landmarks, coefficients.pose), size)[..., :2].floor().long()
    face, number = ((points >= 0) & (points < size)).all(-1).nonzero(as_tuple=True)
    column, row = points[face, number].unbind(1)
    overlay[face, row, column] = overlay.new_tensor(LANDMARK_COLOUR)

    identity, detail = (
        torch.randn(values.shape, generator=generator).to(values) for values in (coefficients.shape, coefficients.albedo)
    )
    tone = model.config.num_tone
    other = exchange_shape(model, coefficients, identity, range(468))
    other = replace(other, albedo=torch.cat([coefficients.albedo[:, :tone], detail[:, tone:]], dim=1))

    pictures = [own, _render(model, other, size)]
    panels = [crops, overlay] + [torch.where(each.mask[..., None], each.image.clamp(0, 1), WHITE) for each in pictures]
    panels.append(_from_the_side(model, coefficients, size))
    return torch.cat(panels, dim=2).flatten(0, 1)


@torch.no_grad()
def encode_mesh(model: MorphableModel, coefficients: MorphableCoefficients, suffix: str) -> bytes:
    """The head of one face as an .obj or .ply file: unposed, unlit, with its irises."""
    head = model(coefficients.shape, coefficients.expression, coefficients.albedo)
    colours = paint_eyes(head.albedo, _eyes(model, head, coefficients))
    arrays = (tensor.cpu().numpy() for tensor in (head.vertices[0], model.triangles, colours[0]))
    return MESH_WRITERS[suffix.lower()](*arrays)


def _eyes(model: MorphableModel, head: MorphableModelOutput, coefficients: MorphableCoefficients) -> Tensor:
    posed = (to_camera(points, coefficients.pose) for points in (head.vertices, head.landmarks))
    return eye_coordinates(*posed, model.eyeballs, coefficients.gaze)


def _render(model: MorphableModel, coefficients: MorphableCoefficients, size: int) -> Rendering:
    head = model(coefficients.shape, coefficients.expression, coefficients.albedo)
    vertices, eyes = to_camera(head.vertices, coefficients.pose), _eyes(model, head, coefficients)
    return render(vertices, head.albedo, coefficients.illumination, model.triangles, size, eyes=eyes)


def _from_the_side(model: MorphableModel, coefficients: MorphableCoefficients, size: int) -> Tensor:
    """The bare shape, grey on white, looking to the right, `(B, S, S, 3)`."""
    vertices = model(coefficients.shape, coefficients.expression).vertices
    vertices = vertices - (vertices.amax(1, keepdim=True) + vertices.amin(1, keepdim=True)) / 2
    turn = vertices.new_tensor([0, math.pi / 2, 0, 0, 0, -SIDE_DISTANCE]).expand(len(vertices), 6)
    light = vertices.new_tensor(STUDIO_LIGHT).repeat_interleave(3).expand(len(vertices), 27)
    picture = render(to_camera(vertices, turn), torch.full_like(vertices, GREY), light, model.triangles, size)
    return torch.where(picture.mask[..., None], picture.image.clamp(0, 1), WHITE)


@torch.no_grad()
def stages(
    pipe: DiffDeIDPipeline,
    picture: np.ndarray,
    face: Face,
    others: Sequence[Face],
    options: DeidentifyOptions,
    generator: torch.Generator,
) -> dict[str, np.ndarray]:
    """De-identify one face that has landmarks and irises, step by step: captions and `(S, S, 3)` uint8 pictures.

    `others` are all faces of the picture; they are erased from the surroundings that the new person is to fit. One attempt is
    made, and shown even if it fails the checks. **Most of these pictures show the source.**
    """
    source, attempt = pipe.engine.try_once(FaceJob(picture, face, others, draw_seeds(generator, 1)), options)
    maps = {
        "1 · The face, aligned": source.images[0],
        "2 · What is left of it: hair, light, background (I_m)": (source.images * (1 - source.masks))[0],
        "3 · The new head in the old pose, expression and light (I'_3d)": attempt.maps[1:4],
        "4 · Its normals": attempt.maps[4:7],
        "5 · Its feature lines": attempt.maps[7:8].expand(3, -1, -1),
        "6 · Where its eyes look": attempt.maps[8:9].expand(3, -1, -1),
    }
    verdict = attempt.problem or f"distance {attempt.identity_distance:.2f}"
    panels = {text: on_host(to_bytes(one[None])[0]) for text, one in maps.items()}
    return panels | {f"7 · Painted, and compared with the old one: {verdict}": attempt.result}
