"""The adversary of an evaluation: de-identifies the photos that attacks need, and runs the attacks.

The adversary has the weights, the options, and one photo of every suspect: that of the gallery. The pictures made for attacks are
kept beside the results.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from diffdeid.engine.pictures import draw_seeds
from diffdeid.evaluation import attacks
from diffdeid.evaluation.examiner import FILTER, Examiner
from diffdeid.evaluation.methods import run_method
from diffdeid.evaluation.originals import RealPicture
from diffdeid.evaluation.structures import Evaluation, ExaminedPair, Metric
from diffdeid.geometry.align import ffhq_matrix, warp
from diffdeid.geometry.cover import cover
from diffdeid.geometry.pixels import on_host
from diffdeid.io.images import read_image
from diffdeid.metrics.quality import diversity
from diffdeid.options import DeidentifyOptions
from diffdeid.pipelines.pipeline_diffdeid import DiffDeIDPipeline
from diffdeid.stages.identity import face_generators
from diffdeid.structures import Face, FaceBatch, FaceCrop, FaceJob

SUSPECTS = 40  # at most
VERSIONS = 4  # of each photo that the adversary makes, besides the published one
SEED = 100_000  # of the adversary's first picture, far from the seeds of published ones
SIDE = 112  # pixels of the crops that the reconstruction network sees
STEPS = 400  # of its training


class Adversary:
    """Attacks the results of the method "diffdeid".

    Args:
        pipe: made the results.
        examiner: the networks that judge faces.
        evaluation: the results.
        originals: by name.
        costs: of the results, by name, see `methods.run_method`.
        folder: of the results.
        seeds: that they were made with, by name.
        options: that they were made with.
    """

    def __init__(self, pipe: DiffDeIDPipeline, examiner: Examiner, evaluation: Evaluation, originals: dict[str, RealPicture],
                 costs: dict[str, dict], folder: Path, seeds: dict[str, int], options: dict[str, Any]):  # fmt: skip
        self.pipe, self.examiner, self.options, self.costs, self.seeds = pipe, examiner, options, costs, seeds
        self.folder, self.work, self.originals = folder, folder / "attacks", originals
        self.known = {
            original.person: name for name, original in originals.items() if original.gallery and original.examined is not None
        }
        # One face that was replaced: then it is clear which face a seed was used for.
        usable = [pair for pair in evaluation.pairs if pair.person in self.known and self._is_single(pair.name)]
        probes = list({pair.person: pair for pair in usable if self._is_single(self.known[pair.person])}.values())
        self.suspects, self.others = probes[:SUSPECTS], probes[SUSPECTS:]

    def _is_single(self, name: str) -> bool:
        cost = self.costs.get(name, {"faces": 1, "covered": 0})
        return len(self.originals[name].faces) == 1 and cost["faces"] == 1 and cost["covered"] == 0

    def attack(self) -> list[Metric]:
        """Run all attacks, by the independent recognisers and, on the pipeline's own identities, by its filter.

        There are no metrics if fewer than three suspects are usable.
        """
        if len(self.suspects) < 3:
            return []
        people = [pair.person for pair in self.suspects]
        photos = {self.known[person]: self.originals[self.known[person]].path for person in people}
        probes = {pair.name: self.originals[pair.name].path for pair in self.suspects}
        known = [self._make(photos, f"known-{version}", version) for version in range(VERSIONS)]
        versions = [self._make(probes, f"version-{version}", VERSIONS + version) for version in range(VERSIONS)]
        linked = self._one_identity_each(photos, probes)
        blackened = [self._cover(names) for names in (photos, probes)]
        undone = self._undo()
        metrics = []
        for recogniser in self.examiner.recognisers[:-1]:
            gallery = self._gallery(people, recogniser)
            published = np.stack([pair.result.embeddings[recogniser] for pair in self.suspects])
            train = np.concatenate([[vectors[recogniser] for vectors in made] for made in known])
            candidates = np.stack([published, *([vectors[recogniser] for vectors in made] for made in versions)], axis=1)
            metrics += attacks.reidentification(published, people, gallery, people, "no attack", recogniser)
            metrics += attacks.parrot(train, people * VERSIONS, published, people, recogniser)
            metrics += attacks.linkability(
                np.stack([vectors[recogniser] for vectors in known[0]]), published, people, f"fresh identities, {recogniser}"
            )
            for label, pictures in (("one identity per person", linked), ("solid covers", blackened)):
                first, second = (np.stack([vectors[recogniser] for vectors in made]) for made in pictures)
                metrics += attacks.linkability(first, second, people, f"{label}, {recogniser}")
            metrics += attacks.averaging(candidates, people, gallery, people, recogniser)
            spread = float(np.mean([diversity(versions) for versions in candidates]))
            metrics.append(Metric("quality", f"diversity between candidates [{recogniser}]", spread))
            for attack, made in undone.items():
                vectors = np.stack([seen[recogniser] for seen in made])
                metrics += attacks.reidentification(vectors, people, gallery, people, attack, recogniser)
        metrics += attacks.averaging(self._choices(), people, self._gallery(people, FILTER), people, "identities themselves")
        return metrics + self._replay(people)

    def _choices(self) -> np.ndarray:
        """Identities drawn for the published results and versions, `(n, m, 128)`: what the choice alone gives away."""
        chosen, engine = [], self.pipe.engine
        for number, source in enumerate(self._sources()):
            seeds = draw_seeds(torch.Generator().manual_seed(SEED + number), 1 + VERSIONS)
            generators = [face_generators(seed)[0] for seed in seeds]
            castings = engine.castings(source.pick([0] * len(seeds)), generators, self.choice, [True] * len(seeds))
            versions = [one.draw(source.embedding, self.choice.level, engine.identity_limit).embedding for one in castings]
            chosen.append(on_host(torch.cat(versions)))
        return np.stack(chosen)

    @property
    def choice(self) -> DeidentifyOptions:
        """The options that the results were made with."""
        return DeidentifyOptions(**self.options)

    @torch.no_grad()
    def _sources(self) -> Iterator[FaceBatch]:
        """The source faces of the published results, reconstructed from the original photos."""
        for pair in self.suspects:
            picture = np.asarray(read_image(self.originals[pair.name].path).image)
            yield self.pipe.engine.reconstruct([FaceJob(picture, pair.source.face)], self.choice)  # the only one: `_is_single`

    def _make(self, pictures: dict[str, Path], name: str, number: int, **options: Any) -> list[dict[str, np.ndarray]]:
        """De-identify photos once more; gives the embeddings of the results, in order."""
        out, seed = self.work / name, SEED * (1 + number)
        run_method("diffdeid", self.pipe, pictures, out, seed, **self.options | options)
        return [self._embed(np.asarray(read_image(out / f"{key}.png").image), key) for key in pictures]

    def _embed(self, picture: np.ndarray, name: str) -> dict[str, np.ndarray]:
        """Embed the face of a picture; if none is found, the place where it was."""
        source = self.originals[name].examined.face
        return self._embed_at(picture, source.box, source.landmarks)

    def _one_identity_each(self, photos: dict[str, Path], probes: dict[str, Path]) -> list[list[dict[str, np.ndarray]]]:
        """De-identify both photos of each suspect with one new identity, as in the frames of a clip."""
        made: list[list[dict[str, np.ndarray]]] = [[], []]
        for number, pair in enumerate(zip(photos, probes, strict=True)):
            sampled = self.pipe.identity_sampler(generator=torch.Generator().manual_seed(SEED + number))
            for side, name in enumerate(pair):
                picture = {name: (photos, probes)[side][name]}
                made[side] += self._make(picture, f"linked-{side}", number, identity=(sampled.identity, sampled.shape))
        return made

    def _cover(self, names: Iterable[str]) -> list[dict[str, np.ndarray]]:
        """Embed photos whose face is black, which shows how much their surroundings tell."""
        pictures = [(name, np.asarray(read_image(self.originals[name].path).image)) for name in names]
        return [self._embed(cover(picture, [self.originals[name].examined.face], "solid"), name) for name, picture in pictures]

    def _undo(self) -> dict[str, list[dict[str, np.ndarray]]]:
        """Run the attacks that try to restore the published pictures; gives the embeddings of what they make."""
        others = {self.known[pair.person]: self.originals[self.known[pair.person]].path for pair in self.others}
        crops = [_small(crop) for pair in self.others for crop in pair.crops]
        for name, path in others.items():
            run_method("diffdeid", self.pipe, {name: path}, self.work / "others", SEED, **self.options)
            matrix = ffhq_matrix(self.originals[name].examined.face.landmarks, SIDE)
            pictures = (read_image(file).image for file in (path, self.work / "others" / f"{name}.png"))
            crops += [warp(np.asarray(picture), matrix, SIDE) for picture in pictures]
        undone = {}
        if self.others:
            sources, results = np.stack(crops[::2]), np.stack(crops[1::2])
            published = np.stack([_small(pair.crops[1]) for pair in self.suspects])
            restored = attacks.reconstruct(results, sources, published, STEPS)
            undone["reconstruction"] = [self._embed_crop(crop, pair) for crop, pair in zip(restored, self.suspects, strict=True)]
        undone["inversion"] = [self._inverted(pair) for pair in self.suspects]
        return undone

    def _inverted(self, pair: ExaminedPair) -> dict[str, np.ndarray]:
        if not pair.result.found:
            return pair.result.embeddings
        picture = np.asarray(read_image(self.folder / f"{pair.name}.png").image)
        crop = attacks.invert(self.pipe, picture, pair.result.face)
        return self._embed_crop(crop, pair)

    def _embed_crop(self, crop: np.ndarray, pair: ExaminedPair) -> dict[str, np.ndarray]:
        landmarks = pair.source.face.landmarks
        points = FaceCrop(crop, ffhq_matrix(landmarks, len(crop))).to_crop(landmarks[:, :2])
        return self._embed_at(crop, np.concatenate([points.min(0), points.max(0)]).astype(np.float32), points)

    def _embed_at(self, picture: np.ndarray, box: np.ndarray, otherwise: np.ndarray) -> dict[str, np.ndarray]:
        """Embed by the landmarks of the face found in a box, or by the landmarks `otherwise` if none is found."""
        (found,) = self.examiner.analyser(picture, [Face(box)])
        return self.examiner.embed(picture, otherwise if found.landmarks is None else found.landmarks)

    def _replay(self, people: list[str]) -> list[Metric]:
        """Attack with the seeds of the published results, which an adversary knows only if they were given away."""
        tries = [self.costs[pair.name]["evaluations"] // self.choice.num_inference_steps for pair in self.suspects]
        seeds = [self.seeds[pair.name] for pair in self.suspects]
        observed = np.stack([pair.result.embeddings[FILTER] for pair in self.suspects])
        gallery = self._gallery(people, FILTER)
        sources = list(self._sources())
        return attacks.replay(
            self.pipe,
            sources,
            seeds,
            tries,
            self.choice,
            observed,
            people,
            gallery,
            people,
            "known seed",
        )

    def _gallery(self, people: list[str], recogniser: str) -> np.ndarray:
        return np.stack([self.originals[self.known[person]].examined.embeddings[recogniser] for person in people])


def _small(crop: np.ndarray) -> np.ndarray:
    return cv2.resize(crop, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
