"""Pictures under review: each version of a list of faces gives a result, for which only corrected faces are rendered again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from diffdeid.engine.consent import BY_HAND
from diffdeid.engine.faces import Engine, split
from diffdeid.engine.pictures import seed_of
from diffdeid.engine.reports import FaceReport
from diffdeid.errors import NoFaceFoundError
from diffdeid.face_lists import Box, ListedFace
from diffdeid.options import DeidentifyOptions
from diffdeid.stages.compose import compose
from diffdeid.stages.detect import detect_faces, why_covered
from diffdeid.structures import Covered, Face, FaceJob, Outcome

Key = tuple[Box, int, int]  # of a face that was rendered: its box, id and candidate


class PictureReview:
    """A picture and the new faces that were made for it so far.

    A face is rendered once for each box, id and candidate. So it stays bit-identical when other faces are corrected, except for
    pixels that two faces share, and for covers that take their colours from a new face beside them. Another review gives the
    same face, on a GPU up to rounding: see `Engine.mixed_batch_size`.

    Args:
        engine: renders faces.
        picture: `(H, W, 3)` uint8 RGB.
        options: how faces are replaced.
        seed: of the result, see `engine.pictures.draw_seeds`.
    """

    def __init__(self, engine: Engine, picture: np.ndarray, options: DeidentifyOptions, seed: int):
        self.engine, self.picture, self.options, self.seed = engine, picture, options, seed
        self._faces: dict[tuple[Box, float], Face] = {}
        self._outcomes: dict[Key, Outcome] = {}

    @torch.no_grad()
    def render(self, listed: Sequence[ListedFace]) -> tuple[np.ndarray, dict[int, FaceReport]]:
        """The picture as a list of faces describes it, and a report for each face that is not deleted, by its id.

        Raises:
            NoFaceFoundError: the list names no face.
        """
        listed = [one for one in listed if not one.deleted]
        if not listed:
            raise NoFaceFoundError("The list names no face of the picture, so nobody can tell whether it is de-identified.")
        render_faces([(self, listed)])
        faces = {one.id: self._face(one) for one in listed}
        outcomes = {one.id: self._outcomes[_key(one)] for one in listed if not one.keep}
        pairs = [(faces[number], outcome) for number, outcome in outcomes.items()]
        result = compose(self.picture, pairs, self.options.fallback, self.options.cover_scale)
        fallback = self.options.fallback
        return result, {number: FaceReport.of(face, outcomes.get(number, BY_HAND), fallback) for number, face in faces.items()}

    def _face(self, listed: ListedFace) -> Face:
        key = listed.box, listed.score
        if key not in self._faces:
            boxed = Face(np.array(listed.box, np.float32), listed.score)
            (self._faces[key],) = detect_faces(self.engine.face_analyser, self.picture, [boxed])
        return self._faces[key]

    def _jobs(self, listed: Sequence[ListedFace]) -> Iterator[tuple[Key, FaceJob]]:
        """The faces of a list that are still to be rendered; those that cannot be are covered."""
        listed = [one for one in listed if not one.deleted]
        faces = {one.id: self._face(one) for one in listed}
        for one in listed:
            if one.keep or _key(one) in self._outcomes:
                continue
            face, seed = faces[one.id], seed_of(self.seed, one.id - 1, one.candidate)
            if problem := why_covered(face, self.options.min_face):
                self._outcomes[_key(one)] = Covered(problem)
            else:
                yield _key(one), FaceJob(self.picture, face, list(faces.values()), [seed])


@torch.no_grad()
def render_faces(lists: Sequence[tuple[PictureReview, Sequence[ListedFace]]]) -> None:
    """Render the faces that are new in the lists of several reviews, which must share one engine and the same options."""
    new = [(review, key, job) for review, listed in lists for key, job in review._jobs(listed)]
    if not new:
        return
    engine, options = new[0][0].engine, new[0][0].options
    for part in split(new, engine.mixed_batch_size):
        outcomes = engine.deidentify([job for _, _, job in part], options)
        for (review, key, _), (outcome,) in zip(part, outcomes, strict=True):
            review._outcomes[key] = outcome


def _key(listed: ListedFace) -> Key:
    return listed.box, listed.id, listed.candidate
