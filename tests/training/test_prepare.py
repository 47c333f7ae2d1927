import os
import shutil
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import torch

from diffdeid.geometry.align import warp
from diffdeid.geometry.mask import face_region
from diffdeid.structures import MorphableCoefficients
from diffdeid.training.data import FaceStore
from diffdeid.training.maps import FULL, MARGIN
from diffdeid.training.prepare import prepare

ROOT = Path(__file__).parents[2]
WEIGHTS = ROOT / "weights/diffdeid"


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """A folder with a photo, a picture of nobody, and a text that claims to be a picture."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "space").mkdir()
    shutil.copy(ROOT / "tests/assets/astronaut.png", folder / "space")
    cv2.imwrite(str(folder / "nobody.png"), np.full((64, 64, 3), 128, np.uint8))
    (folder / "lie.jpg").write_text("not a picture")
    return folder


@pytest.fixture(scope="module")
def store(photos, tmp_path_factory) -> Path:
    if not WEIGHTS.exists():
        pytest.skip("weights/diffdeid is not here")
    return prepare(photos, tmp_path_factory.mktemp("data") / "store", WEIGHTS)


def test_one_face_gives_one_sample(store):
    assert FaceStore(store).names == ["space__astronaut.png"]


def test_a_sample_holds_what_is_documented(store):
    with FaceStore(store).open("space__astronaut.png") as file:
        sample = {name: file.get_tensor(name) for name in file.keys()}
        assert file.metadata() == {"set": "space"}
    pictures = {"image": 3, "render": 3, "normals": 3, "guides": 2, "mask": 2}
    assert {name: (array.shape, array.dtype) for name, array in sample.items()} == {
        **{name: ((FULL, FULL, channels), np.uint8) for name, channels in pictures.items()},
        "fit": ((261,), np.float32),
        "coefficients": ((261,), np.float32),
        "landmarks": ((468, 3), np.float32),
        "iris": ((2, 5, 2), np.float32),
        "identity": ((128,), np.float32),
        "matrix": ((2, 3), np.float32),
    }


def test_the_crop_is_where_its_matrix_says(photos, store):
    photo = cv2.imread(str(photos / "space/astronaut.png"))[..., ::-1]
    with FaceStore(store).open("space__astronaut.png") as file:
        np.testing.assert_allclose(file.get_tensor("image"), warp(photo, file.get_tensor("matrix"), FULL).astype(float), atol=1)


def test_a_sample_makes_sense(store):
    with FaceStore(store).open("space__astronaut.png") as file:
        sample = {name: file.get_tensor(name) for name in file.keys()}
    assert np.linalg.norm(sample["identity"]) == pytest.approx(1, abs=1e-4)
    distance, lips = np.moveaxis(sample["mask"], -1, 0)
    face, mouth = distance > 127, lips == 255
    assert (face == face_region(sample["landmarks"] + MARGIN, FULL)).all()
    assert set(np.unique(lips)) == {0, 255} and face[mouth].all() and 0.2 < face.mean() < 0.7
    rows, columns = np.nonzero(face & (distance == 127 + 4 * 10))  # ten pixels inside
    outside = np.argwhere(~face)
    assert len(rows) > 0
    assert all(abs(np.hypot(*(outside - point).T).min() - 10) < 1 for point in zip(rows[:20], columns[:20], strict=True))
    lit = (sample["normals"] != 128).any(-1) & face
    assert lit.sum() > 0.8 * face.sum()  # the rendered head is behind the mask
    assert np.abs(sample["render"][lit].astype(float) - sample["image"][lit]).mean() < 40
    pose = MorphableCoefficients.unpack(torch.from_numpy(sample["coefficients"])).pose
    assert pose[:3].abs().max() < 0.5 and pose[3:].abs().max() < 1.5


@pytest.fixture(scope="module")
def clip_store(tmp_path_factory) -> Path:
    """The store of a clip of 11 frames, in which the demo photo slides to the left, and of a file that claims to be one."""
    if not WEIGHTS.exists():
        pytest.skip("weights/diffdeid is not here")
    folder = tmp_path_factory.mktemp("clips")
    photo = cv2.imread(str(ROOT / "tests/assets/astronaut.png"))[..., ::-1]
    with av.open(str(folder / "slide.mp4"), "w") as clip:
        stream = clip.add_stream("libx264", rate=25, options={"crf": "10"})
        stream.width, stream.height, stream.pix_fmt = 320, 320, "yuv420p"
        for number in range(11):
            shifted = np.ascontiguousarray(photo[:320, 60 + 2 * number : 380 + 2 * number])
            clip.mux(stream.encode(av.VideoFrame.from_ndarray(shifted, format="rgb24")))
        clip.mux(stream.encode())
    (folder / "lie.mp4").write_text("not a clip")
    return prepare(folder, tmp_path_factory.mktemp("data") / "store", WEIGHTS)


def test_frames_of_a_clip_are_paired(clip_store):
    store = FaceStore(clip_store)
    assert store.names == ["slide.mp4", "slide.mp4__10", "slide.mp4__5"]
    frames = {name: store.load(name) for name in store.names}
    images, textures = ({name: frame["maps"][channels] for name, frame in frames.items()} for channels in (slice(3), slice(3, 6)))
    for name, frame in frames.items():
        others = [other for key, other in frames.items() if key != name and (images[key] == textures[name]).all()]
        assert frame["video"] and len(others) == 1
        with store.open(name) as target, store.open(next(key for key in frames if frames[key] is others[0])) as reference:
            own, person = (MorphableCoefficients.unpack(torch.from_numpy(f.get_tensor("fit"))) for f in (target, reference))
        shown = MorphableCoefficients.unpack(torch.from_numpy(frame["coefficients"]))
        for part, source in (("shape", person), ("illumination", person), ("gaze", own)):
            assert torch.equal(getattr(shown, part), getattr(source, part))
        assert not torch.equal(shown.expression, own.expression)  # it shows the same on the other head
        assert torch.equal(shown.pose[:3], own.pose[:3])


def test_a_second_run_recomputes_nothing(photos, store):
    before = {path: path.stat().st_mtime_ns for path in store.iterdir()}
    prepare(photos, store, WEIGHTS)
    assert {path: path.stat().st_mtime_ns for path in store.iterdir()} == before


def test_an_interrupted_run_leaves_no_partial_sample_and_can_go_on(photos, store, tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", interrupt)
        prepare(photos, tmp_path, WEIGHTS)
    assert not list(tmp_path.glob("*.safetensors"))
    prepare(photos, tmp_path, WEIGHTS)
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in store.iterdir()}
    name = "space__astronaut.png.safetensors"
    assert (tmp_path / name).read_bytes() == (store / name).read_bytes()
