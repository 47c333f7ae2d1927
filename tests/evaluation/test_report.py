"""The output of `diffdeid evaluate`, for made-up numbers and pictures of noise."""

import csv
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from diffdeid.evaluation.examiner import FILTER, ExaminedFace
from diffdeid.evaluation.report import MARK, from_json, table, to_json, write_report
from diffdeid.evaluation.run import publish
from diffdeid.evaluation.structures import Evaluation, ExaminedPair, Metric, Scores
from diffdeid.structures import Face

plots = pytest.importorskip("diffdeid.evaluation.plots", exc_type=ImportError)
pytest.importorskip("jinja2")
RECOGNISERS = ("faceplugin", FILTER)
NASTY = "<script>alert('x')</script> & $\\frac$ | \"q\""


def made_up(method="blur", count=6, seed=0) -> Evaluation:
    rng = np.random.default_rng(seed)
    metrics = [
        Metric("cost", "time per picture", 1.234, "s"),
        Metric("utility", "gaze", 6.543, "°", (5.9, 7.12)),
        Metric("quality", "PSNR outside", np.inf, "dB"),
        Metric("utility", "EXP", np.nan),
        *(Metric("privacy", f"rank-1 [{name}]", 0.02, "", (0.004, 0.046), 0.0098, True, 0.309) for name in RECOGNISERS),
    ]
    face = Face(np.float32([0, 0, 9, 9]), 1.0)
    pairs = []
    for index in range(count):
        embeddings = {name: np.eye(4)[index % 4] for name in RECOGNISERS}
        examined = ExaminedFace(face, index != 1, embeddings, np.zeros(261), np.zeros(7), 30.0, 0.5)
        numbers = {f"cosine to the source [{name}]": rng.uniform(-0.2, 0.5) for name in RECOGNISERS}
        numbers |= {"gaze": rng.uniform(0, 9), "PSNR outside": np.inf, "EXP": np.nan if index else 1 / 3, "same sex": index % 2}
        crops = tuple(rng.integers(0, 256, (2, 224, 224, 3), np.uint8))
        pairs.append(ExaminedPair(f"{index:03}/{method}", f"person {index}", examined, examined, crops, numbers))
    scores = {
        name: Scores(rng.normal(0.6, 0.1, count), rng.normal(0, 0.1, 2000), rng.normal(0.1, 0.1, count)) for name in RECOGNISERS
    }
    return Evaluation(method, metrics, pairs, scores)


