"""Who stays as they are: people who agreed to be seen ("keep"), or everybody except some people ("only").

A face stays only if it is seen clearly and the recogniser is sure. Whoever is in doubt is de-identified, and so is everybody
after an error. Embeddings are held only of the people who agreed, or who are not to be seen.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from diffusers import DiffusionPipeline

from diffdeid.engine.faces import Engine, split
from diffdeid.errors import ConfigurationError
from diffdeid.geometry.faces import is_reached, merge, same_face
from diffdeid.geometry.landmarks import frontality
from diffdeid.geometry.mask import face_height
from diffdeid.io.images import read_image
from diffdeid.stages.detect import why_covered
from diffdeid.structures import Face

Mode = Literal["keep", "only"]
SURELY_THEM = 0.15  # 1 - cosine up to which a face is surely that of a person: of 200,000 pairs of two people none is so near
SURELY_OTHERS = 0.8  # … and from which on it surely is not: of 148 pairs of web photos of one person the farthest has .51
RIVAL = 0.1  # by how much farther any other face must be from the person, and the face from any other person who agreed
NEAR = SURELY_THEM + RIVAL  # up to which it is said whom a replaced face looks like: no two people of a folder are so near
LEAST_HEIGHT = 64.0  # pixels from the forehead to the chin; smaller faces look more alike, and less like themselves
LEAST_FRONTALITY = 0.25  # about 30° to the side
LEAST_PRESENCE = 0.9  # of the attention mesh
LEAST_DETAIL = 0.025  # of a face, relative: a blur of .01 of its height leaves .03, and one of .02 leaves .016
MOST_HIDDEN = 0.25  # of a face by what is in front of it; hair over the forehead is up to .2 of it
# Why a face does not stay. The first reason is that of all faces that are near to nobody, so that it tells nothing about anybody:
DOUBTED = "it is not surely somebody who stays"
HIDDEN = "it is blurred, or something is in front of it"
SHARED = "something that looks like another face lies in it"
FAILED = "an error kept it from being compared"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Kept:
    """A face that stays as it is.

    Attributes:
        person: whose it is, by the name of their folder; `None` where everybody but some people stays.
        margin: by how much its distance, 1 - cosine, is on the right side of the limit; `None` if somebody chose it by hand.
    """

    person: str | None = None
    margin: float | None = None


BY_HAND = Kept()
Verdict = Kept | str  # text says why a face does not stay; it names only people who agreed


@dataclass(frozen=True, eq=False)
class Consent:
    """People by their photos, and what is to become of them.

    Attributes:
        mode: "keep": these people stay as they are, and whoever is not surely one of them is de-identified. "only": these people
            are de-identified, and whoever is surely none of them stays.
        people: for each name `(n, 128)` float32 unit embeddings z_id of n photos.
    """

    mode: Mode
    people: Mapping[str, np.ndarray]

    def __post_init__(self) -> None:
        if self.mode not in ("keep", "only"):
            raise ValueError(f"`mode` must be 'keep' or 'only', got {self.mode!r}.")
        if not self.people:
            raise ValueError("`people` must hold at least one person, got none.")
        for name, photos in self.people.items():
            if not (photos.ndim == 2 and len(photos) and np.allclose(np.linalg.norm(photos, axis=1), 1, atol=1e-3)):
                raise ValueError(f"The embeddings of `{name}` must be unit vectors `(n, 128)` of one photo or more.")

    @classmethod
    def read(cls, pipe: DiffusionPipeline, folder: str | Path, mode: Mode) -> Consent:
        """Read a folder that has a folder of photos for each person; its name is theirs.

        Args:
            pipe: a loaded pipeline, whose `face_analyser`, `face_parser` and `face_recognition` are used.
            folder: each photo in it shows one face, clearly. Hidden files are left out.
            mode: see `Consent`.

        Raises:
            ConfigurationError: the pipeline lacks one of these parts.
            ImageError: a file is no picture.
            ValueError: a photo does not show exactly one face clearly, somebody has no photo, or two people who are to stay
                cannot be told apart.
        """
        engine = pipe.engine
        _check_parts(engine)
        people: dict[str, np.ndarray] = {}
        for entry in _listed(Path(folder)):
            if not entry.is_dir():
                raise ValueError(f"`{entry}` is no folder. Put the photos of each person into a folder with the person's name.")
            photos = [_embed_photo(engine, file) for file in _listed(entry)]
            if not photos:
                raise ValueError(f"`{entry}` is empty. Put photos of the person into it, or remove it.")
            people[entry.name] = np.stack(photos)
        if not people:
            raise ValueError(f"`{folder}` is empty. Make a folder in it for each person, with photos of this person.")
        consent = cls(mode, people)
        if mode == "keep":
            consent._check_apart()
        return consent

    def digest(self) -> str:
        """A hash of the mode and the people."""
        total = hashlib.blake2b(self.mode.encode(), digest_size=16)
        for name, photos in sorted(self.people.items()):
            total.update(repr((name, photos.shape)).encode() + np.float32(photos).tobytes())
        return total.hexdigest()

    def distances(self, embedding: np.ndarray) -> dict[str, float]:
        """The distance, 1 - cosine, of an embedding `(128,)` to each person.

        It is taken to the nearest photo and to the mean of the photos. Both must be near to somebody who is to stay, so that the
        larger distance counts. Both must be far from somebody who is not to be seen, so that the smaller one counts.
        """
        worst = max if self.mode == "keep" else min
        return {
            name: float(worst(1 - (photos @ embedding).max(), 1 - _mean(photos) @ embedding))
            for name, photos in self.people.items()
        }

    def judge(self, embedding: np.ndarray, hidden: float = 0.0) -> Verdict:
        """Whether a clearly seen face with a unit embedding `(128,)` stays, if a share `hidden` of it, 0…1, cannot be seen.

        If a distance or the share is not a number, the face is in doubt.
        """
        if not hidden <= MOST_HIDDEN:
            return HIDDEN
        distances = self.distances(embedding)
        if not np.isfinite(list(distances.values())).all():
            return DOUBTED
        (name, nearest), *others = sorted(distances.items(), key=lambda one: one[1])
        if self.mode == "only":
            return Kept(None, nearest - SURELY_OTHERS) if nearest >= SURELY_OTHERS else DOUBTED
        if not nearest <= NEAR:
            return DOUBTED
        if not nearest <= SURELY_THEM:
            return f"it looks like {name}, but not surely enough"
        rival = next((other for other, distance in others if not distance - nearest >= RIVAL), None)
        return Kept(name, SURELY_THEM - nearest) if rival is None else f"it looks like {name}, and nearly as much like {rival}"

    def without_rivals(self, verdicts: Mapping[int, Kept], embeddings: Mapping[int, np.ndarray]) -> dict[int, Verdict]:
        """Verdicts on faces that are seen together: none stays if another face there is about as near to the same person.

        Nobody can be there twice, so twins and mirrors are in doubt.
        """
        near = {number: self.distances(embedding) for number, embedding in embeddings.items()}

        def is_rivalled(number: int, person: str | None) -> bool:
            others = [near[other][person] for other in near if other != number] if person is not None else []
            return not all(distance - near[number][person] >= RIVAL for distance in others if np.isfinite(distance))

        return {
            number: f"another face beside it looks as much like {kept.person}" if is_rivalled(number, kept.person) else kept
            for number, kept in verdicts.items()
        }

    def staying(
        self, engine: Engine, picture: np.ndarray, faces: Sequence[Face], seen: Sequence[Face], min_face: float
    ) -> list[Verdict]:
        """Verdicts on the faces of a picture, in their order. After an error no face stays.

        Args:
            engine: looks at them.
            picture: `(H, W, 3)` uint8.
            faces: all faces of the picture.
            seen: all that looked like a face to the detector, before it was merged.
            min_face: see `DeidentifyOptions`.

        Raises:
            ConfigurationError: the pipeline lacks a part that is needed.
        """
        try:
            _check_parts(engine)
            verdicts: dict[int, Verdict | None] = {number: why_unclear(face, min_face) for number, face in enumerate(faces)}
            clear, embeddings = [number for number, reason in verdicts.items() if reason is None], {}
            for some in split(clear, engine.batch_size):
                rows = zip(some, *look(engine, [picture] * len(some), [faces[number] for number in some]), strict=True)
                for number, embedding, hidden in rows:
                    embeddings[number], verdicts[number] = embedding, self.judge(embedding, hidden)
            verdicts |= self.without_rivals(
                {number: one for number, one in verdicts.items() if isinstance(one, Kept)}, embeddings
            )
            return [
                SHARED if isinstance(one, Kept) and is_shared(faces[number], seen, faces) else one
                for number, one in verdicts.items()
            ]
        except ConfigurationError:
            raise
        except Exception as error:  # whatever it is: whoever is in doubt is de-identified
            logger.warning("All faces are de-identified: %s: %s", type(error).__name__, error)
            return [FAILED] * len(faces)

    def _check_apart(self) -> None:
        """Raise where two people who are to stay look so much alike that one would pass for the other."""
        for number, (name, photos) in enumerate(self.people.items()):
            for other, others in list(self.people.items())[:number]:
                nearest = 1 - float((photos @ others.T).max())
                if not nearest > SURELY_THEM + RIVAL:
                    raise ValueError(
                        f"`{other}` and `{name}` look too much alike to be told apart (distance {nearest:.2f}, more than "
                        f"{SURELY_THEM + RIVAL:.2f} is needed). Put their photos into one folder."
                    )


def why_unclear(face: Face, min_face: float = 0.0) -> str | None:
    """Why a face is not seen clearly enough to stay, if it is not."""
    reason = why_covered(face, min_face)
    if reason is not None:
        return reason
    if not (face.doubt == 0 and face.presence >= LEAST_PRESENCE):
        return "its landmarks are not sure"
    height = face_height(face.landmarks)
    if not height >= LEAST_HEIGHT:
        return f"it is {height:.0f} pixels high, and {LEAST_HEIGHT:.0f} are needed"
    return None if frontality(face.landmarks) >= LEAST_FRONTALITY else "it is turned to the side"


def look(engine: Engine, pictures: Sequence[np.ndarray], faces: Sequence[Face]) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings `(B, 128)` of clear faces, and the share `(B,)` of each that cannot be seen: 0…1 or NaN, 1 for blurred faces."""
    with torch.no_grad():
        embeddings, hidden, detail = (part.cpu().numpy() for part in engine.recognise(pictures, faces))
    return embeddings, np.where(detail >= LEAST_DETAIL, hidden, 1.0)


