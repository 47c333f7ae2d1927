"""Measure the 3D reconstruction on held-out faces: the numbers of `docs/reconstruction.md`.

    python scripts/evaluate_reconstruction.py --photos VAL --people LONDON --clips CLIPS [--network FOLDER]
    python scripts/evaluate_reconstruction.py --turned renders.npz --photos VAL --network FOLDER

All but `--turned` are stores of `diffdeid data prepare`. Faces of people are named `<person>_neutral…` and `<person>_smiling…`,
those of clips `<clip>__<frame>`. Turned heads are renders from the training of the network (`head_renders`), of other people.
Errors are in percent of the distance between the eyes' centres, which is three-dimensional for turned heads.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from diffdeid.geometry.camera import DISTANCE, FOCAL, project, to_camera
from diffdeid.geometry.eyes import eye_frame, iris_centres
from diffdeid.geometry.landmarks import EYE_CORNERS
from diffdeid.geometry.renderer import render
from diffdeid.geometry.rotation import rotation_matrix, rotation_vector
from diffdeid.models.face_reconstructor import FaceReconstructorModel
from diffdeid.models.fitting import fit
from diffdeid.models.morphable_model import MorphableModel
from diffdeid.structures import MorphableCoefficients
from diffdeid.training.data import MARGIN as STORE_MARGIN
from diffdeid.training.data import FaceStore
from diffdeid.training.prepare import MARGIN, SIZE
from diffdeid.training.reconstructor_data import picture_landmarks

Method = Callable[[Tensor, Tensor, Tensor], MorphableCoefficients]


def area_under_curve(positive: np.ndarray, negative: np.ndarray) -> float:
    """The probability that a positive score is above a negative one (ties count half)."""
    less = np.searchsorted(np.sort(negative), positive, "left") + np.searchsorted(np.sort(negative), positive, "right")
    return float(less.mean() / (2 * len(negative)))


def read(store: FaceStore, names: list[str]) -> tuple[Tensor, Tensor, Tensor]:
    """Landmarks, irises and pictures `(N, 256, 256, 3)` in 0…1."""
    inner = slice(MARGIN, MARGIN + SIZE)
    columns = []
    for key in ("landmarks", "iris", "image"):
        columns.append(torch.from_numpy(np.stack([store.open(name).get_tensor(key) for name in names])))
    return columns[0], columns[1], columns[2][:, inner, inner].float() / 255


def reconstruct(method: Method, store: FaceStore, names: list[str], model: MorphableModel) -> tuple[MorphableCoefficients, dict]:
    """Reconstruct the faces one at a time; gives ρ and its errors, an array for each metric."""
    packed, errors = [], {"landmarks": [], "photometric": [], "gaze": [], "pose": [], "seconds": []}
    for name in tqdm(names, unit="face"):
        landmarks, iris, picture = read(store, [name])
        started = time.perf_counter()
        found = method(landmarks, iris, picture)
        errors["seconds"].append(time.perf_counter() - started)
        packed.append(found.pack())
        head = model(found.shape, found.expression, found.albedo)
        vertices = to_camera(head.vertices, found.pose)
        points = project(to_camera(head.landmarks, found.pose), SIZE)
        eyes = eye_frame(landmarks)[0]
        between = (eyes[:, 0] - eyes[:, 1]).norm()
        errors["landmarks"].append((points - landmarks)[..., :2].norm(dim=-1).mean() / between * 100)
        errors["gaze"].append((iris_centres(points, found.gaze) - iris[:, :, 0]).norm(dim=-1).mean() / between * 100)
        drawn = render(vertices, head.albedo, found.illumination, model.triangles, SIZE)
        low, high = landmarks[0, :, :2].amin(0).int(), landmarks[0, :, :2].amax(0).int()
        box = torch.zeros(SIZE, SIZE, dtype=torch.bool)
        box[max(low[1], 0) : high[1], max(low[0], 0) : high[0]] = True
        seen = drawn.mask[0] & (drawn.normals[0, ..., 2] > 0.3) & box
        errors["photometric"].append((drawn.image[0].clamp(0, 1) - picture[0])[seen].abs().mean())
        errors["pose"].append(angle_between(found.pose[:, :3], perspective_pose(model, landmarks)))
    return MorphableCoefficients.unpack(torch.cat(packed)), {name: np.array(values, float) for name, values in errors.items()}


def perspective_pose(model: MorphableModel, landmarks: Tensor) -> Tensor:
    """The rotation vector `(1, 3)` by OpenCV's solvePnP for the mean head, which errs because faces have other shapes."""
    points = model.at_landmarks(model.mean).numpy().astype(float) * [1, -1, -1]  # OpenCV: y down, z away
    matrix = np.array([[FOCAL * SIZE, 0, SIZE / 2], [0, FOCAL * SIZE, SIZE / 2], [0, 0, 1]])
    start = np.zeros((3, 1)), np.array([[0], [0], [DISTANCE]])
    _, vector, _ = cv2.solvePnP(points, landmarks[0, :, :2].numpy().astype(float), matrix, None, *start, True)
    return torch.from_numpy(vector[:, 0] * [1, -1, -1]).float()[None]


