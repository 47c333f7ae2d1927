"""Learn from photographs which heads, expressions and skins are likely, for the morphable model.

    python scripts/learn_morphable_model.py --store STORE --model RAW_MODEL --out weights/diffdeid/morphable_model

`--model` is what `scripts/build_morphable_model.py` wrote; `--store` is a store of `diffdeid data prepare`, of which only the
pictures, landmarks and irises are used. Only statistics leave the photographs. With `--landmarks-only`, for another network that
places landmarks, `--model` is a released head, whose directions and priors stay: the denoiser was trained with them.

1. Landmarks: find where the network's points lie on the mesh, from neutral faces fitted without expression.
2. Shape: fit all faces, re-estimate the priors of α and β and the noise of the landmarks, repeat; then keep 80 directions.
3. Skin: divide the colours seen at the vertices by the light, left and right together; three directions of skin tone, then a PCA
   of what tone does not explain. The light is fitted with the skin found so far, so this is done twice.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from diffdeid.conversion.landmark_placement import shown_triangles, snap_to_surface
from diffdeid.geometry.camera import project, to_camera
from diffdeid.geometry.landmarks import (
    LEFT_BROW,
    LEFT_EYE,
    LIPS_INNER,
    LIPS_OUTER,
    LOWER_LIP_INNER,
    RIGHT_BROW,
    RIGHT_EYE,
    UPPER_LIP_INNER,
)
from diffdeid.geometry.lighting import sh_basis, shade
from diffdeid.geometry.renderer import vertex_normals
from diffdeid.models.fitting import HeadFit, fit_appearance, fit_shape_and_pose, sample_vertices
from diffdeid.models.morphable_model import MorphableModel
from diffdeid.training.data import FaceStore
from diffdeid.training.head_statistics import (
    MIRROR,
    covariances,
    landmark_residuals,
    learn_expression,
    learn_identity,
    mean_offsets,
    mirror_twins,
    probabilistic_pca,
)
from diffdeid.training.mirror import expression_twins
from diffdeid.training.prepare import MARGIN, SIZE

BATCH = 16
NUM_IDENTITY, NUM_ALBEDO, NUM_TONE = 80, 80, 3
FACES_OF_A_SET = {"cam": 260, "gen": 150, "aaf": 260, "sport": 260, "ai": 150, "scut": 150, "utk": 350, "video": 300}
SKINS_OF_A_SET = {"cam": 350, "gen": 200, "aaf": 300, "sport": 400, "ai": 100, "scut": 50, "utk": 350, "video": 50}
NEUTRAL_SETS = ("scut",)
SKIN, SCLERA = (0.72, 0.56, 0.48), 0.85  # where the iteration starts, in sRGB values
MEAN_LIGHT_SPREAD, MEAN_LIGHT_CHROMA = 0.08, 0.04  # of the light over the whole face, all channels alike and each by itself
FEW_FACES = 5  # weight of the prior, in faces: a vertex that only so many show moves half of the way
REACH = 0.13  # most decimetres from a landmark to a vertex of the face
LIP_REACH = 0.08  # the same for the lips
UPPER_LIP, LOWER_LIP = 0.3, 0.45  # movement when the jaw opens, relative to the largest: the upper lip less, the lower lip more


def sample_names(store: FaceStore, counts: dict[str, int], rng: np.random.Generator) -> list[str]:
    """A random choice of faces, `counts` of each set."""
    sets: dict[str, list[str]] = {}
    for name in store.names:
        sets.setdefault(store.open(name).metadata()["set"], []).append(name)
    return [name for s, names in sorted(sets.items()) for name in rng.permutation(names)[: counts.get(s, 0)]]


def read(store: FaceStore, names: list[str], key: str) -> Tensor:
    return torch.from_numpy(np.stack([store.open(name).get_tensor(key) for name in names]))


def read_crops(store: FaceStore, names: list[str]) -> Tensor:
    """The crops proper, `(N, 256, 256, 3)` uint8."""
    inner = slice(MARGIN, MARGIN + SIZE)
    return torch.from_numpy(np.stack([store.open(name).get_tensor("image")[inner, inner] for name in tqdm(names, desc="read")]))


def fit_all(model: MorphableModel, landmarks: Tensor) -> HeadFit:
    fits = [fit_shape_and_pose(model, part, SIZE) for part in tqdm(landmarks.split(BATCH), desc="fit", unit="batch")]
    return HeadFit(*(torch.cat([getattr(f, n) for f in fits]) for n in ("shape", "expression", "pose", "information")))


# 1. Landmarks


def outer_skin(model: MorphableModel) -> Tensor:
    """Triangles `(T, 3)` that are seen from the front and the sides, without the mouth's inside, the sockets and the eyeballs."""
    sides = [torch.tensor([[pitch, yaw, 0, 0, 0, -2.5]]) for yaw in (-0.5, 0, 0.5) for pitch in (-0.2, 0, 0.2)]
    shown = shown_triangles(model.mean, model.triangles, sides)
    return model.triangles[shown & ~(model.eyeballs[model.triangles] > 0).any(1)]