def is_shared(face: Face, seen: Iterable[Face], faces: Sequence[Face]) -> bool:
    """Whether something in a face looks like another face, which is none of the `faces`.

    If the face were replaced or covered, that would vanish with it; if the face stays, it would stay, too.
    """
    return any(is_reached(one, face) and not any(same_face(one, other) for other in faces) for one in seen)


def _check_parts(engine: Engine) -> None:
    for name in ("face_analyser", "face_parser"):
        if getattr(engine, name) is None:
            raise ConfigurationError(f"A `{name}` is needed to tell who stays, and this pipeline has none.")


def _listed(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))


def _embed_photo(engine: Engine, file: Path) -> np.ndarray:
    picture = np.asarray(read_image(file).image)
    faces = merge(engine.face_analyser.see(picture, any_pose=True))
    if len(faces) != 1:
        raise ValueError(f"`{file}` shows {len(faces)} faces. Take another photo, or cut one out, with exactly one face.")
    reason = why_unclear(faces[0])
    if reason is None:
        (embedding,), (hidden,) = look(engine, [picture], faces)
        shown = hidden <= MOST_HIDDEN and np.isfinite(embedding).all()
        reason = None if shown else HIDDEN
    if reason is not None:
        raise ValueError(f"`{file}` does not show the face clearly enough: {reason}. Take another photo.")
    return embedding


def _mean(photos: np.ndarray) -> np.ndarray:
    mean = photos.mean(axis=0)
    return mean / np.linalg.norm(mean)
