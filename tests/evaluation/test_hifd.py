"""The package `hifd` reads the export, and finds the expected scores."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import hifd
import numpy as np
import pytest
from hifd.cli import main
from PIL import Image

from diffdeid.evaluation.examiner import FILTER, ExaminedFace
from diffdeid.evaluation.hifd import export
from diffdeid.evaluation.run import evaluate_pair
from diffdeid.evaluation.structures import Evaluation, ExaminedPair
from diffdeid.structures import Face

KEPT = ["age", "gender", "macro_exp", "landmark", "gaze"]
POSE = 80 + 64 + 80 + 27  # where the rotation vector is in ρ


def examined(**changes) -> ExaminedFace:
    """A face that looks into the camera, with eyes 100 pixels apart."""
    landmarks = np.zeros((468, 3), np.float32)
    landmarks[[33, 133]], landmarks[[362, 263]] = (50, 80, 0), (150, 80, 0)
    embeddings = {name: np.eye(4)[0] for name in ("faceplugin", "faceres", FILTER)}
    face = Face(np.float32([0, 0, 200, 200]), 1.0, landmarks=landmarks)
    return replace(ExaminedFace(face, True, embeddings, np.zeros(261), np.eye(7)[6], 30.0, 0.2), **changes)


def evaluation(method: str, *results: ExaminedFace) -> Evaluation:
    crops = (np.zeros((224, 224, 3), np.uint8),) * 2
    pairs = [ExaminedPair(f"ann/{n}", "ann", examined(), result, crops, {}) for n, result in enumerate(results)]
    return Evaluation(method, pairs=pairs)


def covered() -> ExaminedFace:
    others = dict.fromkeys(examined().embeddings, np.eye(4)[1])
    return examined(found=False, embeddings=others, coefficients=np.full(261, np.nan), emotion=np.full(7, np.nan), age=np.nan)


def arguments(folder: Path) -> list[str]:
    files = {"--methods": folder / "methods.yaml", "--estimators": folder / "estimators.yaml", "--data-dir": folder}
    return [str(word) for pair in files.items() for word in pair]


def score(folder: Path):
    """The scores by method, with the command that the documentation names."""
    assert main(["run-all", *arguments(folder), "--out", str(folder / "scores")]) == 0
    scored = hifd.run_pipeline(
        str(folder / "methods.yaml"), str(folder), str(folder / "scores"), estimators_config=str(folder / "estimators.yaml")
    )
    assert scored.composite_df["balanced"].notna().all()
    return scored.per_method_df.set_index("method")


def test_units_and_meanings_are_those_of_the_package(tmp_path):
    """Ten years are a tenth of its scale, and so on."""
    source, turned = examined(), np.zeros(261)
    turned[POSE + 1] = np.radians(9)
    result = examined(
        face=replace(source.face, landmarks=source.face.landmarks + np.float32([3, 4, 50])),  # 5 pixels, beside any depth
        embeddings={"faceplugin": np.eye(4)[1], "faceres": -np.eye(4)[0], FILTER: np.eye(4)[0]},
        coefficients=turned,
        emotion=np.eye(7)[6] * 0.6 + np.eye(7)[3] * 0.4,
        age=40.0,
        femininity=0.5,
    )
    export(tmp_path, [evaluation("ours", result, result)])
    assert main(["validate", *arguments(tmp_path)]) == 0
    ours = score(tmp_path).loc["ours"]
    assert ours[KEPT].tolist() == pytest.approx([0.9, 0.7, 0.6, 0.5, 0.9], abs=1e-4)
    assert ours["P"] == pytest.approx((0.5 + 1.0) / 2), "the recogniser of our own is asked, or one of the others is not"


def test_faces_that_are_gone_are_private_and_otherwise_unknown(tmp_path):
    export(tmp_path, [evaluation("half", examined(), covered()), evaluation("solid", covered(), covered())])
    methods = score(tmp_path)
    assert methods.loc["half", KEPT].tolist() == pytest.approx([1] * 5) and methods.loc["half", "P"] == pytest.approx(0.25)
    assert methods.loc["solid", KEPT].isna().all() and methods.loc["solid", "P"] == pytest.approx(0.5)


def test_our_own_filter_is_no_estimator(tmp_path):
    export(tmp_path, [evaluation("ours", examined())])
    tasks = json.loads((tmp_path / "estimators.yaml").read_text())["tasks"]
    assert [network["name"] for network in tasks["face_embedding"]["estimators"]] == ["faceplugin", "faceres"]
    assert not list(tmp_path.rglob(f"*{FILTER}*"))


def test_nothing_of_an_earlier_export_is_scored(tmp_path):
    export(tmp_path, [evaluation("a", examined())])
    export(tmp_path, [evaluation("b", covered())])
    assert score(tmp_path).loc["b", KEPT].isna().all()


@pytest.mark.parametrize("method", ["..", "a: b", "ärm\"'#"])
def test_any_name_of_a_method_is_kept(tmp_path, method):
    export(tmp_path / "hifd", [evaluation(method, examined())])
    assert list(score(tmp_path / "hifd").index) == [method]
    assert [path.name for path in tmp_path.iterdir()] == ["hifd"]


def test_a_photo_is_all_like_itself(panel, astronaut, tmp_path):
    (tmp_path / "real").mkdir()
    Image.open(astronaut).convert("RGB").crop((90, 0, 370, 280)).save(tmp_path / "real/eileen.png")
    shutil.copytree(tmp_path / "real", tmp_path / "same")
    export(tmp_path / "hifd", [evaluate_pair(tmp_path / "real", tmp_path / "same", panel)])
    assert score(tmp_path / "hifd").loc["same", ["P", *KEPT]].tolist() == pytest.approx([0, 1, 1, 1, 1, 1], abs=1e-4)
