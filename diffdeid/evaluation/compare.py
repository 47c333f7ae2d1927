"""Compare de-identified pictures with their originals: all numbers of one method."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from torch import nn

from diffdeid.errors import DiffDeIDError
from diffdeid.evaluation.examiner import CONTEXT, FILTER, ExaminedFace, Examiner, each
from diffdeid.evaluation.features import features
from diffdeid.evaluation.memory import Memory
from diffdeid.evaluation.originals import RealPicture, choose_probes
from diffdeid.evaluation.structures import FEW, Evaluation, ExaminedPair, Metric, Scores
from diffdeid.geometry.align import ffhq_matrix, warp
from diffdeid.geometry.boxes import intersection_over_union
from diffdeid.geometry.composite import FEATHER
from diffdeid.geometry.guides import eye_map
from diffdeid.geometry.mask import face_region, mouth_region
from diffdeid.io.images import read_image
from diffdeid.metrics import privacy, quality
from diffdeid.metrics.utility import coefficient_distances, landmark_error
from diffdeid.structures import Face, FaceCrop

CROP = 224  # pixels of the crops that are compared
RIM = 0.04  # of the face's height: how far the soft edge of a paste may reach beyond the face's hull
# Mean difference, in grey levels, between 32×32 cells of a face before and after. H.264 up to CRF 36 changed faces 90…240 pixels
# wide by at most 5.2, de-identification and mosaics by at least 11.6.
UNTOUCHED, CELLS = 6.0, (32, 32)
FALSE_ACCEPT_RATES = (1e-3, 1e-4)
UNITS = {"pose": "°", "gaze": "°", "age difference": "years", "PSNR in the face": "dB", "PSNR outside": "dB"}
UTILITY = (
    "EXP", "POSE", "GAZE", "pose", "gaze", "landmark error", "same expression class", "face found", "box overlap",
    "age difference", "same sex",
)  # fmt: skip
QUALITY = (
    "PSNR in the face", "PSNR outside", "SSIM in the face", "SSIM outside", "skin colour difference",
    "colour step at the border", "colour step at the border of originals",
)  # fmt: skip
FLOOR = "floor of K, rank-1"


def compare(
    method: str,
    originals: dict[str, RealPicture],
    results: dict[str, Path],
    examiner: Examiner,
    network: nn.Module,
    memory: Memory,
) -> Evaluation:
    """Measure privacy, utility, quality and coverage of one method.

    Args:
        method: its name.
        originals: by name.
        results: files of the de-identified pictures, by the names of their originals.
        examiner: the networks that judge faces.
        network: gives the features for distances between distributions.
        memory: of an interrupted evaluation.

    Raises:
        DiffDeIDError: a result has no original or another size, or no original shows a face.
    """
    unknown = sorted(results.keys() - originals.keys())
    if unknown:
        raise DiffDeIDError(f"{len(unknown)} results have no original of the same name, the first is `{unknown[0]}`.")
    names = sorted(results)
    compared = each(
        lambda name: _compare_picture(method, name, originals[name], results[name], examiner, memory), names, f"{method}: compare"
    )
    untouched, pairs = zip(*compared, strict=True)
    evaluation = Evaluation(method, pairs=[pair for pair in pairs if pair is not None])
    if not evaluation.pairs:
        raise DiffDeIDError("No face was found in any of the originals, so there is nothing to compare.")
    evaluation.metrics += measure_privacy(evaluation, originals, examiner.recognisers)
    evaluation.metrics += measure_utility(evaluation.pairs)
    evaluation.metrics += measure_quality(evaluation.pairs, network)
    faces = sum(len(originals[name].faces) for name in names)
    left = sum(untouched)
    evaluation.metrics.append(Metric("coverage", "faces left as they were", left / faces, chance=0.0, alarm=left > 0))
    evaluation.metrics.append(Metric("coverage", "faces", faces))
    without = sum(not originals[name].faces for name in names)
    evaluation.metrics.append(Metric("coverage", "pictures in which no face was found", without))
    return evaluation


def _compare_picture(
    method: str, name: str, original: RealPicture, path: Path, examiner: Examiner, memory: Memory
) -> tuple[int, ExaminedPair | None]:
    """How many faces of a picture were left as they were, and the largest face before and after, if there is one."""
    before, after = (np.asarray(read_image(file).image) for file in (original.path, path))
    if before.shape != after.shape:
        raise DiffDeIDError(f"`{path}` has {after.shape[:2]} pixels and its original {before.shape[:2]}: they must be equal.")
    untouched = sum(is_untouched(before, after, face) for face in original.faces)
    source = original.examined
    if source is None:
        return untouched, None
    _, result = memory.recall(f"{method}/{name}", lambda: ([], examiner.examine_at(after, source.face)), original.path, path)
    crops = tuple(warp(picture, ffhq_matrix(source.face.landmarks, CROP), CROP) for picture in (before, after))
    numbers = compare_faces(before, after, source, result, crops)
    return untouched, ExaminedPair(name, original.person, source, result, crops, numbers)


def is_untouched(before: np.ndarray, after: np.ndarray, face: Face) -> bool:
    """Whether a face differs by no more than compression changes it, compared without the detail that encoders drop."""
    (x0, y0), (x1, y1) = face.box[:2].clip(0).astype(int), np.ceil(face.box[2:]).clip(0).astype(int)
    regions = [picture[y0:y1, x0:x1].astype(np.float32) for picture in (before, after)]
    if regions[0].size == 0:
        return False
    first, second = (cv2.resize(region, CELLS, interpolation=cv2.INTER_AREA) for region in regions)
    return bool(np.abs(first - second).mean() < UNTOUCHED)


def compare_faces(
    before: np.ndarray, after: np.ndarray, source: ExaminedFace, result: ExaminedFace, crops: tuple[np.ndarray, np.ndarray]
) -> dict[str, float]:
    """The numbers of one picture; `crops` show both in the same window. What needs a face is NaN where none is found."""
    inside, outside = _regions(before, source.face)
    similarities = quality.ssim(before, after, inside, outside)
    numbers = {
        f"cosine to the source [{name}]": float(source.embeddings[name] @ vector) for name, vector in result.embeddings.items()
    }
    numbers |= coefficient_distances(source.coefficients, result.coefficients)
    known = {
        "landmark error": landmark_error(source.face.landmarks, result.face.landmarks),
        "same expression class": float(source.emotion.argmax() == result.emotion.argmax()),
        "age difference": abs(result.age - source.age),
        "same sex": float((source.femininity > 0.5) == (result.femininity > 0.5)),
        "box overlap": intersection_over_union(source.face.box, result.face.box),
    }
    numbers |= {name: value if result.found else float("nan") for name, value in known.items()}
    erased, skin = _crop_regions(source.face)
    step, own_step = quality.colour_step(*crops, erased, FEATHER * CROP)
    return numbers | {
        "face found": float(result.found),
        "PSNR in the face": quality.psnr(before, after, inside),
        "PSNR outside": quality.psnr(before, after, outside),
        "SSIM in the face": similarities[0],
        "SSIM outside": similarities[1],
        "skin colour difference": quality.colour_difference(*crops, skin),
        "colour step at the border": step,
        "colour step at the border of originals": own_step,
    }


def _regions(picture: np.ndarray, face: Face) -> tuple[np.ndarray, np.ndarray]:
    """Where the face is, and where it surely is not, `(H, W)` bool."""
    height, width = picture.shape[:2]
    inside = face_region(face.landmarks, max(height, width))[:height, :width] > 0
    rim = RIM * np.linalg.norm(face.landmarks[10, :2] - face.landmarks[152, :2])
    return inside, cv2.distanceTransform((~inside).astype(np.uint8), cv2.DIST_L2, 5) > rim


def _crop_regions(face: Face) -> tuple[np.ndarray, np.ndarray]:
    """What is erased in a face's crop, and the same without mouth and eyes, `(224, 224)` bool."""
    points = FaceCrop(np.empty(0), ffhq_matrix(face.landmarks, CROP)).to_crop(face.landmarks)
    erased = face_region(points, CROP) > 0
    return erased, erased & ~(mouth_region(points, CROP) > 0) & ~(eye_map(points, np.zeros(4), CROP) > 0)