def lip_triangles(model: MorphableModel) -> tuple[Tensor, Tensor]:
    """Triangles `(T, 3)` of the upper and of the lower lip, including those inside the closed mouth."""
    near = torch.cdist(model.mean, model.at_landmarks(model.mean)[list(LIPS_INNER)]).amin(1) < LIP_REACH
    opening = model.expression_basis[model.config.expression_names.index("jawOpen")].norm(dim=-1)
    lips = model.triangles[near[model.triangles].all(1)]
    opened = (opening / opening.max())[lips].mean(1)
    return lips[opened < UPPER_LIP], lips[opened > LOWER_LIP]


def move_landmarks(model: MorphableModel, offsets: Tensor) -> None:
    """Shift landmarks on the mean head, and put them back on its surface; those of the inner lips on their own lip."""
    lower, upper = list(LOWER_LIP_INNER), list(UPPER_LIP_INNER)
    others = sorted(set(range(468)) - {*lower, *upper})
    points = (model.at_landmarks(model.mean) + offsets).numpy()
    for moved, surface in zip((upper, lower, others), (*lip_triangles(model), outer_skin(model)), strict=True):
        corners, weights = snap_to_surface(points[moved], model.mean, surface, np.ones((len(moved), len(surface)), bool))
        model.landmark_corners[moved], model.landmark_weights[moved] = corners, weights


def place_landmarks(model: MorphableModel, landmarks: Tensor, rounds: int = 3) -> None:
    """Move the landmarks to where neutral faces `(N, 468, 3)` show them, as far as other heads do not explain it."""
    twins = mirror_twins(model.at_landmarks(model.mean))
    likely, whitening = model.identity_basis.clone(), model.expression_whitening.clone()
    model.identity_basis.mul_(0.5)
    model.expression_whitening.copy_(60 * torch.eye(len(whitening)))
    for _ in range(rounds):
        fitted = fit_all(model, landmarks)
        offsets = mean_offsets(fitted, landmark_residuals(model, fitted, landmarks, SIZE))
        offsets = (offsets + offsets[twins] * torch.tensor(MIRROR)) / 2
        print(f"landmarks move by {100 * offsets.norm(dim=1).mean():.2f} mm")
        move_landmarks(model, offsets)
    model.identity_basis.copy_(likely)
    model.expression_whitening.copy_(whitening)


# 2. Shape


def learn_shape(model: MorphableModel, landmarks: Tensor, rounds: int = 4, landmarks_only: bool = False) -> None:
    """Expectation-maximisation of the noise of each landmark and, without `landmarks_only`, of the priors of α and β."""
    landmark_twins = mirror_twins(model.at_landmarks(model.mean))
    unit_twins = torch.tensor(expression_twins(model.config.expression_names))
    num_identity, num_expression = len(model.identity_basis), len(model.expression_basis)
    for _ in range(rounds):
        fitted = fit_all(model, landmarks)
        residuals = landmark_residuals(model, fitted, landmarks, SIZE)
        noise = residuals.square().mean((0, 2)).sqrt().clamp_min(0.004)
        model.landmark_noise[:, 0] = (noise + noise[landmark_twins]) / 2
        print(f"mean landmark residual {100 * residuals.norm(dim=-1).mean():.3f} mm")
        if landmarks_only:
            continue
        uncertainty = covariances(fitted).mean(0)
        learn_identity(model, fitted.shape, uncertainty[:num_identity, :num_identity])
        rows = slice(num_identity, num_identity + num_expression)
        learn_expression(model, fitted.expression[:, :num_expression], 0.25 * uncertainty[rows, rows], unit_twins)
    print(
        "expression means:",
        {n: round(v, 2) for n, v in zip(model.config.expression_names, model.expression_mean.tolist(), strict=True) if v > 0.1},
    )


