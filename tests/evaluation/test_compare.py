"""Folders with known answers: identical, shuffled, noisy, covered, leaking."""

import shutil

import numpy as np
import pytest
from PIL import Image

from diffdeid.errors import DiffDeIDError
from diffdeid.evaluation.compare import is_untouched, measure_floor, measure_privacy, measure_quality, recognition
from diffdeid.evaluation.examiner import CONTEXT, FEATURES, FILTER, ExaminedFace
from diffdeid.evaluation.originals import RealPicture
from diffdeid.evaluation.run import evaluate_pair
from diffdeid.evaluation.structures import Evaluation, ExaminedPair
from diffdeid.geometry.cover import cover
from diffdeid.structures import Face

PRIVACY = ("rank-1", "rank-5", "TPR at FAR 1e-03", "TPR at FAR 1e-04", "cosine to own photo", "EER")


def results_of(people, folder, change):
    """A folder with the second photo of everybody, changed."""
    folder.mkdir()
    for path in sorted(people.glob("*_b.png")):
        Image.fromarray(change(np.array(Image.open(path)), int(path.name[0]))).save(folder / path.name)
    return folder


def with_noise(photo, number):
    noise = np.random.default_rng(number).normal(0, 4, photo.shape)
    return (photo + noise).round().clip(0, 255).astype(np.uint8)


def by_name(evaluation):
    return {metric.name: metric for metric in evaluation.metrics}


@pytest.fixture(scope="module")
def leaking(people, panel, tmp_path_factory):
    """Results in which only noise was added, and nobody is de-identified."""
    folder = results_of(people, tmp_path_factory.mktemp("leak") / "noise", with_noise)
    return evaluate_pair(people, folder, panel, "names")


@pytest.fixture(scope="module")
def shuffled(people, panel, tmp_path_factory):
    """Results in which everybody has the face of the next person."""
    folder = tmp_path_factory.mktemp("shuffle") / "shuffled"

    def change(photo, number):
        return np.array(Image.open(people / f"{(number + 1) % 8}_b.png"))

    return evaluate_pair(people, results_of(people, folder, change), panel, "names")


@pytest.mark.parametrize("name", PRIVACY[:1] + PRIVACY[2:])  # five of eight people are hardly fewer than all
@pytest.mark.parametrize("recogniser", ["faceplugin", "faceres", "filter"])
def test_a_planted_leak_raises_the_alarm_of_every_privacy_metric(leaking, name, recogniser):
    assert by_name(leaking)[f"{name} [{recogniser}]"].alarm


@pytest.mark.parametrize("leak", [0.0, 0.3])
def test_a_small_leak_raises_every_alarm_and_none_rings_without(leak):
    """Forty people; cosines of strangers are normal (0, 0.1), the own photo's is higher by the leak."""
    rng, own = np.random.default_rng(2), np.arange(40)
    scores = rng.normal(0, 0.1, (40, 40))
    scores[own, own] += leak
    metrics = recognition("x", scores, own, rng.normal(0, 0.1, 40 * 39))
    assert [metric.name for metric in metrics] == [f"{name} [x]" for name in PRIVACY]
    assert [metric.alarm for metric in metrics] == [leak > 0] * len(PRIVACY)


def test_a_planted_leak_is_seen_whole(leaking):
    found = by_name(leaking)
    assert found["rank-1 [faceplugin]"].value == 1 == found["rank-1 of originals [faceplugin]"].value
    assert found["EER [faceplugin]"].value == 0
    mean, largest = (found[f"{which} cosine to the source [faceplugin]"].value for which in ("mean", "largest"))
    assert 0.8 < mean <= largest <= 1
    assert found["faces left as they were"].alarm  # so little noise hides nothing


@pytest.mark.parametrize("recogniser", ["faceplugin", "faceres", "filter"])
def test_shuffled_people_are_not_recognised(shuffled, recogniser):
    found = by_name(shuffled)
    assert found[f"rank-1 [{recogniser}]"].value == 0
    assert not any(found[f"{name} [{recogniser}]"].alarm for name in PRIVACY)


def test_shuffled_people_keep_surroundings_and_are_found(shuffled):
    found = by_name(shuffled)
    assert found["face found"].value == 1
    assert found["box overlap"].value > 0.8
    assert found["PSNR in the face"].value < found["PSNR outside"].value


