"""`diffdeid evaluate`: measure the results of one or several methods against their originals."""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from torch import nn

from diffdeid.errors import ConfigurationError
from diffdeid.evaluation import hifd
from diffdeid.evaluation.adversary import Adversary
from diffdeid.evaluation.clips import evaluate_clip
from diffdeid.evaluation.compare import compare
from diffdeid.evaluation.examiner import Examiner
from diffdeid.evaluation.features import Inception
from diffdeid.evaluation.memory import Memory
from diffdeid.evaluation.methods import METHODS, available_methods, run_method
from diffdeid.evaluation.originals import choose_probes, identify, list_pictures, read_boxes, read_originals
from diffdeid.evaluation.report import table, to_json, warning_of_few, write_report
from diffdeid.evaluation.structures import Evaluation, Metric
from diffdeid.options import DeidentifyOptions
from diffdeid.pipelines.pipeline_diffdeid import DiffDeIDPipeline


@dataclass(frozen=True)
class Judges:
    """What measures: the examiner of faces, and the network whose features Fréchet and kernel distances use."""

    examiner: Examiner
    features: nn.Module

    def memory(self, work: Path | None) -> Memory:
        """The memory of an interrupted evaluation in the folder `work`; without a folder, one that keeps nothing."""
        return Memory(work and work / "unfinished", (*self.examiner.recognisers, *self.examiner.onlookers))


def judges(model: str, evaluators: Path, recognisers: Sequence[Path] = (), inception: Path | None = None) -> Judges:
    """Load the judges; `model` is a folder or Hub id of the released models. For the rest see `Examiner` and `Inception`."""
    folder = model if Path(model).is_dir() else DiffDeIDPipeline.download(model)
    examiner = Examiner(folder, evaluators, recognisers)
    return Judges(examiner, examiner.features if inception is None else Inception(inception))


def evaluate_pair(
    real: Path,
    anon: Path,
    judges: Judges,
    identities: str | Path | None = None,
    boxes: Path | None = None,
    work: Path | None = None,
) -> Evaluation:
    """Compare two folders of pictures with the same names, or two videos.

    Args:
        real: the originals; a folder may hold more pictures than there are results.
        anon: the results; a suffix `_anonymized` of the names of pictures is ignored.
        judges: from the function `judges`.
        identities: whom the pictures show, see `originals.identify`.
        boxes: annotated faces, see `originals.read_boxes`.
        work: folder in which an evaluation of pictures keeps what it needs to go on if it is interrupted.

    Raises:
        DiffDeIDError: the two do not fit together.
    """
    if real.is_file() or anon.is_file():
        return evaluate_clip(real, anon, judges.examiner)
    pictures, results = list_pictures(real), list_pictures(anon)
    people, memory = identify(list(pictures), identities), judges.memory(work)
    originals = read_originals(pictures, people, judges.examiner, memory, boxes and read_boxes(boxes))
    evaluation = compare(anon.name, originals, results, judges.examiner, judges.features, memory)
    memory.forget()
    return evaluation


def evaluate_methods(
    methods: Sequence[str],
    data: Path,
    pipe: DiffDeIDPipeline,
    judges: Judges,
    identities: str | Path | None = None,
    boxes: Path | None = None,
    work: Path | None = None,
    seed: int = 0,
    attacks: bool = False,
    options: DeidentifyOptions | None = None,
) -> list[Evaluation]:
    """De-identify the probes among the pictures of a folder by several methods, and compare.

    Args:
        methods: names of `methods.METHODS`, or "all" for those that are installed.
        data: folder of originals.
        pipe: the method "diffdeid"; it also finds the faces for the simple methods.
        judges, identities, boxes: as in `evaluate_pair`.
        work: as there; the results stay in folders below it that are named by the methods.
        seed: of the first picture; each next picture has the next seed.
        attacks: whether to attack the results of the method "diffdeid".
        options: of the method "diffdeid"; the defaults when `None`.

    Raises:
        ConfigurationError: a method is unknown.
    """
    options = asdict(options or DeidentifyOptions())
    chosen = available_methods() if "all" in methods else tuple(dict.fromkeys(methods))
    unknown = set(chosen) - set(METHODS)
    if unknown:
        raise ConfigurationError(f"There is no method {sorted(unknown)}. Choose among {', '.join(METHODS)}, all.")
    pictures = list_pictures(data)
    people, memory = identify(list(pictures), identities), judges.memory(work)
    probes = {name: pictures[name] for name in choose_probes(people)}
    originals = read_originals(pictures, people, judges.examiner, memory, boxes and read_boxes(boxes))
    evaluations = []
    with ExitStack() as stack:
        place = work or Path(stack.enter_context(TemporaryDirectory()))
        for method in chosen:
            costs = run_method(method, pipe, probes, place / method, seed, **options)
            results = {name: place / method / f"{name}.png" for name in probes}
            evaluation = compare(method, originals, results, judges.examiner, judges.features, memory)
            evaluation.metrics += measure_costs(costs)
            if attacks and method == "diffdeid":
                by_name, seeds = {cost["name"]: cost for cost in costs}, {name: seed + n for n, name in enumerate(probes)}
                adversary = Adversary(pipe, judges.examiner, evaluation, originals, by_name, place / method, seeds, options)
                evaluation.metrics += adversary.attack()
            evaluations.append(evaluation)
    memory.forget()
    return evaluations


def publish(evaluations: list[Evaluation], report: Path | None, as_json: bool, export: Literal["hifd"] | None = None) -> str:
    """Write the report, if asked for, with predictions for another package in it; gives the text to print."""
    if report is not None:
        write_report(report, "De-identification, measured", evaluations)
        if export == "hifd":
            hifd.export(report / "hifd", evaluations)
    if as_json:
        return json.dumps(to_json(evaluations), allow_nan=False)
    return "\n".join(filter(None, (table(evaluations), warning_of_few(evaluations))))


def measure_costs(costs: list[dict]) -> list[Metric]:
    """Time, memory and covered faces, from the records of `run_method`."""
    faces = sum(cost["faces"] for cost in costs)
    seconds = sum(cost["seconds"] for cost in costs)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    metrics = [Metric("cost", "time per picture", seconds / len(costs), "s")]
    if faces:
        evaluations, covered = (sum(cost[key] for cost in costs) for key in ("evaluations", "covered"))
        metrics.append(Metric("cost", "time per face", seconds / faces, "s"))
        metrics.append(Metric("cost", "network evaluations per face", evaluations / faces))
        metrics.append(Metric("coverage", "faces covered instead of replaced", covered / faces))
    return [*metrics, Metric("cost", "peak memory of the process so far", peak, "MiB")]