# 3. Skin


def start_skin(model: MorphableModel) -> None:
    """Start with one colour for all skin, three directions of it, and the prior of the light.

    Single photographs cannot tell how much of a colour is skin and how much is light. So the prior says that the brightness of
    light varies less than that of skin, and its tint about as much (cameras' white balance).
    """
    twins = mirror_twins(model.mean)
    near = torch.cdist(model.mean, model.at_landmarks(model.mean)).amin(1) < REACH
    outside = torch.zeros(len(model.mean), dtype=torch.bool)
    outside[outer_skin(model).unique()] = True
    region = near & outside
    model.face_region.copy_(region & region[twins])
    eyeball = model.eyeballs > 0
    model.albedo_mean.copy_(torch.where(eyeball[:, None], torch.tensor(SCLERA), torch.tensor(SKIN)))
    tone = torch.tensor([[0.16, 0.15, 0.14], [0.05, 0.0, -0.05], [0.015, -0.02, 0.015]])
    model.albedo_basis.zero_()
    model.albedo_basis[:NUM_TONE] = tone[:, None] * ~eyeball[:, None]

    mean = torch.tensor([0.65, 0.1, 0.3, 0, 0, 0, 0, 0, 0])
    common, chroma = torch.tensor([0.2] + [0.25] * 3 + [0.12] * 5), torch.tensor([0.06] + [0.04] * 3 + [0.02] * 5)
    model.illumination_mean.copy_(mean[:, None].expand(9, 3).flatten())
    covariance = torch.kron(common.square().diag(), torch.ones(3, 3)) + torch.kron(chroma.square().diag(), torch.eye(3))
    precision = torch.cholesky_inverse(torch.linalg.cholesky(covariance))
    # Several harmonics together brighten a face as a whole, so their sum must not vary much.
    normals = vertex_normals(model.mean[None], model.triangles)[0, model.face_region > 0]
    whole = sh_basis(normals).mean(0)
    brightness = MEAN_LIGHT_SPREAD**2 * torch.ones(3, 3) + MEAN_LIGHT_CHROMA**2 * torch.eye(3)
    precision += torch.kron(torch.outer(whole, whole), torch.linalg.inv(brightness).contiguous())
    model.illumination_whitening.copy_(torch.linalg.cholesky(precision).mT)


def observe_skin(model: MorphableModel, images: Tensor, fitted: HeadFit) -> tuple[Tensor, Tensor, Tensor]:
    """Albedo and its weight at the face's vertices, `(N, F, 3)` and `(N, F)`, left and right averaged; and the mean light."""
    region = model.face_region.nonzero().squeeze(1)
    twins = mirror_twins(model.mean[region])
    albedos, weights, lights = [], [], []
    for rows in tqdm(torch.arange(len(images)).split(BATCH), desc="skin", unit="batch"):
        picture = images[rows].float() / 255
        vertices = to_camera(model(fitted.shape[rows], fitted.expression[rows]).vertices, fitted.pose[rows])
        appearance = fit_appearance(model, vertices, picture)
        normals = vertex_normals(vertices, model.triangles)[:, region]
        shading = shade(torch.ones_like(normals), normals, appearance.illumination)
        colour = sample_vertices(picture, project(vertices[:, region], 1)[..., :2])
        weight = appearance.weight * (shading.amin(-1) / 0.5).clamp(0, 1) * (normals[..., 2] / 0.7).clamp(0, 1)
        value = colour / shading.clamp_min(0.15)
        total = weight + weight[:, twins]
        albedos.append((value * weight[..., None] + (value * weight[..., None])[:, twins]) / total.clamp_min(1e-6)[..., None])
        weights.append(total.clamp(0, 1))
        lights.append(appearance.illumination)
    return torch.cat(albedos), torch.cat(weights), torch.cat(lights).mean(0)