def measure_privacy(evaluation: Evaluation, originals: dict[str, RealPicture], recognisers: Sequence[str]) -> list[Metric]:
    """Recognise the de-identified probes in the gallery of originals, by each recogniser."""
    probes = set(choose_probes({name: original.person for name, original in originals.items()}))
    pairs = [pair for pair in evaluation.pairs if pair.name in probes]
    known = [original for original in originals.values() if original.gallery and original.examined is not None]
    people = [original.person for original in known]
    pairs = [pair for pair in pairs if pair.person in set(people)]
    comparable = bool(pairs) and len(set(people)) > 1
    metrics = measure_floor(pairs, known) if comparable else []
    floor = metrics[0].value if metrics else None
    for recogniser in recognisers if comparable else ():
        gallery = np.stack([original.examined.embeddings[recogniser] for original in known])
        before, after = (
            np.stack([getattr(pair, side).embeddings[recogniser] for pair in pairs]) for side in ("source", "result")
        )
        real, columns = privacy.person_scores(before, gallery, people)
        scores, _ = privacy.person_scores(after, gallery, people)
        own = np.array([columns.index(pair.person) for pair in pairs])
        genuine, impostor = privacy.genuine_and_impostor(real, own)
        metrics += recognition(recogniser, scores, own, impostor, floor)
        metrics.append(Metric("privacy", f"rank-1 of originals [{recogniser}]", float((privacy.ranks(real, own) == 1).mean())))
        evaluation.scores[recogniser] = Scores(genuine, impostor, privacy.genuine_and_impostor(scores, own)[0])
    for recogniser in recognisers:
        cosines = np.array([pair.numbers[f"cosine to the source [{recogniser}]"] for pair in evaluation.pairs])
        metrics.append(Metric("privacy", f"mean cosine to the source [{recogniser}]", float(cosines.mean())))
        metrics.append(Metric("privacy", f"largest cosine to the source [{recogniser}]", float(cosines.max())))
        others = np.stack([pair.result.embeddings[recogniser] for pair in evaluation.pairs])
        if len(others) > 1:
            metrics.append(Metric("quality", f"diversity between results [{recogniser}]", quality.diversity(others)))
    return metrics


