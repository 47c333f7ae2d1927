"""Photos and clips -> a store of training samples: one safetensors file per face. A second run recomputes nothing.

Each file holds, at 288 pixels (the 256 of the crop and a margin of 16 for jitter): `image`, `render`, `normals` (uint8, 3
channels), `guides` (feature lines, openings of eyes and mouth), `mask` (distance to the outline of the face, mouth); and in
float32: `fit` (261, the reconstruction), `coefficients` (261, as the denoiser gets them), `identity` (128), `matrix` (2, 3,
from the picture to these pixels), and in pixels of the crop proper `landmarks` (468, 3) and `iris` (2, 5, 2). Frames of clips
also hold `texture`, another frame of the same person, and get α, δ and γ of that frame.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import torch
from safetensors.numpy import save
from tqdm import tqdm

from diffdeid.errors import ImageError
from diffdeid.geometry.align import chip_matrix, ffhq_matrix, sample, warp
from diffdeid.geometry.landmarks import LIPS_OUTER
from diffdeid.io.files import write_whole
from diffdeid.io.images import read_image
from diffdeid.models.conditioning import exchange_shape, hide_skin_details
from diffdeid.models.face_analyser import FaceAnalyserModel
from diffdeid.models.face_recognition import FaceRecognitionModel
from diffdeid.models.fitting import fit
from diffdeid.models.morphable_model import MorphableModel
from diffdeid.structures import Face, FaceCrop, MorphableCoefficients
from diffdeid.training.maps import FULL, MARGIN, SIZE, regions, shown

PHOTOS = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}
CLIPS = {".mp4", ".mov", ".mkv", ".webm", ".avi"}
FRAME_STEP = 5  # frames of a clip from one sample to the next
SAME_PERSON = 0.5  # cosine of z_id above which two frames show the same person


def prepare(folder: Path, out: Path, model: str | Path = "weights/diffdeid", ready_crops: bool = False) -> Path:
    """Prepare every face of every photo, and the frames of every clip, below `folder`.

    Args:
        folder: photos and clips. A `meta.jsonl` in it may name the `set` of a `file`; otherwise the set is the folder's name.
        out: the store; faces already in it are skipped.
        model: folder of the released models.
        ready_crops: every photo shows one upright, centred face, so none is searched.

    Returns:
        The store's folder.
    """
    out.mkdir(parents=True, exist_ok=True)
    analyser = FaceAnalyserModel.from_pretrained(model, subfolder="face_analyser")
    recogniser = FaceRecognitionModel.from_pretrained(model, subfolder="face_recognition").float().eval()
    morphable_model = MorphableModel.from_pretrained(model, subfolder="morphable_model").float()
    meta = folder / "meta.jsonl"
    rows = [json.loads(line) for line in meta.read_text().splitlines()] if meta.is_file() else []
    sets = {row["file"]: row["set"] for row in rows}

    models = analyser, recogniser, morphable_model
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in PHOTOS | CLIPS and path.parent.name != "labels")
    done = out / "done.txt"  # pictures without a face leave no file: remember them too
    finished = set(done.read_text().split("\n")) if done.is_file() else set()
    for path in tqdm(paths, desc="faces", unit="file"):
        name = path.relative_to(folder).as_posix().replace("/", "__")  # with its suffix: a.jpg and a.png are two photos
        if name in finished:
            continue
        try:
            faces = prepare_clip(path, *models) if path.suffix.lower() in CLIPS else prepare_photo(path, *models, ready_crops)
        except (ImageError, av.FFmpegError) as error:
            tqdm.write(f"{path}: {error}")
            continue
        for number, face in faces.items():
            target = out / (f"{name}.safetensors" if number == 0 else f"{name}__{number}.safetensors")
            write_whole(target, save(face, {"set": sets.get(path.name, path.parent.name)}))
        with done.open("a") as file:
            file.write(name + "\n")
    return out


def prepare_photo(
    path: Path,
    analyser: FaceAnalyserModel,
    recogniser: FaceRecognitionModel,
    morphable_model: MorphableModel,
    ready_crop: bool = False,
) -> dict[int, dict[str, np.ndarray]]:
    """The faces of a photo, by number; raises `ImageError` if it cannot be read."""
    image = np.asarray(read_image(path).image)
    faces = [face for face in analyser(image, [centred_face(image)] if ready_crop else None) if face.iris is not None]
    return {number: prepare_face(image, face, recogniser, morphable_model) for number, face in enumerate(faces)}


def prepare_clip(
    path: Path, analyser: FaceAnalyserModel, recogniser: FaceRecognitionModel, morphable_model: MorphableModel
) -> dict[int, dict[str, np.ndarray]]:
    """The largest face of every fifth frame, by frame number, each paired with another frame of the same person."""
    frames = {}
    with av.open(str(path)) as clip:
        for number, frame in enumerate(clip.decode(video=0)):
            if number % FRAME_STEP == 0:
                image = frame.to_ndarray(format="rgb24")
                faces = [face for face in analyser(image) if face.iris is not None]
                if faces:
                    frames[number] = prepare_face(image, faces[0], recogniser, morphable_model)  # the largest
    pairs = {}
    for number, target in frames.items():
        alike = [
            other for other in frames.values() if other is not target and other["identity"] @ target["identity"] > SAME_PERSON
        ]
        if alike:
            pairs[number] = pair_frames(target, alike[number * 7919 % len(alike)], morphable_model)  # any, the same each time
    return pairs


def centred_face(image: np.ndarray) -> Face:
    """The box of the face in a crop with about FFHQ's framing."""
    height, width = image.shape[:2]
    return Face(box=np.array([0.18 * width, 0.16 * height, 0.82 * width, 0.94 * height], np.float32))


