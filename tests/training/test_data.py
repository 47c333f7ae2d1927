import numpy as np
import pytest
import torch
from torch.utils.data import default_collate

from diffdeid.geometry.camera import project
from diffdeid.training import data
from diffdeid.training.data import (
    HIDEABLE,
    FaceStore,
    TrainingFaces,
    ValidationFaces,
    coarsen,
    crop_jittered,
    erased_region,
    network_inputs,
)
from tests.training.conftest import invented_face, loaded_face


def stream(folder, **changes) -> TrainingFaces:
    store = FaceStore(folder)
    arguments = dict(resolution=32, set_weights={}, keep_mouth=0.5, identity_dropout=0.5, seed=0)
    return TrainingFaces(store, store.names, **arguments | changes)


def test_a_folder_without_faces_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="no prepared faces"):
        FaceStore(tmp_path)


def test_listed_faces_are_held_out(store, tmp_path):
    train, held_out = FaceStore(store).split(tmp_path / "held_out.txt")
    assert held_out == ["face 3", "face 6"]
    assert sorted(train + held_out) == FaceStore(store).names


def test_a_sample_depends_on_the_seed_and_its_number_only(store):
    first, second, other = stream(store), stream(store), stream(store, seed=1)
    for name, value in first[5].items():
        np.testing.assert_array_equal(second[5][name], value)
    assert any((other[n]["image"] != first[n]["image"]).any() for n in range(3))


def test_sets_of_weight_zero_are_not_drawn(store):
    faces = stream(store, set_weights={"b": 0.0})
    drawn = {faces.names[np.searchsorted(faces.cumulative, value, side="right")] for value in np.linspace(0, 0.999, 50)}
    assert drawn == {"face 0", "face 2", "face 4", "face 6"}


def test_a_store_without_any_weight_is_an_error(store):
    with pytest.raises(ValueError, match="`set_weights`"):
        stream(store, set_weights={"a": 0.0, "b": 0.0})


@pytest.mark.parametrize("dropout", [0.0, 1.0])
def test_dropped_identities_are_zeros(store, dropout):
    faces = stream(store, identity_dropout=dropout)
    assert all((faces[n]["identity"] == 0).all() == bool(dropout) for n in range(4))


def test_coarse_samples_have_coarse_pictures_and_everything_else_as_it_was(store):
    face = crop_jittered(FaceStore(store).load("face 0"), 64, np.random.default_rng(0))
    coarse = coarsen(face, 16)
    np.testing.assert_allclose(coarse["image"].mean((0, 1)), face["image"].mean((0, 1)), atol=2)
    detail = [np.abs(np.diff(picture.astype(float), axis=1)).mean() for picture in (coarse["image"], face["image"])]
    assert detail[0] < detail[1] / 2
    assert all(coarse[name] is value for name, value in face.items() if name not in ("image", "texture"))


def test_some_samples_are_coarse(store, monkeypatch):
    asked = []
    monkeypatch.setattr(data, "coarsen", lambda face, resolution: asked.append(resolution) or face)
    faces = stream(store)
    for n in range(100):
        faces[n]
    assert 2 <= len(asked) <= 20 and min(asked) >= 8 and max(asked) <= 21


def test_a_kept_mouth_is_not_erased():
    mask = invented_face(0)["mask"]
    whole, kept = erased_region(mask, keep_mouth=False), erased_region(mask, keep_mouth=True)
    assert whole.sum() == (mask[..., 0] > 0).sum()
    assert kept.sum() == whole.sum() - (mask[..., 1] > 0).sum()


def test_a_grown_region_covers_the_face():
    mask = invented_face(0)["mask"]
    plain, grown = erased_region(mask, keep_mouth=False), erased_region(mask, keep_mouth=False, grow=0.03)
    assert (grown >= plain).all() and grown.sum() > plain.sum()


