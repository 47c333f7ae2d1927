"""Compare a clip with its de-identified version, frame by frame, with two frames of each in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from diffdeid.errors import DiffDeIDError, NoFaceFoundError
from diffdeid.evaluation.compare import is_untouched
from diffdeid.evaluation.examiner import FILTER, SAME_PLACE, ExaminedFace, Examiner
from diffdeid.evaluation.structures import Evaluation, Metric
from diffdeid.geometry.boxes import intersection_over_union
from diffdeid.geometry.mask import face_region
from diffdeid.io.video_reader import VideoReader
from diffdeid.metrics import video
from diffdeid.metrics.utility import coefficient_distances
from diffdeid.structures import Face

# faceplugin, faceres: above these cosines are 5 and 3 of ten thousand pairs of different people of the London set (102 people,
# two photos of each), and all pairs of photos of one person. filter: 1 - `identity_limit` of the released pipeline.
SAME_PERSON = {"faceplugin": 0.45, "faceres": 0.7, FILTER: 0.55}
NO_CUT = 0.3  # cosine by the filter's recogniser below which a face in the same place is somebody else, after a cut
FLICKER = ("warping error", "warping error of the source")
DISTANCES = {"EXP": "", "POSE": "", "GAZE": "", "pose": "°", "gaze": "°"}


@dataclass
class Track:
    """A face of the source clip through time, and the faces that took its place in the result."""

    number: int
    seen: int  # the last measured frame that shows it
    sources: list[ExaminedFace]
    results: list[ExaminedFace] = field(default_factory=list)

    def likeness(self, face: ExaminedFace) -> float:
        """Cosine of a face to the latest one of the track, by the filter's recogniser."""
        return float(self.sources[-1].embeddings[FILTER] @ face.embeddings[FILTER])

    def add(self, source: ExaminedFace, number: int) -> None:
        self.sources.append(source)
        self.seen = number