class Page(HTMLParser):
    """The tags with attributes, and the text, of a page."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.words, self.open = [], [], []
        self.feed(page)
        self.close()
        assert not self.open
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def report(folder, *evaluations, title="Report", **options):
    write_report(folder, title, list(evaluations), **options)
    return (folder / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(("count", "words"), [(1, "Only 1 picture with"), (9, "Only 9 pictures with"), (10, "")])
def test_few_pictures_are_said_to_tell_nothing(tmp_path, count, words):
    evaluations = [made_up(count=count), made_up(count=10)]
    for text in (publish(evaluations, None, False), Page(report(tmp_path, *evaluations)).text):
        assert ("say nothing about the method" in text) == bool(words) and words in text


def test_table_reads_well():
    lines = table([made_up(), made_up("diff|deid")]).splitlines()
    assert len({len(line) for line in lines if line.startswith("|")}) == 1, "columns are not aligned"
    row = next(line for line in lines if "rank-1 [faceplugin], %" in line)
    assert row.count("! 2.0 [0.4, 4.6]") == 2 and row.endswith(" 1.0 |  30.9 |")
    text = "\n".join(lines)
    assert text.index("PRIVACY") < text.index("UTILITY") < text.index("QUALITY") < text.index("COST")
    assert re.search(r"EXP +\| +– \| +– \|", text) and re.search(r"PSNR outside, dB +\| +∞ \|", text)
    assert "6.54 [5.90, 7.12]" in text and r"diff\|deid" in text
    assert re.search(r"chance \| +floor \|", lines[0]) and "all faces erased" in text
    assert "not independent evidence" in text and "identity leaks" in text
    assert "–" in next(line for line in table([made_up(), Evaluation("none")]).splitlines() if "gaze" in line)


@pytest.mark.parametrize(
    ("metric", "text"),
    [
        (Metric("coverage", "faces", 12345), "12345"),
        (Metric("privacy", "rank-1 [x]", 0.0, "", (0.0, 0.036)), "0.0 [0.0, 3.6]"),
        (Metric("utility", "share", 50, "%"), "50.0"),
        (Metric("privacy", "cosine", -0.0512), "-0.051"),
        (Metric("quality", "kernel distance", 0.00042), "0.0004"),
        (Metric("quality", "Fréchet distance", 1234.5), "1234"),
        (Metric("quality", "PSNR", 30.0, "dB", (np.nan, np.nan)), "30"),
    ],
)
def test_numbers_in_the_table(metric, text):
    assert f"| {text} |" in table([Evaluation("m", [metric])])


def test_chance_that_differs_between_methods_is_a_range():
    chances = (0.04, -0.02, 0.01)
    row = table([Evaluation(str(chance), [Metric("privacy", "cosine", 0.1, chance=chance)]) for chance in chances])
    assert "| -0.020 … 0.040 |" in row


def test_shares_are_in_percent_whoever_took_them():
    metrics = [Metric("attacks", "parrot rank-1 [x]", 0.25), Metric("attacks", "parrot AUC [x]", 0.75)]
    metrics.append(Metric("coverage", "no face found in its place", 0.5))
    metrics.append(Metric("privacy", "floor of K, rank-1", 0.309, "", (0.2, 0.4), 0.048))
    lines = table([Evaluation("m", metrics)])
    assert re.search(r"parrot rank-1 \[x\], % +\| +25.0 ", lines) and re.search(r"parrot AUC \[x\] +\| +0.750 ", lines)
    assert re.search(r"no face found in its place, % +\| +50.0 ", lines)
    assert re.search(r"floor of K, rank-1, % +\| +30.9 \[20.0, 40.0\] \| +4.8 ", lines)


def test_json():
    (written,) = json.loads(json.dumps(to_json([made_up()]), allow_nan=False))
    metrics = {metric["name"]: metric for metric in written["metrics"]}
    assert metrics["EXP"]["value"] is None and metrics["PSNR outside"]["value"] == "Infinity"
    assert metrics["rank-1 [faceplugin]"] == {
        "block": "privacy", "name": "rank-1 [faceplugin]", "value": 0.02, "unit": "", "interval": [0.004, 0.046],
        "chance": 0.0098, "alarm": True, "floor": 0.309, "independent": True,
    }  # fmt: skip
    assert metrics["gaze"]["chance"] is None and not metrics[f"rank-1 [{FILTER}]"]["independent"]


def test_json_gives_the_numbers_back():
    evaluations = [made_up(), Evaluation("none")]
    back = from_json(json.loads(json.dumps(to_json(evaluations), allow_nan=False)))
    assert table(back) == table(evaluations)
    for before, after in zip(evaluations, back, strict=True):
        assert before.method == after.method and not after.pairs
        assert repr(before.metrics) == repr(after.metrics)  # NaN is not equal to itself


def test_csv_gives_the_numbers_back(tmp_path):
    evaluations = [made_up('a, "b"\n<c>'), made_up(seed=1)]
    write_report(tmp_path, "x", evaluations)
    with (tmp_path / "pictures.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    pairs = [(evaluation.method, pair) for evaluation in evaluations for pair in evaluation.pairs]
    assert list(rows[0]) == ["method", "name", "person", *pairs[0][1].numbers]
    for row, (method, pair) in zip(rows, pairs, strict=True):
        assert (row["method"], row["name"], row["person"]) == (method, pair.name, pair.person)
        np.testing.assert_array_equal([float(row[name] or "nan") for name in pair.numbers], list(pair.numbers.values()))


def test_a_clip_has_a_table_of_frames_and_curves(tmp_path):
    frames = [
        {"frame": number, "time": number / 25, "track": track, "found": 1.0, "EXP": np.nan if number == 1 else 0.5}
        for number in range(3)
        for track in (0, 1)
    ]
    frames.append({"frame": 2, "time": 0.08, "track": -1, "unprocessed": 0.0})
    write_report(tmp_path, "x", [Evaluation("a.mp4", [Metric("utility", "EXP", 0.5)], frames=frames)])
    with (tmp_path / "frames.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["method", "frame", "time", "track", "found", "EXP", "unprocessed"]
    assert [row["EXP"] for row in rows] == ["0.5", "0.5", "", "", "0.5", "0.5", ""] and rows[-1]["unprocessed"] == "0.0"
    assert not (tmp_path / "pictures.csv").exists()
    page = Page((tmp_path / "report.html").read_text())
    assert "Along the clip" in page.text and "Faces" not in page.text
    assert [attrs["alt"] for tag, attrs in page.tags if tag == "img"] == ["a.mp4: EXP"]
    curves = plots.clip(frames, "EXP").axes[0].lines
    assert [curve.get_label() for curve in curves] == ["face 1", "face 2"]
    np.testing.assert_array_equal(curves[0].get_ydata(), [0.5, np.nan, 0.5])


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """One report for many tests, because figures take time."""
    evaluations = [made_up(), made_up(NASTY)]
    evaluations[0].pairs[4].numbers["cosine to the source [faceplugin]"] = 0.9
    evaluations[0].pairs[5].numbers[f"cosine to the source [{FILTER}]"] = 0.99
    evaluations[1].pairs[0].numbers[NASTY] = 2.5
    figure = plots.along(np.arange(5), {"pose": np.array([1, 2, np.nan, 3, 4.0])}, "level", "turn, °")
    return report(
        tmp_path_factory.mktemp("report") / "new" / "folder", *evaluations, title=NASTY, figures=[("Along levels", figure)]
    )


def test_page_is_whole_and_alone(page):
    assert not re.search(r"https?://|url\(|@import|<script|<link|<iframe", page)
    parsed = Page(page)
    sources = [value for _, attrs in parsed.tags for name, value in attrs.items() if name in ("src", "href", "srcset")]
    sources = [source for source in sources if source != "#all"]
    assert sources and all(re.fullmatch(r"data:image/(png|jpeg);base64,[\w+/]+=*", source) for source in sources)
    assert "do not publish" in parsed.text and "anonym" not in parsed.text
    assert "chance floor PRIVACY".lower() in parsed.text.lower() and "1.0 30.9" in parsed.text
    assert "Along levels" in parsed.text and "nearest to their source" in parsed.text and "no face found" in parsed.text
    assert ("td", {"class": "alarm"}) in parsed.tags and "! 2.0 [0.4, 4.6]" in parsed.text
    order = (
        "Is the nearest photo",
        "side by side",
        "Recogniser [faceplugin]",
        f"Recogniser [{FILTER}]",
        "Faces",
        "Numbers of single",
        "Along levels",
        "The complete table",
        "Costs",
        "How to read it",
    )
    assert [parsed.text.index(part) for part in order] == sorted(parsed.text.index(part) for part in order)
    assert ("div", {"class": "alarm"}) in parsed.tags and "blur ! 2.0 %" in parsed.text
    assert [tag for tag, _ in parsed.tags].index("img") < parsed.tags.index(("tr", {"class": "block"}))


def test_the_worst_come_first_by_independent_recognisers(page):
    first = Page(page).text.split("the worst first")[1].split("cosine to")[0]
    assert "004/blur" in first and "005/blur" not in first


def test_filter_is_marked_everywhere(page):
    for text in (Page(page).text, table([made_up()])):
        marked = re.findall(rf"\[{FILTER}\](?:, .)? (.)", text)
        assert len(marked) > 0 and set(marked) == {MARK}


def test_names_are_escaped(page):
    parsed = Page(page)
    assert "script" not in {tag for tag, _ in parsed.tags}
    assert parsed.text.count("<script>alert('x')</script> & $\\frac$") > 5


def test_without_pairs_and_scores(tmp_path):
    nothing = np.full(3, np.nan)
    unknown = Evaluation("all NaN", [Metric("privacy", "rank-1 [x]", np.nan, "", (np.nan, np.nan), 0.1)])
    unknown.scores["x"] = Scores(nothing, nothing, nothing[:0])
    assert "How to read it" in Page(report(tmp_path, unknown)).text
    assert "How to read it" in Page(report(tmp_path, Evaluation("none"), Evaluation("_hidden"))).text


def test_two_writes_give_the_same_bytes(tmp_path):
    evaluation = made_up(count=2)
    del evaluation.scores[FILTER]
    for folder in ("a", "b"):
        report(tmp_path / folder, evaluation)
    for name in ("report.html", "pictures.csv", "metrics.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_large_evaluations_stay_small(tmp_path):
    evaluation = made_up(count=300)
    del evaluation.scores[FILTER]
    page = report(tmp_path, *(Evaluation(f"method {i}", [], evaluation.pairs, evaluation.scores) for i in range(3)))
    assert len(page.encode()) < 8_000_000
    assert Page(page).text.count("people, evenly from all") == 3


def test_figures_are_labelled():
    rng = np.random.default_rng(0)
    scores = Scores(rng.normal(0.6, 0.1, 50), rng.normal(0, 0.1, 5000), rng.normal(0.1, 0.1, 50))
    roc = plots.roc({"blur": scores, "none": Scores(*[np.empty(0)] * 3), "ours": scores}).axes[0]
    assert roc.get_xscale() == "log" and "FAR" in roc.get_xlabel() and "%" in roc.get_ylabel()
    originals, blur, ours, _ = roc.lines
    assert originals.get_ydata()[-1] == 100 and (np.diff(blur.get_ydata()) >= 0).all()
    far, accepted = blur.get_xdata()[200], blur.get_ydata()[200]
    assert accepted == pytest.approx(100 * (scores.deidentified >= np.sort(scores.impostor)[::-1][round(far * 5000) - 1]).mean())
    assert (blur.get_color(), ours.get_color()) == (plots.COLOURS[0], plots.COLOURS[2])
    bars = plots.bars([made_up(), Evaluation("none"), made_up("ours")], "rank-1 [faceplugin]").axes[0]
    assert [bar.get_width() for bar in bars.patches] == [2, 2] and bars.get_xlabel().endswith("%")
    assert {line.get_label() for line in bars.lines} >= {"chance", "floor"}
    assert plots.histograms(scores).axes[0].get_xlabel() == "cosine"
