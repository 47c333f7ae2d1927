"""The training losses: denoising, reconstruction, perceptual (paper §3.4, weights there 10, 1, 1), identity, geometry, landmarks.

All of them look at the picture x̂0 that the network's output implies. For `epsilon` and `v_prediction` the weighted error of
x̂0 is the weighted error of the output itself, so one formula serves every parametrisation.

Deviations from the paper, measured to be better for small networks: the erased region counts, eyes and mouth most, the rest
hardly; the denoising loss is weighted by the signal-to-noise ratio (SNR); the reconstruction loss is L1 on pictures and
gradients at several scales instead of L2; reconstruction and perceptual loss act from the start, and fade out where the noise
hides everything.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffdeid.geometry.align import CHIP_SIZE, sample
from diffdeid.structures import MorphableCoefficients

PATCH = 4  # pixels, of `DiffDeIDUNet2DModel`
LATTICE_CELLS = 12  # patches a side of the windows in which a lattice is looked for: enough for skin to have none by chance
OUTSIDE = 0.05  # weight of a pixel outside the erased region
SEEN = 0.05  # most face sizes between the marks of the attention mesh and those of ρ if the mesh sees the face


def _at(timesteps: Tensor, scheduler) -> Tensor:
    return scheduler.alphas_cumprod.to(timesteps.device)[timesteps]


def signal_to_noise(scheduler, timesteps: Tensor) -> Tensor:
    """SNR `(B,)` = ᾱ / (1 - ᾱ)."""
    alpha = _at(timesteps, scheduler)
    return alpha / (1 - alpha)


def predict_original(scheduler, output: Tensor, sample: Tensor, timesteps: Tensor) -> Tensor:
    """x̂0 `(B, C, H, W)` implied by a network's output, by the scheduler's `prediction_type`."""
    alpha = _at(timesteps, scheduler)[:, None, None, None]
    match scheduler.config.prediction_type:
        case "sample":
            return output
        case "epsilon":
            return (sample - (1 - alpha).sqrt() * output) / alpha.sqrt()
        case "v_prediction":
            return alpha.sqrt() * sample - (1 - alpha).sqrt() * output
        case other:
            raise ValueError(f"`prediction_type` must be sample, epsilon or v_prediction, got {other!r}.")


def pixel_weight(batch: dict[str, Tensor], opening_weight: float) -> Tensor:
    """How much an error in a pixel counts, `(B, 1, H, W)`: 1 in the erased region, more at eyes and mouth, else 0."""
    return batch["mask"] * (1 + opening_weight * batch["openings"])


def masked_mean(values: Tensor, weight: Tensor) -> Tensor:
    """Mean `(B,)` of `(B, C, H, W)` values under a `(B, 1, H, W)` weight."""
    return (values * weight).sum((1, 2, 3)) / (weight.sum((1, 2, 3)) * values.shape[1]).clamp(min=1e-6)


def denoising_loss(predicted: Tensor, image: Tensor, weight: Tensor, snr: Tensor) -> Tensor:
    """Squared error of x̂0, weighted by clamp(SNR, 0.25, 5)."""
    error = masked_mean((predicted - image) ** 2, weight + OUTSIDE * (weight == 0))
    return (snr.clamp(0.25, 5) * error).mean()


def visibility(snr: Tensor) -> Tensor:
    """How much of a picture is visible at a noise level, `(B,)` 0…1; scales the two losses below."""
    return snr / (snr + 0.3)


def reconstruction_loss(composite: Tensor, image: Tensor, weight: Tensor, snr: Tensor, scales: int = 3) -> Tensor:
    """L1 of x̂0, pasted into the picture, and of its gradients, at `scales` octaves."""
    loss = 0
    difference = composite - image
    for _ in range(scales):
        loss = loss + masked_mean(difference.abs(), weight)
        loss = loss + masked_mean(difference.diff(dim=-1).abs(), weight[..., 1:])
        loss = loss + masked_mean(difference.diff(dim=-2).abs(), weight[..., 1:, :])
        difference, weight = F.avg_pool2d(difference, 2), F.avg_pool2d(weight, 2)
    return (visibility(snr) * loss).mean()


def perceptual_loss(features: Sequence[Tensor], targets: Sequence[Tensor], weight: Tensor) -> Tensor:
    """Squared distance `(B,)` of unit-length features `(B, C, H, W)` of a picture from those of its target, summed over depths.

    `weight` `(B, 1, S, S)` says how much pixels count.
    """
    loss = 0
    for feature, target in zip(features, targets, strict=True):
        difference = F.normalize(feature.float(), dim=1, eps=1e-4) - F.normalize(target.float(), dim=1, eps=1e-4)
        distance = (difference**2).sum(1, keepdim=True)
        loss = loss + masked_mean(distance, F.interpolate(weight, distance.shape[-2:], mode="area"))
    return loss


def style_loss(features: Sequence[Tensor], targets: Sequence[Tensor], weight: Tensor) -> Tensor:
    """Squared distance `(B,)` of Gram matrices of features, in parts of the target's, summed over depths; as `perceptual_loss`.

    It asks for the same texture, wherever its grain lies (Gatys et al. 2016).
    """
    loss = 0
    for feature, target in zip(features, targets, strict=True):
        root = F.interpolate(weight, feature.shape[-2:], mode="area").sqrt()
        gram, wanted = ((one @ one.mT) for one in ((feature.float() * root).flatten(2), (target.float() * root).flatten(2)))
        loss = loss + (gram - wanted).square().sum((1, 2)) / wanted.square().sum((1, 2)).clamp(min=1e-6)
    return loss


def lattice_loss(predicted: Tensor, mask: Tensor, period: int = PATCH) -> Tensor:
    """How much of a lattice lies over the erased region of x̂0 `(B, 3, H, W)`, in squared grey levels, `(B,)`.

    The network paints patches of `period` pixels. In a photo the mean of every `period`-th pixel, of what is left without
    the coarse light, is the same wherever counting begins. In a lattice it is not.
    """
    light, pad = predicted.mean(1, keepdim=True), [period // 2, period - 1 - period // 2] * 2
    fine = light - F.avg_pool2d(F.pad(light, pad, mode="replicate"), period, stride=1)
    cells, region = (F.pixel_unshuffle(one, period) for one in (fine * mask, mask))
    window = min(LATTICE_CELLS, *cells.shape[-2:])
    means = F.avg_pool2d(cells, window, max(window // 2, 1))
    weight = F.avg_pool2d(region.mean(1, keepdim=True), window, max(window // 2, 1)).square()
    return masked_mean((127.5 * (means - means.mean(1, keepdim=True))).square(), weight)


def identity_loss(recogniser: nn.Module, composite: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """1 - cosine between the recogniser's embedding of x̂0, pasted into the picture, and z_id; rows without identity count 0.

    All noise levels count alike, because z_id matters most where the noise hides the face.
    """
    embedding = recogniser(sample(composite, batch["chip"], CHIP_SIZE)).embedding
    identity = batch["identity"]
    return (identity.any(dim=1) * (1 - (embedding * identity).sum(dim=1))).mean()


def geometry_loss(reconstructor: nn.Module, composite: Tensor, image: Tensor, exchanged: Tensor) -> Tensor:
    """How far head rotation and expression of x̂0, pasted into the picture, are from those of the picture.

    It is the sum of Euclidean distances between the coefficients that a `FaceReconstructorModel` gives for both, in parts of the
    spread of its training faces. The network's own error is much the same in both. Its gaze is too coarse to be of use. The
    expression of `exchanged` faces `(B,)` does not count, because the same expression has another β on another head.
    """
    with torch.no_grad():
        before = reconstructor(image).coefficients
    after = reconstructor(composite).coefficients
    spread = MorphableCoefficients.unpack(reconstructor.std.float())
    apart = after.pose[:, :3] - before.pose[:, :3], after.expression - before.expression
    scales = spread.pose[:3].norm(), spread.expression.norm()
    turn, expression = ((part.square().sum(1) + 1e-6).sqrt() / scale for part, scale in zip(apart, scales, strict=True))
    return (turn + ~exchanged * expression).mean()


def landmark_loss(mesh: nn.Module, composite: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """Mean distance, in sizes of the face, of the marks in x̂0, pasted into the picture, from where they should be.

    An `AttentionMesh` finds the marks. They should be where it finds them in the picture, or, in `exchanged` faces, where ρ puts
    them. If these two differ much, the mesh does not see the face, as in profiles, and the face counts 0.
    """
    size = (batch["marks"].amax(1) - batch["marks"].amin(1)).amax(1, keepdim=True)

    def apart(marks: Tensor, others: Tensor) -> Tensor:
        return ((marks - others).square().sum(2) + 1e-6).sqrt().div(size).mean(1)

    with torch.no_grad():
        shown = mesh(batch["image"])
        seen = apart(shown, batch["marks"]) < SEEN
        meant = torch.where(batch["exchanged"][:, None, None], batch["marks"], shown)
    return (seen * apart(mesh(composite), meant)).mean()
