from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from diffdeid import cli, read_image
from diffdeid.geometry.align import ffhq_matrix, warp
from diffdeid.options import DeidentifyOptions
from diffdeid.structures import FaceJob
from tests.geometry.test_mesh_io import read_obj, read_ply

WEIGHTS = Path(__file__).parents[1] / "weights" / "diffdeid"
SIZE = 256


def invoke(*arguments):
    return CliRunner().invoke(cli.app, ["reconstruct", *map(str, arguments)])


@pytest.fixture
def reconstruct(monkeypatch, request):
    """Runs `diffdeid reconstruct` on weights that are loaded once."""
    monkeypatch.setattr(cli, "load", lambda *_: request.getfixturevalue("pipeline"))
    return invoke


def panels(path: Path, row: int = 0) -> list[np.ndarray]:
    sheet = np.asarray(read_image(path).image)
    return np.split(sheet[row * SIZE : (row + 1) * SIZE], 5, axis=1)


def test_a_face_is_a_row_of_five_panels_that_starts_with_its_crop(astronaut, tmp_path, pipeline):
    before = astronaut.read_bytes()
    result = invoke(astronaut, "-o", tmp_path / "new" / "out.png", "--model", WEIGHTS)
    assert result.exit_code == 0 and result.stdout == f"{astronaut} -> {tmp_path / 'new' / 'out.png'}\n"
    assert read_image(tmp_path / "new" / "out.png").image.size == (5 * SIZE, SIZE)
    picture = np.asarray(read_image(astronaut).image)
    [face] = pipeline.detect_faces(picture)
    crop, overlay, own, other, side = panels(tmp_path / "new" / "out.png")
    np.testing.assert_array_equal(crop, warp(picture, ffhq_matrix(face.landmarks, SIZE), SIZE))
    assert all(panel.std() > 10 for panel in (overlay, own, other, side))
    assert not np.ptp(side, axis=2).any()  # grey
    assert astronaut.read_bytes() == before


def test_the_render_looks_like_the_face(reconstruct, astronaut, tmp_path):
    reconstruct(astronaut, "-o", tmp_path / "out.png")
    crop, _, own, *_ = (panel.astype(float)[110:190, 80:180] for panel in panels(tmp_path / "out.png"))  # eyes to mouth
    assert abs(crop.mean((0, 1)) - own.mean((0, 1))).max() < 25


def test_the_network_is_an_option_away(reconstruct, astronaut, tmp_path):
    pictures = []
    for name in ("fit", "network"):
        result = reconstruct(astronaut, "-o", tmp_path / f"{name}.png", "--reconstruction", name)
        assert result.exit_code == 0, result.output
        pictures.append(panels(tmp_path / f"{name}.png"))
    (crop, _, fitted, *_), (same_crop, _, found, *_) = pictures
    np.testing.assert_array_equal(crop, same_crop)
    assert 0 < np.abs(fitted.astype(float) - found)[110:190, 80:180].mean() < 25


