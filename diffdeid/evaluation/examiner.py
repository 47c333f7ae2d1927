"""The networks that judge faces: who they show, their age, expression and gaze.

Recognisers and classifiers run in onnxruntime on the CPU, from `weights/evaluators` (licences beside them). None of them took
part in training the denoiser or in accepting its results, except the recogniser named "filter": it is the pipeline's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
import onnxruntime
import torch
from safetensors.numpy import load_file
from tqdm import tqdm

from diffdeid.errors import AssetNotFoundError
from diffdeid.evaluation.features import EfficientNetLite0
from diffdeid.geometry.align import chip_matrix, ffhq_matrix, sample, similarity_transform, square_matrix, warp
from diffdeid.geometry.boxes import intersection_over_union
from diffdeid.geometry.pixels import to_tensor
from diffdeid.geometry.surroundings import surroundings
from diffdeid.models.context_encoder import ContextEncoderModel
from diffdeid.models.face_analyser import FaceAnalyserModel
from diffdeid.models.face_recognition import FaceRecognitionModel
from diffdeid.models.fitting import fit
from diffdeid.models.morphable_model import MorphableModel
from diffdeid.structures import Face, FaceCrop

CAFFE_MEAN = np.float32([103.939, 116.779, 123.68])  # blue, green, red
FILTER = "filter"  # the recogniser by which the pipeline accepts or refuses results; it is reported apart
FEATURES, CONTEXT = "EfficientNetLite0", "ContextEncoderModel"  # the networks that look at the surroundings of a face
EMOTIONS = ("angry", "disgusted", "fearful", "happy", "sad", "surprised", "neutral")
FIT_SIZE = 256
SAME_PLACE = 0.3  # intersection over union above which two boxes belong to one face
ARCFACE = [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]  # of 112
EMOTION_MARGIN = 1.0  # side of the classifier's square in landmark boxes


@dataclass(frozen=True)
class ExaminedFace:
    """What the networks say about one face.

    Attributes:
        face: box, landmarks and irises, in the picture. If no face was found: those of the source face.
        found: whether the detector finds a face there.
        embeddings: unit vectors by name of the recogniser; "filter" is the pipeline's own.
        coefficients: ρ `(261,)`, NaN when not found.
        emotion: `(7,)` probabilities of `EMOTIONS`, NaN when not found.
        age: in years, NaN when not found.
        femininity: 0 (male) … 1 (female), NaN when not found.
        surroundings: of originals only: what the picture tells without its faces, see `Examiner.look_around`.
    """

    face: Face
    found: bool
    embeddings: dict[str, np.ndarray]
    coefficients: np.ndarray
    emotion: np.ndarray
    age: float
    femininity: float
    surroundings: dict[str, np.ndarray] = field(default_factory=dict)


class Examiner:
    """Runs the networks on the faces of pictures.

    Args:
        model: folder of the released models, for the detector, the head, the filter's recogniser and, where it has one, the
            context encoder.
        evaluators: folder of the independent networks.
        recognisers: more recognisers, ONNX files of the ArcFace kind: one face `(1, 3, 112, 112)` RGB, (x - 127.5) / 127.5,
            aligned by ArcFace's five points -> one embedding. They are named by their file.

    Raises:
        AssetNotFoundError: a file is missing.
        ValueError: a recogniser is of another kind.
    """

    def __init__(self, model: str | Path, evaluators: str | Path, recognisers: Sequence[Path] = ()):
        if not Path(evaluators).is_dir():
            raise AssetNotFoundError(
                f"The evaluation needs networks that judge faces, but there is no folder `{evaluators}`. Packages lack it. "
                "Pass the folder `weights/evaluators` of a clone, on the command line as `--evaluators`."
            )
        self.analyser = FaceAnalyserModel.from_pretrained(model, subfolder="face_analyser")
        self.filter = FaceRecognitionModel.from_pretrained(model, subfolder="face_recognition").float().eval()
        self.head = MorphableModel.from_pretrained(model, subfolder="morphable_model").float()
        encoder = Path(model, "context_encoder")
        self.context_encoder = ContextEncoderModel.from_pretrained(encoder).float().eval() if encoder.is_dir() else None
        self._faceplugin = _session(Path(evaluators, "faceplugin.onnx"))
        self._faceres = _session(Path(evaluators, "faceres.onnx"))
        self._faceres_mean = load_file(Path(evaluators, "faceres_mean.safetensors"))["mean"]
        self._emotion = _session(Path(evaluators, "emotion.onnx"))
        self._others = {path.stem: _arcface_session(path) for path in recognisers}
        self.features = EfficientNetLite0(Path(evaluators, "efficientnet_lite0.safetensors"))

    @property
    def recognisers(self) -> tuple[str, ...]:
        """The names of the recognisers, the independent ones first."""
        return ("faceplugin", "faceres", *self._others, FILTER)

    @property
    def onlookers(self) -> tuple[str, ...]:
        """The names of the networks that look at the surroundings of a face."""
        return (FEATURES,) if self.context_encoder is None else (FEATURES, CONTEXT)

    def examine_at(self, picture: np.ndarray, source: Face) -> ExaminedFace:
        """Examine the face that took the place of `source`, or that place if no face is found.

        An attacker may know where the faces were. So where no face is found, recognisers are given that place.
        """
        for face in self.analyser(picture):
            if face.iris is not None and intersection_over_union(face.box, source.box) > SAME_PLACE:
                return self.describe(picture, face)
        nothing = np.full(7, np.nan)
        return ExaminedFace(source, False, self.embed(picture, source.landmarks), np.full(261, np.nan), nothing, np.nan, np.nan)

    @torch.no_grad()
    def describe(self, picture: np.ndarray, face: Face) -> ExaminedFace:
        """Examine a face that has landmarks and irises."""
        matrix = ffhq_matrix(face.landmarks, FIT_SIZE)
        crop = FaceCrop(warp(picture, matrix, FIT_SIZE), matrix)
        placed = (torch.from_numpy(crop.to_crop(points)).float()[None] for points in (face.landmarks, face.iris))
        coefficients = fit(self.head, *placed, torch.from_numpy(crop.image)[None].float() / 255).pack()[0].numpy()
        masculinity, ages, _ = self.faceres(picture, face.landmarks)
        grey = _face_square(picture, face.landmarks, EMOTION_MARGIN, 64) @ np.float32([0.299, 0.587, 0.114])
        (emotion,) = _run(self._emotion, (grey[..., None] / 255 - 0.5) * 2)
        embeddings = self.embed(picture, face.landmarks)
        return ExaminedFace(
            face, True, embeddings, coefficients, emotion, float(ages @ np.arange(100)), 1 - float(masculinity[0])
        )

    @torch.no_grad()
    def embed(self, picture: np.ndarray, landmarks: np.ndarray) -> dict[str, np.ndarray]:
        """Unit embeddings, by every recogniser, of the face at `(468, 2+)` landmarks in a picture `(H, W, 3)`."""
        points = landmarks[:, :2]
        five = np.stack([points[[33, 133]].mean(0), points[[362, 263]].mean(0), *points[[1, 61, 291]]])
        aligned = warp(picture, similarity_transform(five, np.array(ARCFACE)), 112).transpose(2, 0, 1) - np.float32(127.5)
        matrix = ffhq_matrix(landmarks, FIT_SIZE)
        crop = FaceCrop(warp(picture, matrix, FIT_SIZE), matrix)
        chip = sample(to_tensor([crop.image]), torch.from_numpy(chip_matrix(crop.to_crop(landmarks)))[None], 150)
        vectors = {
            "faceplugin": _run(self._faceplugin, aligned / 128)[0],
            "faceres": self.faceres(picture, landmarks)[-1] - self._faceres_mean,
            **{name: _run(session, aligned / np.float32(127.5))[0] for name, session in self._others.items()},
            FILTER: self.filter(chip).embedding[0].numpy(),
        }
        return {name: vector / np.linalg.norm(vector) for name, vector in vectors.items()}

    @torch.no_grad()
    def look_around(self, picture: np.ndarray, face: Face, others: Sequence[Face]) -> dict[str, np.ndarray]:
        """What the surroundings of a face tell of the person, with this and all other faces erased.

        Returns:
            By network: pooled features `(1280,)` and, for the context encoder, the identity `(128,)` that it expects there, a
            unit vector in the space of the recogniser "filter".
        """
        crop = surroundings(picture, face, others)
        seen = {FEATURES: self.features(torch.from_numpy(crop).permute(2, 0, 1)[None].float())[0].numpy()}
        if self.context_encoder is not None:
            context = self.context_encoder(to_tensor([crop])).context
            seen[CONTEXT] = self.context_encoder.expected_identity(context)[0].numpy()
        return seen

    def faceres(self, picture: np.ndarray, landmarks: np.ndarray) -> list[np.ndarray]:
        """FaceRes' outputs: masculinity `(1,)`, probabilities of ages `(100,)`, embedding `(1024,)` without normalisation."""
        return _run(self._faceres, _face_square(picture, landmarks, 1.3, 224)[..., ::-1] - CAFFE_MEAN)