def test_an_identical_folder_is_perfect_and_alarming(few, panel):
    found = by_name(evaluate_pair(few, few, panel))
    assert found["faces left as they were"].value == 1 and found["faces left as they were"].alarm
    assert found["PSNR in the face"].value == found["PSNR outside"].value == np.inf
    assert found["SSIM in the face"].value == pytest.approx(1)
    for name in ("EXP", "POSE", "GAZE", "pose", "gaze", "landmark error", "age difference", "skin colour difference"):
        assert found[name].value == pytest.approx(0, abs=1e-4), name
    np.testing.assert_equal(found["colour step at the border"].value, found["colour step at the border of originals"].value)
    for name in ("same expression class", "same sex", "box overlap", "face found", "largest cosine to the source [faceplugin]"):
        assert found[name].value == pytest.approx(1), name


def test_covered_faces_are_not_found_and_say_nothing(few, panel, tmp_path):
    def change(photo, _):
        return cover(photo, panel.examiner.analyser(photo)[:1], "solid")

    evaluation = evaluate_pair(few, results_of(few, tmp_path / "solid", change), panel, "names")
    found = by_name(evaluation)
    assert found["face found"].value == 0
    assert np.isnan(found["EXP"].value) and np.isnan(found["same sex"].value)
    assert not found["rank-1 [faceplugin]"].alarm and not found["EER [faceplugin]"].alarm
    assert all(pair.result.found is False for pair in evaluation.pairs)


def test_two_runs_give_the_same_numbers(leaking, people, panel, tmp_path):
    folder = results_of(people, tmp_path / "noise", with_noise)
    again = evaluate_pair(people, folder, panel, "names", work=tmp_path / "work")
    assert again.metrics == leaking.metrics
    assert not any((tmp_path / "work").iterdir())  # embeddings are not left behind


def test_an_interrupted_evaluation_goes_on(few, panel, tmp_path, monkeypatch):
    looked, describe_really = [], panel.examiner.describe

    def describe(picture, face):
        looked.append(1)
        if len(looked) == 5:
            raise KeyboardInterrupt
        return describe_really(picture, face)

    monkeypatch.setattr(panel.examiner, "describe", describe)
    with pytest.raises(KeyboardInterrupt):
        evaluate_pair(few, few, panel, "names", work=tmp_path / "work")
    resumed = evaluate_pair(few, few, panel, "names", work=tmp_path / "work")
    assert len(looked) == 4 + 4 + 1  # only the one that was interrupted is looked at again
    monkeypatch.undo()
    assert repr(resumed.metrics) == repr(evaluate_pair(few, few, panel, "names").metrics)  # NaN is not equal to itself


def test_a_result_without_an_original_is_an_error(few, panel, tmp_path):
    shutil.copytree(few, tmp_path / "anon")
    shutil.copy(few / "0_a.png", tmp_path / "anon" / "stranger.png")
    with pytest.raises(DiffDeIDError, match="stranger"):
        evaluate_pair(few, tmp_path / "anon", panel)


def test_one_picture_has_no_interval(few, panel, tmp_path):
    for folder in ("real", "anon"):
        (tmp_path / folder).mkdir()
        shutil.copy(few / "0_a.png", tmp_path / folder)
    evaluation = evaluate_pair(tmp_path / "real", tmp_path / "anon", panel)
    assert {metric.name for metric in evaluation.metrics} >= {"EXP", "PSNR outside", "largest cosine to the source [faceplugin]"}
    assert all(metric.interval is None for metric in evaluation.metrics)


def test_pictures_without_a_face_are_counted(few, panel, tmp_path):
    shutil.copytree(few, tmp_path / "real")
    Image.new("RGB", (80, 60), "teal").save(tmp_path / "real/2_a.png")
    found = by_name(evaluate_pair(tmp_path / "real", tmp_path / "real", panel))
    assert (found["faces"].value, found["pictures in which no face was found"].value) == (4, 1)


def test_a_result_of_another_size_is_an_error(few, panel, tmp_path):
    def change(photo, _):
        return photo[:-1]

    with pytest.raises(DiffDeIDError, match="must be equal"):
        evaluate_pair(few, results_of(few, tmp_path / "small", change), panel)


