"""Faces that are to be painted as somebody else."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from torch.utils.data import default_collate

from diffdeid.structures import MorphableCoefficients
from diffdeid.training.data import EXCHANGED, FaceStore, ValidationFaces, network_inputs
from diffdeid.training.exchange import exchange_people
from tests.training.conftest import invented_face

WEIGHTS = Path(__file__).parents[2] / "weights/diffdeid"
SIZE = 288


@pytest.fixture
def people(tmp_path) -> Path:
    """A store of two photos for training, one held out, and a frame of a clip."""
    if not WEIGHTS.exists():
        pytest.skip("weights/diffdeid is not here")
    folder = tmp_path / "people"
    folder.mkdir()
    for seed, name in enumerate(("a", "b", "held out", "frame")):
        face = invented_face(seed, SIZE)
        face["coefficients"] *= 0.1
        if name == "frame":
            face["texture"] = face["image"]
        save_file(face, folder / f"{name}.safetensors", metadata={"set": "photos"})
    (tmp_path / "held_out.txt").write_text("held out\n")
    exchange_people(folder, tmp_path / "held_out.txt", WEIGHTS)
    return folder


def test_photos_for_training_are_exchanged_and_nothing_else(people, tmp_path):
    store = FaceStore(people)
    training, validation = store.split(tmp_path / "held_out.txt")
    assert training == ["a", "b", "frame"] and validation == ["held out"]
    assert store.made(training, EXCHANGED) == [f"a{EXCHANGED}", f"b{EXCHANGED}"] and store.made(validation, EXCHANGED) == []


def test_whoever_reads_a_store_finds_photographed_faces_alone(people, tmp_path):
    """The sampler must not learn one person's z_id with another's α, and parts need not contain faces that are made again."""
    store = FaceStore(people)
    assert len(list(people.glob("*.safetensors"))) == 6 and store.names == ["a", "b", "frame", "held out"]
    assert all(not name.endswith(EXCHANGED) for names in store.split(None) for name in names)


def test_an_exchanged_face_shows_the_same_picture_but_another_shape_and_identity(people):
    store = FaceStore(people)
    for name, other in ("ab", "ba"):
        own, theirs, exchanged = (store.load(entry) for entry in (name, other, f"{name}{EXCHANGED}"))
        assert exchanged["exchanged"] and not own["exchanged"] and not exchanged["video"]
        np.testing.assert_array_equal(exchanged["maps"][:6], own["maps"][:6])  # picture and texture
        np.testing.assert_array_equal(exchanged["maps"][14:], own["maps"][14:])  # mask
        assert (exchanged["maps"][6:14] != own["maps"][6:14]).any((1, 2)).all()
        np.testing.assert_array_equal(exchanged["identity"], theirs["identity"])
        before, shape, after = (
            MorphableCoefficients.unpack(torch.from_numpy(face["coefficients"])) for face in (own, theirs, exchanged)
        )
        assert torch.equal(after.shape, shape.shape)
        assert all(torch.equal(getattr(after, kept), getattr(before, kept)) for kept in ("albedo", "gaze"))
        assert not torch.equal(after.expression, before.expression)  # it shows the same on another head
        assert torch.equal(after.pose[[0, 1, 2, 5]], before.pose[[0, 1, 2, 5]])


def test_exchanging_goes_on_where_it_stopped(people, tmp_path):
    kept, lost = (people / f"{name}{EXCHANGED}.safetensors" for name in "ab")
    content, time = lost.read_bytes(), kept.stat().st_mtime_ns
    lost.unlink()
    exchange_people(people, tmp_path / "held_out.txt", WEIGHTS)
    assert lost.read_bytes() == content and kept.stat().st_mtime_ns == time


def test_the_mouth_of_an_exchanged_face_is_never_kept(people):
    store = FaceStore(people)
    own, exchanged = (
        network_inputs(default_collate([ValidationFaces(store, [name])[0] | {"keep_mouth": np.True_}]), 256)["mask"].sum()
        for name in ("a", f"a{EXCHANGED}")
    )
    assert exchanged > own


def test_one_photo_cannot_be_exchanged(tmp_path):
    save_file(invented_face(0), tmp_path / "a.safetensors", metadata={"set": "photos"})
    (tmp_path / "names.txt").touch()
    with pytest.raises(ValueError, match="at least two"):
        exchange_people(tmp_path, tmp_path / "names.txt")