Result = TypeVar("Result")


def each(look: Callable[[str], Result], names: list[str], title: str) -> Iterator[Result]:
    """Yield `look(name)` for each picture, in order, in as many threads as torch would use: one picture is too small for all."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            yield from tqdm(pool.map(look, names), desc=title, total=len(names), unit="picture", disable=None)
    finally:
        torch.set_num_threads(threads)


def _face_square(picture: np.ndarray, landmarks: np.ndarray, margin: float, size: int) -> np.ndarray:
    """The eye-levelled square around the landmarks, `margin` times as large, as `(size, size, 3)` float32."""
    points = landmarks[:, :2]
    right = points[[362, 263]].mean(0) - points[[33, 133]].mean(0)
    side = margin * np.ptp(points, axis=0).max()
    return warp(picture, square_matrix((points.min(0) + points.max(0)) / 2, right, side, size), size).astype(np.float32)


def _session(path: Path) -> onnxruntime.InferenceSession:
    if not path.is_file():
        raise AssetNotFoundError(f"The evaluation needs the file `{path}`, which does not exist.")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # idle threads would take the cores from torch
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _arcface_session(path: Path) -> onnxruntime.InferenceSession:
    session = _session(path)
    shape = session.get_inputs()[0].shape
    if list(shape[1:]) != [3, 112, 112] or len(session.get_outputs()) != 1:
        raise ValueError(
            f"`{path}` must take (1, 3, 112, 112) and give one embedding, got {shape} and {len(session.get_outputs())} outputs."
        )
    return session


def _run(session: onnxruntime.InferenceSession, x: np.ndarray) -> list[np.ndarray]:
    """The outputs for one picture, as vectors."""
    outputs = session.run(None, {session.get_inputs()[0].name: np.ascontiguousarray(x[None], np.float32)})
    return [output[0] for output in outputs]