def test_a_seed_gives_the_same_picture_and_changes_the_other_person_only(reconstruct, astronaut, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert reconstruct(astronaut, "-o", tmp_path / f"{name}.png", "--seed", seed).exit_code == 0
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    same = [np.array_equal(*pair) for pair in zip(panels(tmp_path / "a.png"), panels(tmp_path / "c.png"), strict=True)]
    assert same == [True, True, True, False, True]


def test_faces_get_a_row_and_a_numbered_mesh_each(reconstruct, astronaut, tmp_path):
    face = Image.open(astronaut)
    two = Image.new("RGB", (2 * face.width, face.height))
    two.paste(face, (0, 0))
    two.paste(face.resize((400, 400)), (face.width, 0))
    two.save(tmp_path / "two.png")
    result = reconstruct(tmp_path / "two.png", "-o", tmp_path / "out.png", "--mesh", tmp_path / "head.ply")
    assert result.exit_code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["head_1.ply", "head_2.ply", "out.png", "two.png"]
    assert read_image(tmp_path / "out.png").image.size == (5 * SIZE, 2 * SIZE)
    first, second = panels(tmp_path / "out.png")[0].astype(float), panels(tmp_path / "out.png", 1)[0]
    assert abs(first - second).mean() < 8  # the same person, once smaller


@pytest.mark.parametrize(("suffix", "read"), [(".obj", read_obj), (".ply", read_ply)])
def test_the_mesh_is_the_fitted_head(reconstruct, pipeline, astronaut, tmp_path, suffix, read):
    assert reconstruct(astronaut, "-o", tmp_path / "out.png", "--mesh", tmp_path / f"head{suffix}").exit_code == 0
    vertices, triangles, colours = read((tmp_path / f"head{suffix}").read_bytes())
    picture = np.asarray(read_image(astronaut).image)
    jobs = [FaceJob(picture, face) for face in pipeline.detect_faces(picture)]
    with torch.no_grad():
        coefficients = pipeline.engine.reconstruct(jobs, DeidentifyOptions()).coefficients
    model = pipeline.morphable_model
    head = model(coefficients.shape, coefficients.expression, coefficients.albedo)
    np.testing.assert_allclose(vertices, head.vertices[0], atol=1e-4)
    np.testing.assert_array_equal(triangles, model.triangles)
    skin = (model.eyeballs == 0).numpy()
    np.testing.assert_allclose(colours[skin], head.albedo[0].clamp(0, 1)[skin], atol=0.003)
    assert colours[~skin].min() < 0.1  # irises


def test_no_face_is_exit_code_3_and_nothing_is_written(reconstruct, tmp_path):
    Image.linear_gradient("L").convert("RGB").save(tmp_path / "scene.png")
    result = reconstruct(tmp_path / "scene.png", "-o", tmp_path / "out.png", "--mesh", tmp_path / "head.obj")
    assert result.exit_code == 3 and "scene.png" in result.stderr and result.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["scene.png"]


def test_an_unreadable_file_is_one_line(reconstruct, tmp_path):
    (tmp_path / "bad.jpg").write_text("text")
    result = reconstruct(tmp_path / "bad.jpg", "-o", tmp_path / "out.png")
    assert result.exit_code == 1 and "bad.jpg" in result.stderr and result.stderr.count("\n") == 1
    assert reconstruct(tmp_path / "nowhere.jpg", "-o", tmp_path / "out.png").exit_code == 2


@pytest.mark.parametrize("existing", ["out.png", "head.obj"])
def test_existing_outputs_are_kept_unless_told(reconstruct, astronaut, tmp_path, existing):
    (tmp_path / existing).write_bytes(b"mine")
    options = [astronaut, "-o", tmp_path / "out.png", "--mesh", tmp_path / "head.obj"]
    result = reconstruct(*options)
    assert result.exit_code == 1 and "--existing replace" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == [existing] and (tmp_path / existing).read_bytes() == b"mine"
    assert reconstruct(*options, "--existing", "replace").exit_code == 0 and (tmp_path / existing).read_bytes() != b"mine"


def test_the_input_is_never_overwritten(reconstruct, astronaut, tmp_path):
    photo = tmp_path / "photo.png"
    photo.write_bytes(astronaut.read_bytes())
    result = reconstruct(photo, "-o", photo, "--existing", "replace")
    assert result.exit_code == 1 and "input" in result.stderr and photo.read_bytes() == astronaut.read_bytes()


def test_an_unknown_kind_of_file_is_refused(reconstruct, astronaut, tmp_path):
    for options in (["-o", tmp_path / "out.txt"], ["-o", tmp_path / "out.png", "--mesh", tmp_path / "head.stl"]):
        result = reconstruct(astronaut, *options)
        assert result.exit_code == 1 and str(options[-1].suffix) in result.stderr
    assert not list(tmp_path.iterdir())


def test_help_says_that_it_shows_the_face():
    assert "not de-identified" in " ".join(invoke("--help").stdout.split())