def angle_between(first: Tensor, second: Tensor) -> float:
    """Degrees between two rotation vectors `(1, 3)`."""
    return float(rotation_vector(rotation_matrix(first).mT @ rotation_matrix(second)).norm().rad2deg())


def identity_and_expression(coefficients: MorphableCoefficients, names: list[str], units: list[str]) -> dict[str, float]:
    """How well α tells people apart and β tells smiles, for people with a neutral and a smiling photo each."""
    person, smiling = np.array([name.split("_")[0] for name in names]), np.array(["smiling" in name for name in names])
    alpha = torch.nn.functional.normalize(coefficients.shape, dim=1)
    cosine = (alpha @ alpha.mT).numpy()
    upper = np.triu_indices(len(names), 1)
    same = (person[:, None] == person)[upper]
    gallery = cosine[np.ix_(smiling, ~smiling)]
    beta = coefficients.expression[:, : len(units)].double().numpy()
    score = beta[:, units.index("mouthSmileLeft")] + beta[:, units.index("mouthSmileRight")]
    scores = np.zeros(len(names))  # a discriminant over all of β, for each person from the others
    for one in np.unique(person):
        others = person != one
        happy, calm = beta[others & smiling], beta[others & ~smiling]
        spread = np.cov(happy.T) + np.cov(calm.T) + 0.01 * np.eye(len(units))
        scores[person == one] = beta[person == one] @ np.linalg.solve(spread, happy.mean(0) - calm.mean(0))
    paired = [score[(person == one) & smiling].mean() > score[(person == one) & ~smiling].mean() for one in np.unique(person)]
    return {
        "identity AUC by α": area_under_curve(cosine[upper][same], cosine[upper][~same]),
        "rank-1 by α": float((person[~smiling][gallery.argmax(1)] == person[smiling]).mean()),
        "smile AUC by mouthSmile": area_under_curve(score[smiling], score[~smiling]),
        "smile AUC by β, discriminant": area_under_curve(scores[smiling], scores[~smiling]),
        "same person smiles more in the smiling photo": float(np.mean(paired)),
    }


def unrest(coefficients: MorphableCoefficients, names: list[str], model: MorphableModel) -> float:
    """Mean distance of landmarks, in head space, from the mean of the frames before and after, in pixels of a 256-pixel crop."""
    jitter = []
    clips = np.array([name.rsplit("__", 1)[0] for name in names])
    heads = torch.cat(
        [model(a, b).landmarks for a, b in zip(coefficients.shape.split(64), coefficients.expression.split(64), strict=True)]
    )
    for clip in np.unique(clips):
        track = heads[torch.from_numpy(clips == clip)] * FOCAL * SIZE / DISTANCE
        jitter.append((track[1:-1] - (track[2:] + track[:-2]) / 2).norm(dim=-1).mean().item())
    return float(np.mean(jitter))