def evaluate_clip(
    real: Path, anon: Path, examiner: Examiner, every: int = 1, limits: Mapping[str, float] = SAME_PERSON
) -> Evaluation:
    """Compare a clip with its de-identified version, which must have the same frames.

    Args:
        real: the source clip.
        anon: the de-identified clip.
        examiner: the networks that judge faces.
        every: measure only every n-th frame; these then count as consecutive. Flicker is always measured to the frame before.
        limits: by name of a recogniser, the cosine above which it takes two faces for one person.

    Raises:
        VideoError: a file is not a video.
        NoFaceFoundError: `real` shows no face with landmarks.
        DiffDeIDError: the clips have other sizes or numbers of frames.
    """
    if every < 1:
        raise ValueError(f"`every` must be at least 1, got {every}.")
    length = _check_pair(real, anon)
    evaluation, tracks = Evaluation(anon.name), []
    frames, last = zip(VideoReader(real), VideoReader(anon), strict=False), None
    for number, ((before, time), (after, _)) in enumerate(tqdm(frames, desc="frames", total=length, unit="frame", disable=None)):
        if number % every == 0:
            faces, stamp = examiner.analyser(before), {"frame": number, "time": float(time)}
            for track in follow(tracks, before, faces, number // every, examiner):
                track.results.append(examiner.examine_at(after, track.sources[-1].face))
                evaluation.frames.append(stamp | compare_frame(track, before, after, last))
            for face in faces:
                if face.iris is None:
                    evaluation.frames.append(stamp | {"track": -1, "unprocessed": float(is_untouched(before, after, face))})
        last = before, after
    if not tracks:
        raise NoFaceFoundError(f"No frame of `{real}` shows a face with landmarks, so there is nothing to compare.")
    unprocessed = _column(evaluation.frames, "unprocessed")
    counts = {"frames": len(range(0, length, every)), "faces in frames": len(evaluation.frames), "tracks": len(tracks)}
    evaluation.metrics += [
        *measure_identity(tracks, examiner.recognisers, limits),
        *measure_motion(tracks, evaluation.frames),
        Metric("coverage", "faces left as they were", unprocessed, chance=0.0, alarm=unprocessed > 0),
        Metric("coverage", "no face found in its place", 1 - _column(evaluation.frames, "found")),
        *(Metric("coverage", name, float(count)) for name, count in counts.items()),
    ]
    return evaluation


def follow(tracks: list[Track], picture: np.ndarray, faces: Sequence[Face], number: int, examiner: Examiner) -> list[Track]:
    """Add the faces of a measured frame to the tracks they belong to, or to new ones.

    A face belongs to the track that was at its place in the measured frame before; after gaps, to the track that it looks like.
    Detectors miss faces in single frames, and a de-identifier with the same detector misses the same ones. So where a track would
    end, its place is examined once more. Gives the tracks that are in this frame, the measured frame `number`.
    """
    seen = [examiner.describe(picture, face) for face in faces if face.iris is not None]
    matches = []
    for track in tracks:
        for index, source in enumerate(seen):
            alike = track.likeness(source)
            place = intersection_over_union(source.face.box, track.sources[-1].face.box) if track.seen == number - 1 else 0.0
            here = place > SAME_PLACE and alike > NO_CUT
            if here or alike > SAME_PERSON[FILTER]:
                matches.append((here, place + alike, track.number, index))
    new = set(range(len(seen)))
    for _, _, owner, index in sorted(matches, reverse=True):
        if index in new and tracks[owner].seen < number:
            new.remove(index)
            tracks[owner].add(seen[index], number)
    tracks += [Track(len(tracks) + count, number, [seen[index]]) for count, index in enumerate(sorted(new))]

    for track in (track for track in tracks if track.seen == number - 1):
        face = examiner.analyser(picture, [Face(track.sources[-1].face.box)])[0]
        if face.iris is not None and all(intersection_over_union(face.box, other.face.box) < SAME_PLACE for other in seen):
            box = np.concatenate([face.landmarks[:, :2].min(0), face.landmarks[:, :2].max(0)])  # the old box would lag behind
            source = examiner.describe(picture, replace(face, box=box))
            if track.likeness(source) > SAME_PERSON[FILTER]:
                track.add(source, number)
    return [track for track in tracks if track.seen == number]


def compare_frame(track: Track, before: np.ndarray, after: np.ndarray, last: Sequence[np.ndarray] | None) -> dict[str, float]:
    """The numbers of a track's latest face, from a frame of source and result, and from both frames before, `last`, if any."""
    source, result, nothing = track.sources[-1], track.results[-1], float("nan")
    height, width = before.shape[:2]
    inside = face_region(source.face.landmarks, max(height, width))[:height, :width] > 0
    row = {"track": track.number, "found": float(result.found), "unprocessed": float(is_untouched(before, after, source.face))}
    earlier = track.results[-2].embeddings if len(track.results) > 1 and track.results[-2].found and result.found else {}
    for name, vector in result.embeddings.items():
        row[f"source similarity [{name}]"] = float(source.embeddings[name] @ vector)
        row[f"consecutive cosine [{name}]"] = float(earlier[name] @ vector) if earlier else nothing
    flicker = (nothing, nothing) if last is None else video.warping_error((last[0], before), (last[1], after), inside)
    distances = coefficient_distances(source.coefficients, result.coefficients)
    return row | distances | dict(zip(FLICKER, flicker, strict=True))


def measure_identity(tracks: list[Track], recognisers: Sequence[str], limits: Mapping[str, float]) -> list[Metric]:
    """Whether the results show the people of the source, and whether each shows one person throughout."""
    metrics, lengths = [], [sum(face.found for face in track.results) for track in tracks]
    for name in recognisers:
        limit = limits.get(name, SAME_PERSON["faceplugin"])  # the user's own are of ArcFace's kind, as faceplugin is
        sources = [np.stack([face.embeddings[name] for face in track.sources]) for track in tracks]
        results = [np.stack([face.embeddings[name] for face in track.results]) for track in tracks]
        shown = [result[[face.found for face in track.results]] for track, result in zip(tracks, results, strict=True)]
        same, own = ([video.identity_consistency(embeddings) for embeddings in faces] for faces in (shown, sources))
        leak = video.source_similarity(np.concatenate(sources), np.concatenate(results))
        metrics.append(Metric("privacy", f"source similarity, max [{name}]", leak["max"], alarm=leak["max"] > limit))
        metrics.append(Metric("privacy", f"source similarity, mean [{name}]", leak["mean"]))
        switches = [video.identity_switches(embeddings, limit) for embeddings in shown]
        values = {
            "identity consistency, mean": _mean([cosines["mean"] for cosines in same], lengths),
            "identity consistency, min": float(np.fmin.reduce([cosines["min"] for cosines in same])),  # NaN only if all are
            "identity consistency to the track's mean": _mean([cosines["to mean"] for cosines in same], lengths),
            "identity consistency of the source, mean": _mean([cosines["mean"] for cosines in own], list(map(len, sources))),
            "identity switches": float(sum(switches)) if any(lengths) else float("nan"),
        }
        metrics += [Metric("video", f"{label} [{name}]", value) for label, value in values.items()]
    return metrics


def measure_motion(tracks: list[Track], rows: list[dict[str, float]]) -> list[Metric]:
    """Whether expression, pose, gaze and landmarks follow those of the source, and whether the picture flickers."""
    pairs = [[pair for pair in zip(track.sources, track.results, strict=True) if pair[1].found] for track in tracks]
    metrics = [Metric("utility", name, _column(rows, name), unit) for name, unit in DISTANCES.items()]
    coefficients = np.array([[face.coefficients for face in pair] for track in pairs for pair in track]).reshape(-1, 2, 261)
    for name, cosine in (("EXP", video.expression_cosine), ("POSE", video.pose_cosine), ("GAZE", video.gaze_cosine)):
        metrics.append(Metric("utility", f"{name} cosine", cosine(*coefficients.swapaxes(0, 1))))
    landmarks = [np.array([[face.face.landmarks[:, :2] for face in pair] for pair in track]) for track in pairs if track]
    correlations = [video.landmark_correlation(*points.swapaxes(0, 1)) for points in landmarks]
    metrics.append(Metric("video", "landmark correlation", _mean(correlations, list(map(len, landmarks)))))
    error, own = (_column(rows, name) for name in FLICKER)
    metrics += [Metric("video", FLICKER[0], error), Metric("video", FLICKER[1], own)]
    return [*metrics, Metric("video", "warping error in parts of the source's", error / own if own > 0 else float("nan"))]


def _column(rows: list[dict[str, float]], name: str) -> float:
    return _mean([row.get(name, float("nan")) for row in rows], [1] * len(rows))


def _mean(values: Sequence[float], weights: Sequence[int]) -> float:
    """The weighted mean of the values that are not NaN."""
    known = ~np.isnan(values)
    return float(np.average(np.array(values)[known], weights=np.array(weights)[known])) if known.any() else float("nan")


def _check_pair(real: Path, anon: Path) -> int:
    """The number of frames to compare; refuses clips that do not fit before minutes are spent on their faces."""
    first, second = ([frame.picture.shape[1::-1] for frame in VideoReader(path)] for path in (real, anon))
    if len({*first, *second}) != 1:
        sizes = f"`{anon}` has frames of {sorted(set(second))} pixels and `{real}` of {sorted(set(first))}"
        raise DiffDeIDError(f"{sizes}: expected one size (width, height). Scale the source as the result was.")
    if abs(len(first) - len(second)) > 1:
        counts = f"`{anon}` has {len(second)} frames and `{real}` {len(first)}"
        raise DiffDeIDError(f"{counts}: expected the same frames (±1). Cut or resample the source as the result was.")
    return min(len(first), len(second))