def measure_floor(pairs: Sequence[ExaminedPair], known: Sequence[RealPicture]) -> list[Metric]:
    """The share of probes that their surroundings alone identify, which every result shows.

    Two attackers have the gallery and see the probes with all faces erased. One compares the features of the erased probe with
    those of the erased pictures of the gallery. The other has the context encoder, and compares the identity that it expects with
    the faces of the gallery by the recogniser "filter".

    Returns:
        The metric of the best attacker (the best also within intervals and permutations), then that of each.
    """
    people, scores = [original.person for original in known], {}
    for network in pairs[0].source.surroundings:
        around = np.stack([original.examined.surroundings[network] for original in known])
        gallery = np.stack([original.examined.embeddings[FILTER] for original in known]) if network == CONTEXT else around
        probes = np.stack([pair.source.surroundings[network] for pair in pairs])
        scores[network], columns = privacy.person_scores(_directions(probes, around), _directions(gallery, gallery), people)
    own = np.array([columns.index(pair.person) for pair in pairs])
    return floor_of_k(scores, own)


def floor_of_k(scores: dict[str, np.ndarray], own: np.ndarray) -> list[Metric]:
    """Rank-1 of the best attacker and of each, from scores `(n, p)` of probes to people; `own` `(n,)` are the right columns."""
    rows, metrics = np.arange(len(own)), []
    for name, attackers in {FLOOR: list(scores), **{f"{FLOOR} [{network}]": [network] for network in scores}}.items():

        def best(said: np.ndarray, drawn: np.ndarray, attackers: list[str] = attackers) -> float:
            return max((privacy.ranks(scores[network][drawn], said[drawn]) == 1).mean() for network in attackers)

        interval = privacy.bootstrap(lambda drawn, best=best: best(own, drawn), len(own))
        chance = privacy.chance(lambda said, best=best: best(said, rows), own)[0]
        metrics.append(Metric("privacy", name, float(best(own, rows)), "", interval, chance))
    return metrics