def turned_heads(network: FaceReconstructorModel, path: Path, model: MorphableModel) -> None:
    """Print the errors on renders in front of grey, by how far the heads are turned."""
    with np.load(path) as file:
        renders, labels, truth = (file[name] for name in ("pictures", "coefficients", "landmarks"))
    rho = MorphableCoefficients.unpack(torch.from_numpy(labels))
    errors, doubts = [], []
    for number, render_of in enumerate(tqdm(renders, unit="head")):
        margin = round(len(render_of) * STORE_MARGIN)
        opacity = render_of[..., 3:] / np.float32(255)
        picture = (render_of[..., :3] + (1 - opacity) * 128)[margin:-margin, margin:-margin]
        found = network(torch.from_numpy(picture / 127.5 - 1).permute(2, 0, 1)[None].float())
        landmarks = torch.from_numpy(truth[number : number + 1])
        head = model(found.coefficients.shape, found.coefficients.expression)
        off = (picture_landmarks(head.landmarks, found.coefficients.pose) - landmarks)[..., :2].norm(dim=-1).mean()
        eyes = landmarks[:, torch.tensor(EYE_CORNERS)].mean(2)
        turn = angle_between(found.coefficients.pose[:, :3], rho.pose[number : number + 1, :3])
        errors.append([100 * float(off / (eyes[:, 0] - eyes[:, 1]).norm()), turn])
        doubts.append([float(off), float(found.expected_error)])
    rotation = rotation_matrix(rho.pose[:, :3])
    yaw = torch.atan2(rotation[:, 0, 2], rotation[:, 2, 2]).abs().rad2deg().numpy()
    for low, high in ((0, 30), (30, 60), (60, 180)):
        some = np.array(errors)[(yaw >= low) & (yaw < high)]
        (landmarks, pose), median = some.mean(0), np.median(some[:, 0])
        print(f"  yaw {low}…{high}°, {len(some)} heads: landmarks {landmarks:.2f} (median {median:.2f}), pose {pose:.2f}°")
    real, expected = np.log(doubts).T
    print(f"  expected and real error correlate by {np.corrcoef(real, expected)[0, 1]:.2f} (logarithms)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--people", type=Path)
    parser.add_argument("--clips", type=Path)
    parser.add_argument("--turned", type=Path, help="renders of turned heads")
    parser.add_argument("--frames", type=int, default=40, help="consecutive frames of each clip")
    parser.add_argument("--limit", type=int, default=None, help="photos to use")
    parser.add_argument("--model", type=Path, default=Path("weights/diffdeid/morphable_model"))
    parser.add_argument("--network", type=Path, help="a FaceReconstructorModel to measure beside the fit")
    args = parser.parse_args()
    if args.turned is not None and args.network is None:
        parser.error("--turned needs a --network: the fit would get the true landmarks of turned heads.")
    torch.set_grad_enabled(False)
    model = MorphableModel.from_pretrained(args.model).float()
    methods: dict[str, Method] = {"fit": lambda landmarks, iris, picture: fit(model, landmarks, iris, picture)}
    if args.network is not None:
        network = FaceReconstructorModel.from_pretrained(args.network).float().eval()
        if args.turned is not None:
            print("network, turned heads")
            turned_heads(network, args.turned, model)
        methods["network"] = lambda landmarks, iris, picture: network(2 * picture.permute(0, 3, 1, 2) - 1).coefficients

    for title, method in methods.items():
        for label, folder in (("photos", args.photos), ("people", args.people), ("clips", args.clips)):
            if folder is None:
                continue
            store = FaceStore(folder)
            names = store.names[: args.limit] if label == "photos" else store.names
            if label == "clips":
                clips = sorted({name.rsplit("__", 1)[0] for name in names})
                names = [name for clip in clips for name in [n for n in names if n.startswith(clip + "__")][: args.frames]]
            found, errors = reconstruct(method, store, names, model)
            print(f"{title}, {label}, {len(names)} faces")
            for name, values in errors.items():
                print(f"  {name}: mean {values.mean():.3f}, median {np.median(values):.3f}, 95 % {np.quantile(values, 0.95):.3f}")
            if label == "people":
                for name, value in identity_and_expression(found, names, model.config.expression_names).items():
                    print(f"  {name}: {value:.3f}")
            if label == "clips":
                print(f"  unrest: {unrest(found, names, model):.3f} pixels")


if __name__ == "__main__":
    main()