@pytest.mark.parametrize("quality", [75, 90, 100])
def test_a_face_that_was_only_compressed_is_untouched(astronaut, quality, tmp_path):
    photo = Image.open(astronaut).convert("RGB")
    photo.save(tmp_path / "a.jpg", quality=quality)
    face = Face(np.array([168, 62, 280, 215], np.float32))
    before, after = np.asarray(photo), np.asarray(Image.open(tmp_path / "a.jpg"))
    assert is_untouched(before, after, face)
    assert not is_untouched(before, cover(after, [face], "blur"), face)


def crowd(*onlookers, leak, people=30):
    """A gallery photo and a probe of everybody; surroundings are noise, plus the person's identity if there is a leak."""
    rng = np.random.default_rng(0)
    identities = rng.normal(size=(people, 128))

    def examined(person):
        vector = identities[person] / np.linalg.norm(identities[person])
        around = {network: rng.normal(3, 1, 128) + leak * identities[person] for network in onlookers}
        return ExaminedFace(Face(np.zeros(4)), True, {FILTER: vector}, np.zeros(261), np.zeros(7), 30.0, 0.5, around)

    originals, pairs = {}, []
    for person in range(people):
        for photo in "ab":
            name = f"{person:02}_{photo}"
            originals[name] = RealPicture(None, str(person), photo == "a", [], examined(person))
        numbers = {f"cosine to the source [{FILTER}]": 0.0}
        crops = (np.zeros((224, 224, 3), np.uint8),) * 2
        pairs.append(ExaminedPair(name, str(person), originals[name].examined, examined((person + 1) % people), crops, numbers))
    return originals, pairs


def floors(originals, pairs):
    return {metric.name: metric for metric in measure_floor(pairs, [one for one in originals.values() if one.gallery])}


@pytest.mark.parametrize("network", [FEATURES, CONTEXT])
def test_the_floor_is_all_where_surroundings_name_people_and_chance_where_they_do_not(network):
    floor = floors(*crowd(network, leak=5))["floor of K, rank-1"]
    assert floor.value == 1 and floor.interval == (1, 1)
    assert floor.chance == pytest.approx(1 / 30, abs=0.01)
    floor = floors(*crowd(network, leak=0, people=120))["floor of K, rank-1"]
    assert floor.value < 0.05 and floor.chance == pytest.approx(1 / 120, abs=0.005)


def test_the_floor_is_that_of_the_better_attacker():
    originals, pairs = crowd(FEATURES, CONTEXT, leak=0.3)
    for original in originals.values():
        original.examined.surroundings[FEATURES] *= 0  # who sees nothing but the average
        original.examined.surroundings[FEATURES] += np.random.default_rng(id(original)).normal(size=128)
    found = floors(originals, pairs)
    assert set(found) == {f"floor of K, rank-1{label}" for label in ("", f" [{FEATURES}]", f" [{CONTEXT}]")}
    best, features, context = found.values()
    assert best.value == context.value > features.value


def test_the_floor_stands_beside_the_rank_1_of_every_recogniser():
    originals, pairs = crowd(FEATURES, leak=5)
    found = {metric.name: metric for metric in measure_privacy(Evaluation("x", pairs=pairs), originals, [FILTER])}
    assert found[f"rank-1 [{FILTER}]"].value == 0 and found[f"rank-1 [{FILTER}]"].floor == 1
    assert found[f"rank-5 [{FILTER}]"].floor is None and not found["floor of K, rank-1"].alarm


def test_floor_and_colour_step_are_measured_and_eight_pictures_are_too_few_to_tell_apart(leaking):
    found = by_name(leaking)
    assert 0 <= found["floor of K, rank-1"].value == found["rank-1 [faceplugin]"].floor <= 1
    assert found["colour step at the border"].value == pytest.approx(found["colour step at the border of originals"].value, abs=1)
    assert not any("two-sample" in name for name in found)


def test_a_dozen_pictures_are_enough_for_the_two_sample_auc(leaking, panel):
    pairs = leaking.pairs + leaking.pairs[:4]
    found = {metric.name: metric.value for metric in measure_quality(pairs, panel.features)}
    assert 0 <= found["two-sample AUC of originals [EfficientNetLite0]"] <= 1
    assert 0 <= found["two-sample AUC [EfficientNetLite0]"] <= 1