def test_the_translation_follows_the_jittered_crop(tmp_path):
    """A dot where the head's origin projects to stays there."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        face = loaded_face(tmp_path, seed, size=288)
        translation = rng.uniform(-0.3, 0.3, 3).astype(np.float32)
        face["coefficients"][254:257] = translation
        x, y = (project(torch.from_numpy(translation), 256, margin=16)[:2]).tolist()
        rows, columns = np.mgrid[:288, :288] + 0.5
        face["image"] = np.repeat((255 * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / 18))[..., None], 3, 2).astype(np.uint8)

        jittered = crop_jittered(face, 256, rng)
        weight = jittered["image"][..., 0].astype(float)
        centre = [(weight.sum(axis) * (np.arange(256) + 0.5)).sum() / weight.sum() for axis in (0, 1)]
        expected = project(torch.from_numpy(jittered["coefficients"][254:257]), 256)[:2]
        np.testing.assert_allclose(centre, expected, atol=0.3)
        in_chip, expected = (m[:, :2] @ p + m[:, 2] for m, p in ((jittered["chip"], centre), (face["chip"], (x, y))))
        np.testing.assert_allclose(in_chip, expected, atol=0.3)


def test_conditions_are_in_the_documented_order(store):
    face = ValidationFaces(FaceStore(store), ["face 0"], resolution=64)[0]
    inputs = network_inputs(default_collate([face]))
    conditions = inputs["spatial_conditions"][0]
    assert conditions.shape == (9, 64, 64)
    np.testing.assert_array_equal(conditions[0], 2.0 * face["mask"] - 1)
    for channels, name in ((slice(1, 4), "render"), (slice(4, 7), "normals"), (slice(7, 9), "guides")):
        np.testing.assert_allclose(conditions[channels], face[name].transpose(2, 0, 1) / 127.5 - 1, atol=1e-6)


def test_the_eyes_are_their_openings_with_what_lies_around(store):
    face = ValidationFaces(FaceStore(store), ["face 0"], resolution=64)[0]
    face["guides"][:] = 0
    face["guides"][20:23, 30:36, 1], face["guides"][40, 40, 0] = 128, 255  # an eye, and a line that is none
    (eyes,) = network_inputs(default_collate([face]))["eyes"][0]
    assert (eyes[18:25, 28:38] == 1).all() and eyes.sum() == 7 * 10


def test_erased_pixels_do_not_reach_the_texture_encoder(store):
    face = ValidationFaces(FaceStore(store), ["face 0"], resolution=64)[0]
    inputs = network_inputs(default_collate([face]))
    erased = inputs["mask"][0, 0] == 1
    assert erased.any() and (inputs["masked_texture"][0, :3, erased] == 0).all()
    torch.testing.assert_close(inputs["masked_texture"][0, :3, ~erased], inputs["image"][0, :, ~erased])


@pytest.mark.parametrize("name", HIDEABLE)
def test_hidden_inputs_are_left_out_and_nothing_else_is(store, name):
    batch = default_collate([ValidationFaces(FaceStore(store), ["face 0"], resolution=64)[0]])
    plain, without = network_inputs(batch), network_inputs(batch, [name])
    for key, channels in HIDEABLE[name]:
        assert plain[key][:, channels].any() and not without[key][:, channels].any()
        plain[key][:, channels] = 0
    assert without["coefficients"].any() == (name != "geometry")
    assert all(torch.equal(without[other], value) for other, value in plain.items())


def test_frames_of_clips_are_shown_another_frame(tmp_path):
    other = invented_face(1)["image"]
    loaded_face(tmp_path, 0, texture=other)
    face = ValidationFaces(FaceStore(tmp_path), ["face"], resolution=64)[0]
    inputs = network_inputs(default_collate([face]))
    assert inputs["video"].all() and inputs["mask"].any()
    np.testing.assert_allclose(inputs["masked_texture"][0, :3], other[4:-4, 4:-4].transpose(2, 0, 1) / 127.5 - 1, atol=1e-6)
    assert (inputs["masked_texture"][0, 3] == -1).all()


def test_stills_are_not_video(store):
    face = ValidationFaces(FaceStore(store), ["face 0"], resolution=64)[0]
    assert not network_inputs(default_collate([face]))["video"].any()


def test_brighter_pictures_have_more_light(store):
    face = ValidationFaces(FaceStore(store), ["face 0"], resolution=64)[0]
    face["image"] //= 2
    plain = network_inputs(default_collate([face]))
    bright = network_inputs(default_collate([face | {"gain": np.array([1.1, 1.2, 1.3], np.float32)}]))
    gain = torch.tensor([1.1, 1.2, 1.3])
    torch.testing.assert_close(bright["image"] + 1, (plain["image"] + 1) * gain[:, None, None])
    changed = bright["coefficients"] - plain["coefficients"]
    light = plain["coefficients"][:, 224:251].reshape(9, 3)
    torch.testing.assert_close(bright["coefficients"][:, 224:251].reshape(9, 3), light * gain)
    assert changed[:, :224].abs().sum() == changed[:, 251:].abs().sum() == 0
