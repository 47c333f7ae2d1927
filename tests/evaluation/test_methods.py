import json

import numpy as np
import pytest
from PIL import Image

from diffdeid.errors import ConfigurationError
from diffdeid.evaluation import methods
from diffdeid.evaluation.run import evaluate_methods, measure_costs
from diffdeid.io.images import read_image


@pytest.fixture
def pictures(astronaut, tmp_path):
    small = Image.open(astronaut).convert("RGB").crop((90, 0, 370, 280))
    small.save(tmp_path / "small.png")
    return {"small": tmp_path / "small.png"}


@pytest.mark.parametrize("name", ["solid", "mosaic", "blur", "inpaint", "swap-mean"])
def test_simple_methods_change_the_face_and_leave_the_corners(pipeline, pictures, tmp_path, name):
    (cost,) = methods.run_method(name, pipeline, pictures, tmp_path / "out", seed=0)
    before, after = (np.asarray(read_image(path).image).astype(int) for path in (pictures["small"], tmp_path / "out/small.png"))
    changed = np.abs(after - before).sum(2) > 0
    assert changed[80:190, 100:170].mean() > 0.85
    assert not changed[:8].any() and not changed[:, :8].any() and not changed[:, -8:].any()
    assert (cost["faces"], cost["covered"], cost["evaluations"]) == (1, name in methods.COVERS, 0)


def test_the_mean_head_keeps_pose_and_gaze_better_than_nothing_does(pipeline, panel, pictures, tmp_path):
    methods.run_method("swap-mean", pipeline, pictures, tmp_path / "out", seed=0)
    result = np.asarray(read_image(tmp_path / "out/small.png").image)
    (face,) = pipeline.detect_faces(result)
    assert face.landmarks is not None


def test_ours_counts_what_the_network_did_and_repeats_by_seed(pipeline, pictures, tmp_path):
    first, second, other = (
        methods.run_method("diffdeid", pipeline, pictures, tmp_path / name, seed, num_inference_steps=2)[0]
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert first["evaluations"] >= 2 and first["covered"] == 0 and first["faces"] == 1
    same, again, different = (read_image(tmp_path / name / "small.png").image.tobytes() for name in "abc")
    assert same == again != different


def test_what_is_made_is_not_made_again(pipeline, pictures, tmp_path):
    first = methods.run_method("solid", pipeline, pictures, tmp_path / "out", seed=0)
    stamp = (tmp_path / "out/small.png").stat().st_mtime_ns
    assert methods.run_method("solid", pipeline, pictures, tmp_path / "out", seed=0) == first
    assert (tmp_path / "out/small.png").stat().st_mtime_ns == stamp
    (tmp_path / "out/small.png").unlink()
    methods.run_method("solid", pipeline, pictures, tmp_path / "out", seed=0)
    assert (tmp_path / "out/small.png").exists()


def test_a_picture_without_a_face_stays_as_it_is(pipeline, tmp_path):
    Image.new("RGB", (64, 64), "teal").save(tmp_path / "empty.png")
    (cost,) = methods.run_method("diffdeid", pipeline, {"empty": tmp_path / "empty.png"}, tmp_path / "out", seed=0)
    assert cost["faces"] == 0
    assert read_image(tmp_path / "out/empty.png").image.getpixel((9, 9)) == (0, 128, 128)


def test_the_tool_deface_is_run_when_it_is_installed(pipeline, pictures, tmp_path, monkeypatch):
    """A stand-in with the same command line is used: it writes `<stem>_anonymized.png` beside each input."""
    tool = tmp_path / "bin/deface"
    tool.parent.mkdir()
    tool.write_text('#!/bin/sh\nfor file in "$@"; do cp "$file" "${file%.png}_anonymized.png"; done\n')
    tool.chmod(0o755)
    monkeypatch.setattr(methods, "deface_command", lambda: str(tool))
    assert "deface" in methods.available_methods()
    (cost,) = methods.run_method("deface", pipeline, pictures, tmp_path / "out", seed=0)
    assert cost["name"] == "small" and cost["seconds"] > 0
    assert read_image(tmp_path / "out/small.png").image.tobytes() == read_image(pictures["small"]).image.tobytes()


def test_without_the_tool_deface_it_is_left_out_or_an_error(pipeline, pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(methods, "deface_command", lambda: None)
    assert "deface" not in methods.available_methods()
    with pytest.raises(ConfigurationError, match="pip install deface"):
        methods.run_method("deface", pipeline, pictures, tmp_path / "out", seed=0)


def test_a_result_is_made_again_only_when_what_it_depends_on_has_changed(pipeline, pictures, tmp_path):
    def made(pictures=pictures, seed=0, **options):
        rows = tmp_path / "out/costs.jsonl"
        before = len(rows.read_text().splitlines()) if rows.exists() else 0
        methods.run_method("solid", pipeline, pictures, tmp_path / "out", seed, **options)
        return len(rows.read_text().splitlines()) - before

    assert [made(), made(), made(seed=1), made(seed=1), made(seed=1, level=3), made()] == [1, 0, 1, 0, 1, 1]
    other = tmp_path / "other.png"
    Image.fromarray(255 - np.asarray(read_image(pictures["small"]).image)).save(other)
    assert [made({"small": other}), made({"small": other})] == [1, 0]
    pipeline.lds.ghost_limits.sub_(1)
    assert [made({"small": other}), made({"small": other})] == [1, 0]
    pipeline.lds.ghost_limits.add_(1)
    assert made({"small": other}) == 1
    (tmp_path / "out/small.png").unlink()
    assert made({"small": other}) == 1 and (tmp_path / "out/small.png").exists()


def test_an_unknown_method_is_named(pipeline, panel, people):
    with pytest.raises(ConfigurationError, match="blurr"):
        evaluate_methods(["blurr"], people, pipeline, panel)


def test_costs_are_per_picture_and_per_face():
    costs = [
        {"seconds": 1.0, "faces": 1, "covered": 0, "evaluations": 8},
        {"seconds": 3.0, "faces": 3, "covered": 1, "evaluations": 24},
    ]
    found = {metric.name: metric.value for metric in measure_costs(costs)}
    assert found["time per picture"] == 2 and found["time per face"] == 1
    assert found["network evaluations per face"] == 8 and found["faces covered instead of replaced"] == 0.25


def test_methods_are_compared_on_the_probes_and_their_pictures_stay(pipeline, panel, few, tmp_path):
    evaluations = evaluate_methods(["solid", "swap-mean"], few, pipeline, panel, "names", work=tmp_path)
    assert [evaluation.method for evaluation in evaluations] == ["solid", "swap-mean"]
    assert sorted(path.name for path in (tmp_path / "solid").iterdir()) == ["0_b.png", "1_b.png", "costs.jsonl"]
    assert [json.loads(line)["name"] for line in (tmp_path / "solid/costs.jsonl").read_text().splitlines()] == ["0_b", "1_b"]
    names = [[metric.name for metric in evaluation.metrics] for evaluation in evaluations]
    assert names[0] == names[1]