def learn_skin(model: MorphableModel, images: Tensor, fitted: HeadFit) -> None:
    """Learn T̄ and P_t from the skin of the faces."""
    albedo, weight, light = observe_skin(model, images, fitted)
    light = light.unflatten(0, (9, 3)).mean(1, keepdim=True).expand(9, 3).clone()  # white on average, and from no side
    light[[3, 4, 7]] = 0
    model.illumination_mean.copy_(light.flatten())

    region = model.face_region.nonzero().squeeze(1)
    twins = mirror_twins(model.mean[region])
    half = (model.mean[region, 0] <= 1e-4).nonzero().squeeze(1)  # the other half is its mirror image
    seen = weight[..., None].expand_as(albedo)
    mean = (albedo * seen).sum(0) / seen.sum(0).clamp_min(1e-6)
    residual = albedo - mean
    # Tone: the mean deviation over plain skin, made three uncorrelated numbers of unit variance; how every vertex follows it.
    points = model.at_landmarks(model.mean)[[*LEFT_BROW, *RIGHT_BROW, *LEFT_EYE, *RIGHT_EYE, *LIPS_OUTER, *LIPS_INNER]]
    plain = (torch.cdist(model.mean[region], points).amin(1) > 0.12).float()
    tone = (residual * seen * plain[:, None]).sum(1) / (seen * plain[:, None]).sum(1).clamp_min(1e-6)  # (N, 3)
    tone = tone - tone.mean(0)
    variances, axes = torch.linalg.eigh(tone.mT @ tone / len(tone))
    score = (tone @ axes / variances.sqrt()).flip(1)  # (N, 3)
    evidence = torch.einsum("nk,nfc->kfc", score.square(), seen)
    follow = torch.einsum("nk,nfc->kfc", score, residual * seen) / (evidence + FEW_FACES)
    detail = residual - torch.einsum("nk,kfc->nfc", score, follow)

    num_detail = NUM_ALBEDO - NUM_TONE
    directions, spread = probabilistic_pca(detail[:, half].flatten(1), seen[:, half].flatten(1), num_detail, noise=0.06)
    print(f"skin: tone spreads {variances.flip(0).sqrt().tolist()}, detail {spread[:8].tolist()}")
    whole = torch.zeros(num_detail, len(region), 3)
    whole[:, half] = directions.unflatten(1, (len(half), 3))
    whole[:, twins[half]] = whole[:, half]

    # The rest of the head follows the tone of the nearest skin; details end at the border of the face.
    skin = (model.eyeballs == 0).nonzero().squeeze(1)
    distance, nearest = torch.cdist(model.mean[skin], model.mean[region]).min(1)
    fade = torch.exp(-((distance / 0.2) ** 2))[:, None]
    plain_mean = (mean * plain[:, None]).sum(0) / plain.sum()
    plain_follow = (follow * plain[:, None]).sum(1) / plain.sum()
    model.albedo_mean[skin] = fade * mean[nearest] + (1 - fade) * plain_mean
    model.albedo_basis[:NUM_TONE, skin] = fade * follow[:, nearest] + (1 - fade) * plain_follow[:, None]
    model.albedo_basis[NUM_TONE:, skin] = fade * whole[:, nearest]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, required=True, help="prepared faces to learn from")
    parser.add_argument("--model", type=Path, required=True, help="the head that build_morphable_model.py wrote")
    parser.add_argument("--out", type=Path, default=Path("weights/diffdeid/morphable_model"))
    parser.add_argument("--landmarks-only", action="store_true", help="learn nothing but the landmarks and their noise")
    args = parser.parse_args()
    torch.set_grad_enabled(False)
    rng = np.random.default_rng(0)
    store = FaceStore(args.store)
    raw = MorphableModel.from_pretrained(args.model).float()

    names = sample_names(store, FACES_OF_A_SET, rng)
    place_landmarks(raw, read(store, sample_names(store, {name: 200 for name in NEUTRAL_SETS}, rng), "landmarks"))
    learn_shape(raw, read(store, names, "landmarks"), landmarks_only=args.landmarks_only)
    if args.landmarks_only:
        raw.half().save_pretrained(args.out)
        return

    model = MorphableModel(**{**raw.config, "num_identity": NUM_IDENTITY, "num_albedo": NUM_ALBEDO, "num_tone": NUM_TONE})
    for name, buffer in raw.named_buffers():
        if name not in ("identity_basis", "albedo_basis"):
            getattr(model, name).copy_(buffer)
    model.identity_basis.copy_(raw.identity_basis[:NUM_IDENTITY])
    model.half().float()  # from here on, fit with the precision of the released model
    start_skin(model)
    names = sample_names(store, SKINS_OF_A_SET, rng)
    images = read_crops(store, names)
    fitted = fit_all(model, read(store, names, "landmarks"))
    for _ in range(2):
        learn_skin(model, images, fitted)
    model.half().save_pretrained(args.out)


if __name__ == "__main__":
    main()