@torch.no_grad()
def prepare_face(
    image: np.ndarray, face: Face, recogniser: FaceRecognitionModel, morphable_model: MorphableModel
) -> dict[str, np.ndarray]:
    """Compute the arrays of one face (see the top of the module)."""
    matrix = ffhq_matrix(face.landmarks, SIZE)
    wide = matrix + [[0, 0, MARGIN], [0, 0, MARGIN]]
    crop = FaceCrop(warp(image, wide, FULL), matrix)
    landmarks, iris = crop.to_crop(face.landmarks), crop.to_crop(face.iris)
    inner = torch.from_numpy(crop.image[MARGIN:-MARGIN, MARGIN:-MARGIN].copy()).float()[None] / 255  # (1, 256, 256, 3)
    placed = torch.from_numpy(landmarks).float()[None], torch.from_numpy(iris).float()[None]
    reconstruction = fit(morphable_model, *placed, inner)
    chips = sample(inner.permute(0, 3, 1, 2) * 2 - 1, torch.from_numpy(chip_matrix(landmarks))[None], 150)
    return {
        "image": crop.image,
        "mask": regions(landmarks),
        "fit": reconstruction.pack()[0].numpy(),
        "identity": recogniser(chips).embedding[0].numpy(),
        "landmarks": landmarks.astype(np.float32),
        "iris": iris.astype(np.float32),
        "matrix": wide.astype(np.float32),
    } | shown(morphable_model, hide_skin_details(morphable_model, reconstruction))


@torch.no_grad()
def pair_frames(
    target: dict[str, np.ndarray], reference: dict[str, np.ndarray], morphable_model: MorphableModel
) -> dict[str, np.ndarray]:
    """A frame for video mode: the person is taken from another frame, `reference`; ρ̂ = {α_d, β'_f, δ_d, γ_d, p_f, ω_f}."""
    frame, person = (MorphableCoefficients.unpack(torch.from_numpy(face["fit"])[None]) for face in (target, reference))
    mixed = exchange_shape(morphable_model, frame, person.shape, LIPS_OUTER)
    mixed = replace(mixed, albedo=person.albedo, illumination=person.illumination)
    texture = {"texture": reference["image"]}
    return target | texture | shown(morphable_model, hide_skin_details(morphable_model, mixed))
