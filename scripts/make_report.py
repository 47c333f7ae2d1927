"""Make `docs/report/`: the paper's tables and figures, and more, on the data at hand.

    python scripts/make_report.py DATA    # measure, draw, write
    python scripts/make_report.py         # write the pages again, from the existing numbers

DATA holds `london` (`<person>_neutral.jpg`, `<person>_smiling.jpg`), `wild` (photos from the web, `people.csv` says of whom),
`val` (face crops) and `video/val` (clips). `docs/report/` shows none of these faces, only numbers, plots, and the levels of the
demo photo. A "note" in `numbers.json`, written by hand, tells what has changed since; the page shows it. The pages that show
faces go to `runs/report/`, which must not be published. After an interruption, run it again: it keeps the pictures that are
finished.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from scipy.stats import spearmanr

from diffdeid import DeidentifyOptions, DiffDeIDPipeline, DiffDeIDVideoPipeline, VideoReader, VideoWriter, read_image
from diffdeid.evaluation import plots
from diffdeid.evaluation.answers import ALARM, Answer, answers
from diffdeid.evaluation.compare import compare
from diffdeid.evaluation.methods import available_methods, run_method
from diffdeid.evaluation.originals import choose_probes, identify, list_pictures, read_originals
from diffdeid.evaluation.report import from_json, table, to_json, write_report
from diffdeid.evaluation.run import Judges, evaluate_methods, evaluate_pair, judges
from diffdeid.evaluation.structures import Evaluation, Metric

ROOT = Path(__file__).parents[1]
DOCS, FACES = ROOT / "docs/report", ROOT / "runs/report"
PHOTO = ROOT / "tests/assets/astronaut.png"
LEVELS = range(1, 11)
LEVEL_PEOPLE = 51
CROPS = 63  # of those held out
CLIP, CLIP_FRAMES = "d11.mp4", 40
PUBLISHED = """| method (published) | PSNR, dB | EXP | POSE | FID |
|---|---|---|---|---|
| DeepPrivacy | 19.7 | 3.36 | .2325 | 23.68 |
| CIAGAN | 18.1 | 3.23 | .3024 | 27.78 |
| RePaint | 21.8 | 4.59 | .2012 | 19.67 |
| DiffDeID (the paper's network) | 22.3 | 2.03 | .1078 | 12.96 |
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?")
    data = parser.parse_args().data
    if data is not None:
        DOCS.mkdir(parents=True, exist_ok=True)
        numbers = json.dumps(measure(data), indent=1, allow_nan=False)
        (DOCS / "numbers.json").write_text(numbers + "\n")
    numbers = json.loads((DOCS / "numbers.json").read_text())
    plots.bars(from_json(numbers["london"]), "rank-1 [faceres]").savefig(DOCS / "methods.png", dpi=110)
    for name, page in pages(numbers).items():
        (DOCS / name).write_text(page)


def measure(data: Path) -> dict[str, Any]:
    """Measure all numbers, draw the figures that need more than numbers, and write the pages with faces."""
    pipe = DiffDeIDPipeline.from_pretrained(ROOT / "weights/diffdeid", reconstructor=None)
    pipe.set_progress_bar_config(disable=True)
    panel = judges(str(ROOT / "weights/diffdeid"), ROOT / "weights/evaluators")

    people = evaluate_methods(available_methods(), data / "london", pipe, panel, "names", work=FACES / "london", attacks=True)
    write_report(FACES / "london", "Table 1: 102 people, smiling, recognised among neutral photos", people)
    people += evaluate_attributes(data / "london", "names", pipe, panel)
    photos, names = photos_of_people(data / "wild"), str(data / "wild/people.csv")
    web = evaluate_methods(("diffdeid",), photos, pipe, panel, names, work=FACES / "wild")
    web += evaluate_attributes(photos, names, pipe, panel)
    write_report(FACES / "wild", "Photos from the web", web)
    crops = evaluate_methods(available_methods(), some_crops(data / "val"), pipe, panel, work=FACES / "val")
    write_report(FACES / "val", "Table 1: held-out crops", crops)
    people, attacks = split_off_attacks(people)
    levels = evaluate_levels(data / "london", pipe, panel)
    clip = evaluate_video(data / "video/val" / CLIP, pipe, panel)

    draw_levels_of_the_photo(pipe)
    for name, figure in plot_levels(levels).items():
        figure.savefig(DOCS / f"{name}.png", dpi=110)
    plot_clip(clip).savefig(DOCS / "clip.png", dpi=110)
    tables = {"london": people, "wild": web, "val": crops, "attacks": attacks, "levels": levels, "clip": [clip]}
    return {name: to_json(evaluations) for name, evaluations in tables.items()} | {
        "people on the web": len({pair.person for pair in web[0].pairs}),
        "trends": [trend(levels, recogniser) for recogniser in ("faceplugin", "faceres", "filter")],
    }


def evaluate_attributes(folder: Path, identities: str, pipe: DiffDeIDPipeline, panel: Judges) -> list[Evaluation]:
    """Evaluate the other two values of `attributes`, besides the default."""
    evaluations = []
    for attributes in ("any", "source"):
        work = FACES / f"{folder.name}-{attributes}"
        options = DeidentifyOptions(attributes=attributes)
        (evaluation,) = evaluate_methods(("diffdeid",), folder, pipe, panel, identities, work=work, options=options)
        evaluations.append(replace(evaluation, method=f"diffdeid, {attributes}"))
    return evaluations


def split_off_attacks(evaluations: list[Evaluation]) -> tuple[list[Evaluation], list[Evaluation]]:
    """The evaluations that compare all methods, and the adversary's metrics of ours."""

    def is_his(metric: Metric) -> bool:
        return metric.block == "attacks" or "between candidates" in metric.name

    others = [replace(one, metrics=[metric for metric in one.metrics if not is_his(metric)]) for one in evaluations]
    (ours,) = (one for one in evaluations if one.method == "diffdeid")
    return others, [Evaluation(ours.method, [metric for metric in ours.metrics if is_his(metric)])]


def linked(paths: list[Path], folder: Path) -> Path:
    """A folder with links to pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in paths:
        link = folder / path.name
        if not link.exists():
            link.symlink_to(path.resolve())
    return folder


def some_crops(folder: Path) -> Path:
    """Links to held-out crops, evenly spread."""
    paths = sorted(folder.glob("*.jpg"))  # beside a folder of labels
    return linked([paths[index] for index in np.linspace(0, len(paths) - 1, CROPS).round().astype(int)], FACES / "crops")


def photos_of_people(folder: Path) -> Path:
    """Links to the photos of known people."""
    with (folder / "people.csv").open(newline="") as file:
        return linked([folder / row["picture"] for row in csv.DictReader(file)], FACES / "photos")


def evaluate_levels(folder: Path, pipe: DiffDeIDPipeline, panel: Judges) -> list[Evaluation]:
    """Figures 3 and 4: the same people and seeds at all levels."""
    pictures = list_pictures(folder)
    people, memory = identify(list(pictures), "names"), panel.memory(FACES / "levels")
    originals = read_originals(pictures, people, panel.examiner, memory)
    names = choose_probes(people)
    probes = {name: pictures[name] for name in names[:: max(1, len(names) // LEVEL_PEOPLE)][:LEVEL_PEOPLE]}
    evaluations = []
    for level in LEVELS:
        out = FACES / "levels" / str(level)
        run_method("diffdeid", pipe, probes, out, seed=0, level=level)
        results = {name: out / f"{name}.png" for name in probes}
        evaluations.append(compare(f"level {level}", originals, results, panel.examiner, panel.features, memory))
    memory.forget()
    rows = [
        [evaluations[0].pairs[number].crops[0], *(evaluation.pairs[number].crops[1] for evaluation in evaluations)]
        for number in range(0, len(evaluations[0].pairs), 7)
    ]
    Image.fromarray(np.concatenate([np.concatenate(row, axis=1) for row in rows])).save(FACES / "levels.jpg")
    return evaluations


def draw_levels_of_the_photo(pipe: DiffDeIDPipeline) -> None:
    """Figure 3 with a face that may be shown."""
    photo = read_image(PHOTO).image
    box = (130, 20, 330, 240)
    pictures = [photo] + [pipe(photo, level=level, generator=torch.Generator().manual_seed(0)).images[0] for level in LEVELS]
    row = np.concatenate([np.asarray(picture.crop(box)) for picture in pictures], axis=1)
    Image.fromarray(row).save(DOCS / "levels.jpg", quality=90)


def evaluate_video(path: Path, pipe: DiffDeIDPipeline, panel: Judges) -> Evaluation:
    """Figure 5: the first frames of a talking head."""
    reader, source = VideoReader(path), FACES / "source.mp4"
    with VideoWriter(source, reader.rate, crf=12, overwrite=True) as writer:
        for frame in islice(reader, CLIP_FRAMES):
            writer.write(frame)
    started = time.perf_counter()
    generator = torch.Generator().manual_seed(0)
    output = DiffDeIDVideoPipeline.sharing(pipe)(source, FACES / "anonymized.mp4", crf=12, overwrite=True, generator=generator)
    seconds = time.perf_counter() - started
    clip = evaluate_pair(source, output.path, panel)
    clip.metrics.append(Metric("cost", "time per frame", seconds / output.num_frames, "s"))
    write_report(FACES / "clip", "Figure 5: along a clip", [clip])
    return clip


def values(evaluations: list[Evaluation], name: str) -> np.ndarray:
    return np.array([next(metric.value for metric in evaluation.metrics if metric.name == name) for evaluation in evaluations])


def plot_levels(levels: list[Evaluation]) -> dict[str, Figure]:
    """Figure 4, with re-identification."""
    recognisers = ("faceplugin", "faceres", "filter")
    cosines = {name: values(levels, f"cosine to own photo [{name}]") for name in recognisers}
    recognised = {name: 100 * values(levels, f"rank-1 [{name}]") for name in recognisers}
    kept = {name: values(levels, name) for name in ("EXP", "POSE", "GAZE")}
    x = np.array(LEVELS)
    return {
        "level-cosine": plots.along(x, cosines, "level", "cosine to own photo"),
        "level-rank-1": plots.along(x, recognised, "level", "recognised first (rank-1), %"),
        "level-utility": plots.along(x, kept, "level", "distance to the source"),
    }


def plot_clip(clip: Evaluation) -> Figure:
    """Figure 5: distances along the clip."""
    rows = [row for row in clip.frames if row["track"] == 0]
    lines = {name: np.array([row[name] for row in rows]) for name in ("EXP", "POSE", "GAZE")}
    lines["cosine to the source [faceplugin]"] = np.array([row["source similarity [faceplugin]"] for row in rows])
    lines["cosine to the frame before [faceplugin]"] = np.array([row["consecutive cosine [faceplugin]"] for row in rows])
    return plots.along(np.array([row["time"] for row in rows]), lines, "time, s", "distance or cosine")


def trend(levels: list[Evaluation], recogniser: str) -> str:
    """Whether cosines to the own photo fall with the level; differences are paired, as all levels have the same people."""
    cosines = np.stack([evaluation.scores[recogniser].deidentified for evaluation in levels])
    steps = np.diff(cosines, axis=0)
    means, errors = steps.mean(1), steps.std(1, ddof=1) / np.sqrt(steps.shape[1])
    up = [f"{level} to {level + 1}" for level in np.flatnonzero(means > 0) + 1]
    beyond = [f"{level} to {level + 1}" for level in np.flatnonzero(means > 2 * errors) + 1]
    text = f"{recogniser}: rank correlation with the level {spearmanr(LEVELS, cosines.mean(1)).statistic:.2f}, "
    if not up:
        return text + "falls at every step"
    return text + f"rises from {', '.join(up)}, beyond two standard errors {', '.join(beyond) or 'nowhere'}"


def pages(numbers: dict[str, Any]) -> dict[str, str]:
    """The page that comes first, and the tables behind its links."""
    count = {name: numbers[name][0]["pictures"] for name in ("london", "wild", "val", "levels")}
    people, clip, attacks = numbers["people on the web"], from_json(numbers["clip"]), from_json(numbers["attacks"])[0]
    sets = {"london": f"London, {count['london']} people", "wild": f"web, {count['wild']} photos"}
    asked = answers([Evaluation(words, from_json(numbers[name])[0].metrics) for name, words in sets.items()])
    alone, parrot = (
        100 * max(values([attacks], f"{attack} rank-1 [{recogniser}]")[0] for recogniser in ("faceplugin", "faceres"))
        for attack in ("no attack", "parrot")
    )
    note = "\n" + numbers["note"] + "\n" if "note" in numbers else ""

    def block(name: str) -> str:
        return f"```\n{table(from_json(numbers[name]))}```\n"

    index = f"""# Report

These are the numbers of `diffdeid`, with its defaults and the weights that ship. `make report DATA=…` measures them. The pages
with faces are not published.
{note}
## The numbers that matter

Two networks try to recognise the results. They took no part in making them. *London* are smiling photos of
{count["london"]} people of the Face Research Lab London Set. They are compared with the neutral photos of all. *Web* are
{count["wild"]} photos (press, red carpets, phones) of {people} people. They are compared with one more photo of each person.

| | {" | ".join(sets.values())} |
|---|{"---|" * len(sets)}
{chr(10).join(_row(answer) for answer in asked)}

{ALARM} means that identity leaks, or that a face was missed. The range in brackets is a 95 % interval: chance alone could have
moved the number that far. Where several recognisers measured, the table shows the one that finds most.
[Evaluation](../evaluation.md) defines all numbers.

An attacker who has these weights and photos of suspects can learn how results of each suspect look. This attack, "parrot", names
{parrot:.1f} % of the suspects. Without it, {alone:.1f} % are named. There are [more attacks](tables.md#attacks).

## Plots

### Beside other methods

This is how often the nearest photo is the person's own, on *London*, by the recogniser `faceres`. Covers (`solid`, `mosaic`,
`blur`) give least away, but leave no face.

![Methods](methods.png)

### Levels

This is the demo photo, and what levels 1…10 make of it with the same seed.

![Levels](levels.jpg)

A higher level asks for a new person who is farther from the old one. The plots are of {count["levels"]} people with the same
seeds at all levels. They show how alike the results are to the person's own photo, how often that photo is the nearest, and how
far expression, pose and gaze moved.

![Cosine](level-cosine.png) ![Rank-1](level-rank-1.png) ![Utility](level-utility.png)

### Along a clip

These are {values(clip, "frames")[0]:.0f} frames of a talking head. [Videos](../video.md) has more clips.

![Clip](clip.png)

## All numbers

- [Table 1: {count["london"]} people](tables.md#table-1-{count["london"]}-people), beside other methods and the paper
- [{count["wild"]} photos from the web](tables.md#{count["wild"]}-photos-from-the-web)
- [{count["val"]} held-out crops](tables.md#{count["val"]}-held-out-crops)
- [Attacks](tables.md#attacks)
- [Numbers against the level](tables.md#numbers-against-the-level)
- [Along a clip](tables.md#along-a-clip)
- [The same for programs](numbers.json)
"""
    tables = f"""# All numbers of the report

The [report](README.md) has the numbers that matter and the plots. [Evaluation](../evaluation.md) says what each number means.
{note}
## Table 1: {count["london"]} people

These are smiling photos of the Face Research Lab London Set. They are compared with the neutral photos of all. All methods
have their defaults.

{block("london")}
This is the paper's own Table 1. It was **measured on other data (1,000 videos of FaceForensics++) by other networks**: its EXP
and POSE are those of Deep3DFaceRecon, and its FID is Inception's. So no number of it compares with one above:

{PUBLISHED}
## {count["wild"]} photos from the web

These are photos of {people} people by the press, on red carpets and by phones. The first photo of each person is in the
gallery. The columns are the defaults, and the two other values of `--attributes`.

{block("wild")}
## {count["val"]} held-out crops

These are crops of all the training sets. Everybody is another person, and the attacker has the originals themselves.

{block("val")}
## Attacks

{block("attacks")}
## Numbers against the level

These are {count["levels"]} people, with the same seeds at all levels. The mean cosine to the own photo changes like this:

{chr(10).join(f"- {words}" for words in numbers["trends"])}

{block("levels")}
## Along a clip

These are {values(clip, "frames")[0]:.0f} frames of a talking head, in two passes, with the defaults.

{block("clip")}"""
    return {"README.md": index, "tables.md": tables}


def _row(answer: Answer) -> str:
    cells = ["<br>".join([f"**{f'{alarm} {value}'.strip()}**", *notes]) for alarm, value, notes in answer.cells]
    return f"| **{answer.words}**<br>{answer.meaning} | {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
