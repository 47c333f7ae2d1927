"""Pictures that are looked over: a list of faces in, a result out, again and again; only what was corrected is rendered again."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from diffdeid.engine.consent import BY_HAND
from diffdeid.engine.faces import Engine
from diffdeid.engine.pictures import seed_of
from diffdeid.engine.reports import FaceReport
from diffdeid.errors import NoFaceFoundError
from diffdeid.face_lists import Box, ListedFace
from diffdeid.options import DeidentifyOptions
from diffdeid.stages.compose import compose
from diffdeid.stages.detect import detect_faces, why_covered
from diffdeid.structures import Covered, Face, FaceJob, Outcome


class PictureReview:
    """A picture and what was made of its faces so far.

    A face is rendered alone, by its box, its id and its candidate. So whatever is corrected about others, it stays bit-identical;
    but for pixels that two of them share, and for covers filled from the colours of a new face beside them.

    Args:
        engine: renders faces.
        picture: `(H, W, 3)` uint8 RGB.
        options: what becomes of faces.
        seed: of the result, see `engine.pictures.draw_seeds`.
    """

    def __init__(self, engine: Engine, picture: np.ndarray, options: DeidentifyOptions, seed: int):
        self.engine, self.picture, self.options, self.seed = engine, picture, options, seed
        self._faces: dict[tuple[Box, float], Face] = {}
        self._outcomes: dict[tuple[Box, int, int], Outcome] = {}

    @torch.no_grad()
    def render(self, listed: Sequence[ListedFace]) -> tuple[np.ndarray, dict[int, FaceReport]]:
        """The picture as a list of faces says, and a report for each of them but the deleted ones, by their ids.

        Raises:
            NoFaceFoundError: the list names no face.
        """
        listed = [one for one in listed if not one.deleted]
        if not listed:
            raise NoFaceFoundError("The list names no face of the picture, so nothing can be said about it being de-identified.")
        faces = {one.id: self._face(one) for one in listed}
        outcomes = {one.id: self._outcome(one, faces) for one in listed if not one.keep}
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

    def _outcome(self, listed: ListedFace, faces: dict[int, Face]) -> Outcome:
        key = listed.box, listed.id, listed.candidate
        if key not in self._outcomes:
            face, seed = faces[listed.id], seed_of(self.seed, listed.id - 1, listed.candidate)
            problem = why_covered(face, self.options.min_face)
            job = FaceJob(self.picture, face, list(faces.values()), [seed])
            ((outcome,),) = [[Covered(problem)]] if problem else self.engine.deidentify([job], self.options)
            self._outcomes[key] = outcome
        return self._outcomes[key]
