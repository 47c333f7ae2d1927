"""Attacks on de-identified pictures by an adversary who knows the method. Each name is followed by what the attacker has.

parrot           de-identified pictures of known people, made by the attacker: other photos, other seeds (embeddings)
linkability      two de-identified pictures of every person (embeddings)
averaging        several de-identified versions of every photo (embeddings); one version attacks the level alone
reconstruction   de-identified and original crops of other people: `reconstruct`, then `reidentification`
replay           the weights, the options and the seed, and photos of the suspects
inversion        the weights: `invert`, then `reidentification`

Embeddings are unit vectors of one recogniser, which `label` names. Each attack ends in scores of the probes against the people of
a gallery, and gives two metrics: rank-1, and AUC, the share of other people whom the right one is preferred to. Methods are
usually judged by rank-1; AUC shows a leak much earlier. Ties count as guesses. Intervals are 95 % percentiles over resampled
people. Chance is the mean over permutations of who is who among the probes' people; photos of one person stay together in both.
The alarm is raised above the 97.5 % quantile of the permutations, so that at most 2.5 % of metrics alarm where nothing leaks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDIMInverseScheduler, DDIMScheduler
from torch import Tensor, nn

from diffdeid.engine.faces import Engine
from diffdeid.engine.pictures import draw_seeds
from diffdeid.evaluation.structures import Metric
from diffdeid.geometry.pixels import on_host, to_bytes, to_tensor
from diffdeid.metrics.privacy import RESAMPLES, person_scores
from diffdeid.options import DeidentifyOptions
from diffdeid.pipelines.pipeline_diffdeid import DiffDeIDPipeline
from diffdeid.stages.compose import lay_over_crops
from diffdeid.stages.identity import face_generators, least_distance
from diffdeid.structures import Face, FaceBatch, FaceJob, NewIdentity

SHRINKAGE = 0.5  # of the covariance within people: a few hundred samples of hundreds of numbers say little of it
BATCH, LEARNING_RATE = 8, 2e-3
LIKENESS = 20.0  # factor of cosines in a softmax: how well a result shows its identity
DISTANCE_ERROR = 0.05  # of the cosine distance, because the attacker has another photo of the source
INVERSION_STEPS = 50  # of DDIM in each direction; with 25 the way back does not lead to where it began


def parrot(
    train: np.ndarray, train_people: Sequence[str], test: np.ndarray, test_people: Sequence[str], label: str
) -> list[Metric]:
    """A recogniser retrained on de-identified pictures (McPherson et al. 2016, arXiv 1609.00408).

    The attacker de-identifies photos of the suspects and trains a linear discriminant (one covariance, shrunk) on them. It also
    learns hair, clothes and light, which no method for faces hides. So compare with its result on black faces, above all for
    photos of one session.

    Args:
        train: `(k, d)` de-identified pictures of `train_people`, several of each.
        test: `(n, d)` unseen ones of `test_people`, of other photos or at least other seeds; people not trained on are left out.
    """
    columns, rows = np.unique(train_people, return_inverse=True)
    means = np.stack([train[rows == row].mean(0) for row in range(len(columns))])
    deviations = train - means[rows]
    covariance = deviations.T @ deviations / max(len(train) - len(columns), 1)
    scale = np.trace(covariance) / len(covariance) or 1.0  # 0 with one sample each: then it is the nearest mean
    weights = np.linalg.solve((1 - SHRINKAGE) * covariance + SHRINKAGE * scale * np.eye(len(covariance)), means.T)
    known = np.isin(test_people, columns)
    scores = test[known] @ weights - (means.T * weights).sum(0) / 2
    return identification("parrot", label, [lambda said: scores], np.searchsorted(columns, np.array(test_people)[known]))


def linkability(first: np.ndarray, second: np.ndarray, people: Sequence[str], label: str) -> list[Metric]:
    """Whether two de-identified pictures, `(n, d)` each, of the same `n` people are recognised as one person's.

    The attacker knows only the pictures. With a fresh identity for each picture, only what is left of the source can link them;
    with one identity for each person they are linked by design. The surroundings link them as well, as for `parrot`.
    """
    scores, columns = person_scores(first, second, list(people))
    return identification("linkability", label, [lambda said: scores], _places(people, columns))


def averaging(
    candidates: np.ndarray, people: Sequence[str], gallery: np.ndarray, gallery_people: Sequence[str], label: str
) -> list[Metric]:
    """Combine several de-identified versions of each photo; the best of three attacks counts, in the permutations too.

    What differs between versions cancels; what they share of the source stays. "nearest" names who is most like the mean version.
    "farthest" names who is least like it, because identities near the source are refused. "level" uses that all versions keep the
    level's least distance from the source, but not from others: it names who is at the usual distance each time, by the ratio of
    two Gaussians, whose parameters the attacker learns on other people's photos (leave one person out).

    Args:
        candidates: `(n, m, d)`, m versions of each of n photos of `people`.
    """
    cosines = np.stack(
        [person_scores(version, gallery, list(gallery_people))[0] for version in candidates.swapaxes(0, 1)], axis=1
    )
    columns = list(dict.fromkeys(gallery_people))
    cosines = cosines - cosines.mean((0, 1))  # some people of the gallery, and some versions, are like everybody
    cosines = (cosines - cosines.mean(2, keepdims=True)) / (cosines.std(2, keepdims=True) + 1e-9)
    mean = cosines.mean(1)

    def level(said: np.ndarray) -> np.ndarray:
        own = np.take_along_axis(cosines, said[:, None, None], axis=2)[..., 0]
        moments = np.stack([np.bincount(said, x, cosines.shape[2]) for x in (np.ones(len(own)), own.mean(1), (own**2).mean(1))])
        others, first, second = (moments.sum(1, keepdims=True) - moments)[:, said]
        middle = first / np.maximum(others, 1)
        variance = np.maximum(second / np.maximum(others, 1) - middle**2, 0.01)
        middle, variance = middle[:, None, None], variance[:, None, None]
        return (cosines**2 - (cosines - middle) ** 2 / variance - np.log(variance)).mean(1)

    return identification("averaging", label, [lambda said: mean, lambda said: -mean, level], _places(people, columns))


class _UNet(nn.Module):
    """Maps crops `(B, 3, S, S)` in [-1, 1] to crops; S a multiple of 16; 0.8 million parameters."""

    def __init__(self, widths: tuple[int, ...] = (32, 64, 96, 96)):
        super().__init__()
        inputs = (12, *widths[:-1])
        self.down = nn.ModuleList(_block(a, b) for a, b in zip(inputs, widths, strict=True))
        self.up = nn.ModuleList(_block(a + b, a) for a, b in zip(widths[:-1], widths[1:], strict=True))
        self.out = nn.Conv2d(widths[0], 12, 3, padding=1)
        nn.init.zeros_(self.out.weight)  # starts as the identity
        nn.init.zeros_(self.out.bias)

    def forward(self, crops: Tensor) -> Tensor:
        x, skips = F.pixel_unshuffle(crops, 2), []
        for block in self.down:
            x = block(x if not skips else F.avg_pool2d(x, 2))
            skips.append(x)
        for block, skip in zip(reversed(self.up), reversed(skips[:-1]), strict=True):
            x = block(torch.cat([skip, F.interpolate(x, scale_factor=2.0, mode="nearest")], dim=1))
        return crops + F.pixel_shuffle(self.out(x), 2)


def _block(inputs: int, outputs: int) -> nn.Sequential:
    first, second = nn.Conv2d(inputs, outputs, 3, padding=1), nn.Conv2d(outputs, outputs, 3, padding=1)
    return nn.Sequential(first, nn.GroupNorm(4, outputs), nn.SiLU(), second, nn.SiLU())


def reconstruct(
    train_results: np.ndarray, train_sources: np.ndarray, results: np.ndarray, steps: int = 400, seed: int = 0
) -> np.ndarray:
    """Undo a de-identification with a network trained for it (Todt et al. 2024, "Fantômas", arXiv 2210.10651).

    The attacker de-identifies photos of other people and learns the way back. The loss is L1 at four scales: coarse scales still
    tell what was there where fine ones are uncertain.

    Args:
        train_results, train_sources: uint8 crops `(k, S, S, 3)` of other people, de-identified and original; S a multiple of 16.
        results: `(n, S, S, 3)`, to be undone.

    Returns:
        `(n, S, S, 3)` uint8. The same on each run on one machine.
    """
    rng = np.random.default_rng(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _UNet()
    optimiser = torch.optim.AdamW(network.parameters(), LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, steps)
    for _ in range(steps):
        drawn, mirror = rng.integers(len(train_results), size=BATCH), rng.choice([-1, 1])
        inputs, targets = (to_tensor(crops[drawn][:, :, ::mirror]) for crops in (train_results, train_sources))
        error = network(inputs) - targets
        loss = sum(F.avg_pool2d(error, size).abs().mean() for size in (1, 2, 4, 8))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    with torch.no_grad():
        return np.concatenate([on_host(to_bytes(network(to_tensor([result])))) for result in results])


def reidentification(
    found: np.ndarray, people: Sequence[str], gallery: np.ndarray, gallery_people: Sequence[str], attack: str, label: str
) -> list[Metric]:
    """Recognise what `attack` made, embeddings `(n, d)` of `people`, among the gallery `(p, d)`."""
    scores, columns = person_scores(found, gallery, list(gallery_people))
    return identification(attack, label, [lambda said: scores], _places(people, columns))


@torch.no_grad()
def replay(
    pipe: DiffDeIDPipeline,
    sources: Sequence[FaceBatch],
    seeds: Sequence[int],
    attempts: Sequence[int],
    options: DeidentifyOptions,
    observed: np.ndarray,
    people: Sequence[str],
    gallery: np.ndarray,
    gallery_people: Sequence[str],
    label: str,
) -> list[Metric]:
    """Draw identities again with the seed that was used: for which of the suspects would the published one have been taken?

    Which identities a seed draws does not depend on the source, but which of them are refused does. The attacker has another
    photo of each suspect, so distances are a little wrong. A suspect scores by how likely it is that all identities before the
    published one were refused for this suspect and that one was not, times how much the result looks like it. With
    `attributes="source"` the drawn identities depend on the suspect as well. The attacker is given all the rest of K as it was,
    which is more than the result shows. Only the first round of each attempt is followed; hardly any has a second.

    Args:
        sources: n source faces, each a batch of one.
        seeds: n seeds, of a fresh generator for each picture, whose first face is meant.
        attempts: n numbers of attempts, as reported.
        options: that the pictures were made with.
        observed: `(n, 128)` z_id of the results.
        people: n names, whom the results show.
        gallery: `(p, 128)` z_id of photos of `gallery_people`.
    """
    engine = pipe.engine
    suspects, observed = (torch.from_numpy(vectors).float().to(engine.device) for vectors in (gallery, observed))
    fits = suspects.new_zeros(len(observed), len(suspects))
    for probe, (source, seed) in enumerate(zip(sources, seeds, strict=True)):
        drawn = None
        for column, suspect in enumerate(suspects):
            if drawn is None or options.attributes == "source":
                accused = replace(source, embedding=suspect[None].to(source.embedding))
                drawn, usable = _drawn(engine, accused, options, int(seed), attempts[probe])
            distances = 1 - drawn @ suspect
            bounds = [least_distance(lower, engine.identity_limit) for lower in range(options.level, 0, -1)]
            bound = next((bound for bound in bounds if (usable & (distances >= bound)).any()), bounds[-1])
            taken = usable * torch.sigmoid((distances - bound) / DISTANCE_ERROR)
            first = taken * torch.cat([taken.new_ones(1), (1 - taken).cumprod(0)[:-1]])
            fits[probe, column] = (LIKENESS * (drawn @ observed[probe])).softmax(0) @ first
    scores, columns = person_scores(on_host(fits), np.eye(len(suspects)), list(gallery_people))  # the best photo of each
    return identification("replay", label, [lambda said: scores], _places(people, columns))


def _drawn(engine: Engine, source: FaceBatch, options: DeidentifyOptions, seed: int, attempts: int) -> tuple[Tensor, Tensor]:
    """The identities that the last attempt at the first face of a picture drew, `(DRAWS, 128)`, and which may be painted."""
    (picture_seed,) = draw_seeds(torch.Generator().manual_seed(seed), 1)
    people, _ = face_generators(picture_seed)
    (casting,) = engine.castings(source, [people], options, [True])
    for attempt in range(1, attempts + 1):
        met = list(casting.meet(attempt, 0))
    embeddings, shapes = (torch.cat(parts) for parts in zip(*met, strict=True))
    return embeddings.float(), engine.sampler.may_be_painted(embeddings, shapes)


@torch.no_grad()
def invert(pipe: DiffDeIDPipeline, picture: np.ndarray, face: Face, num_inference_steps: int = INVERSION_STEPS) -> np.ndarray:
    """Run deterministic DDIM backwards from a result to its noise (Song et al. 2021, arXiv 2010.02502), then forwards as nobody.

    Everything is taken from the result: context, pose, expression, light, and on the way to the noise its identity too. This
    undoes methods that start from the source's own inverted noise. Here the noise comes from a generator, so the attack can find
    no more than what the context tells of a face; it is run to show that. It needs the weights and nothing else.

    Args:
        picture: de-identified, `(H, W, 3)` uint8.
        face: found in it, with landmarks and irises.

    Returns:
        The crop `(S, S, 3)`, uint8, with the face of no identity (z = 0, α = 0) that the noise gives.
    """
    options = DeidentifyOptions(num_inference_steps=num_inference_steps, attributes="any")
    source = pipe.engine.reconstruct([FaceJob(picture, face)], options)
    himself = NewIdentity(source.embedding, source.coefficients.shape, options.level)
    nobody = NewIdentity(torch.zeros_like(himself.embedding), torch.zeros_like(himself.shape), options.level)
    redrawn = there_and_back(pipe.engine, source, (himself, nobody), options)
    return on_host(to_bytes(lay_over_crops(redrawn, source.images, source.depths)[0])[0])


def there_and_back(
    engine: Engine, source: FaceBatch, people: tuple[NewIdentity, NewIdentity], options: DeidentifyOptions
) -> Tensor:
    """DDIM on a batch of one: backwards as the first of `people`, then forwards as the second; gives `(1, 3, S, S)`."""
    texture, latents = engine.encode_texture(source.images, source.masks), source.images
    for kind, person in zip((DDIMInverseScheduler, DDIMScheduler), people, strict=True):
        # A network that predicts pictures cannot tell the noise of a picture that has none, so the end keeps a little noise.
        known = {"set_alpha_to_one": False, "clip_sample": False, "timestep_spacing": "trailing"}
        direction = replace(engine, scheduler=kind.from_config(engine.scheduler.config, **known))
        (painted,) = direction.paint(source, person, texture, latents, options)
        latents = painted.face[None]
    return latents


def identification(
    attack: str, label: str, attempts: Sequence[Callable[[np.ndarray], np.ndarray]], own: np.ndarray
) -> list[Metric]:
    """Rank-1 and AUC of an attack, or of the best of several, with interval, chance and alarm (see the top of the file).

    Args:
        attempts: functions that give scores `(n, p)` of the probes. Their argument `(n,)` says who the probes are taken to be,
            for attacks that learn from the probes of other people.
        own: `(n,)` who the probes are, columns of the scores.
    """
    persons, rows = np.unique(own, return_inverse=True)

    def outcomes(said: np.ndarray) -> np.ndarray:  # (2, attempts, n)
        scores = np.stack([attempt(said) for attempt in attempts])
        mine = np.take_along_axis(scores, said[None, :, None], axis=2)
        higher, equal = (scores > mine).sum(2), (scores == mine).sum(2)
        return np.stack([(higher == 0) / equal, 1 - (higher + (equal - 1) / 2) / (scores.shape[2] - 1)])

    rng = np.random.default_rng(0)
    achieved = outcomes(own)
    weights = rng.multinomial(len(persons), np.full(len(persons), 1 / len(persons)), size=RESAMPLES)[:, rows]
    resampled = (achieved @ weights.T / weights.sum(1)).max(1)
    permuted = np.stack([outcomes(rng.permutation(persons)[rows]).mean(2).max(1) for _ in range(RESAMPLES)], axis=1)
    metrics = []
    for name, values, drawn, floor in zip(("rank-1", "AUC"), achieved, resampled, permuted, strict=True):
        value, (low, high) = float(values.mean(1).max()), np.quantile(drawn, [0.025, 0.975])
        alarm = bool(value > np.quantile(floor, 0.975))
        name = f"{attack} {name} [{label}]"
        metrics.append(Metric("attacks", name, value, "", (float(low), float(high)), float(floor.mean()), alarm))
    return metrics


def _places(people: Sequence[str], columns: list[str]) -> np.ndarray:
    return np.array([columns.index(person) for person in people])