def _directions(vectors: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Unit vectors `(n, d)` from the mean of `known`, so that nobody is near to everybody by being average."""
    centred = vectors - known.mean(0)
    return centred / np.linalg.norm(centred, axis=1, keepdims=True).clip(1e-12)


def recognition(
    recogniser: str, scores: np.ndarray, own: np.ndarray, impostor: np.ndarray, floor: float | None = None
) -> list[Metric]:
    """The numbers of one recogniser, with interval and chance, and an alarm where chance is exceeded (permutation test, 2.5 %).

    Args:
        scores: cosines `(n, p)` of de-identified probes to people.
        own: `(n,)` the columns of the right people.
        impostor: cosines of originals to other people, which set the thresholds.
        floor: rank-1 of an attacker who sees the surroundings alone, to show beside that of the results.
    """
    rows = np.arange(len(own))
    statistics = {f"rank-{k}": lambda said, drawn, k=k: (privacy.ranks(scores[drawn], said[drawn]) <= k).mean() for k in (1, 5)}
    for far in FALSE_ACCEPT_RATES:
        accepted = scores > privacy.threshold_at(impostor, far)
        statistics[f"TPR at FAR {far:.0e}"] = lambda said, drawn, accepted=accepted: accepted[drawn, said[drawn]].mean()
    statistics["cosine to own photo"] = lambda said, drawn: scores[drawn, said[drawn]].mean()
    statistics["EER"] = lambda said, drawn: privacy.equal_error_rate(*privacy.genuine_and_impostor(scores[drawn], said[drawn]))
    metrics = []
    for name, statistic in statistics.items():
        value = float(statistic(own, rows))
        interval = privacy.bootstrap(lambda drawn, f=statistic: f(own, drawn), len(own))
        mean, low, high = privacy.chance(lambda said, f=statistic: f(said, rows), own)
        alarm = value < low if name == "EER" else value > high
        beside = floor if name == "rank-1" else None
        metrics.append(Metric("privacy", f"{name} [{recogniser}]", value, "", interval, mean, bool(alarm), beside))
    return metrics


def measure_utility(pairs: list[ExaminedPair]) -> list[Metric]:
    """Means over the faces that are found in the results."""
    return [_mean("utility", name, pairs) for name in UTILITY]


def measure_quality(pairs: list[ExaminedPair], network: nn.Module) -> list[Metric]:
    """Means over all pictures; distances between one half of the results and the other half of the originals; and how well a
    classifier tells results from originals.
    """
    metrics = [_mean("quality", name, pairs) for name in QUALITY]
    if len(pairs) < 4:
        return metrics
    before, after = (features(network, [pair.crops[side] for pair in pairs]) for side in (0, 1))
    label = f"[{type(network).__name__}]"
    for name, distance in (("Fréchet distance", quality.frechet_distance), ("kernel distance", quality.kernel_distance)):
        metrics.append(Metric("quality", f"{name} {label}", distance(after[::2], before[1::2])))
        metrics.append(Metric("quality", f"{name} of originals {label}", distance(before[::2], before[1::2])))
    if len(pairs) >= FEW:
        metrics.append(Metric("quality", f"two-sample AUC {label}", quality.two_sample_auc(before, after)))
        halves = quality.two_sample_auc(before[::2], before[1::2])
        metrics.append(Metric("quality", f"two-sample AUC of originals {label}", halves))
    return metrics


def _mean(block: str, name: str, pairs: list[ExaminedPair]) -> Metric:
    values = np.array([pair.numbers[name] for pair in pairs])
    values = values[~np.isnan(values)]
    if len(values) == 0:
        return Metric(block, name, float("nan"), UNITS.get(name, ""))
    known = len(values) > 1 and np.isfinite(values).all()
    interval = privacy.bootstrap(lambda drawn: values[drawn].mean(), len(values)) if known else None
    return Metric(block, name, float(values.mean()), UNITS.get(name, ""), interval)
