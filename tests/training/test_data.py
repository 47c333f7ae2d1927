import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.numpy import save_file
from torch.utils.data import default_collate

from diffdeid.geometry.align import sample
from diffdeid.geometry.camera import project
from diffdeid.training.data import (
    COARSENESS,
    HIDEABLE,
    MAPS,
    FaceStore,
    TrainingFaces,
    ValidationFaces,
    coarsen,
    cut_out,
    erased_region,
    network_inputs,
)
from diffdeid.training.mirror import mirror_coefficients
from tests.training.conftest import invented_face, loaded_face

STARTS = dict(zip(MAPS, np.cumsum([0, *MAPS.values()]), strict=False))


def stream(folder, **changes) -> TrainingFaces:
    store = FaceStore(folder)
    arguments = dict(
        set_weights={}, open_mouth_weight=1.0, turned_weight=1.0, keep_mouth=0.5, identity_dropout=0.5, still_frames=0.5, seed=0
    )
    return TrainingFaces(store, store.names, **arguments | changes)


def stored(folder, name: str = "face 0", **changes) -> dict[str, torch.Tensor]:
    """A batch of one face as it is stored, but for `changes` in what becomes of it."""
    face = ValidationFaces(FaceStore(folder), [name])[0]
    return default_collate([face | {key: np.asarray(value) for key, value in changes.items()}])


def planes(batch: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    """The crop proper of a stored map, `(C, 64, 64)`."""
    return batch["maps"][0, STARTS[name] : STARTS[name] + MAPS[name], 4:-4, 4:-4].float()


def test_a_folder_without_faces_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="no prepared faces"):
        FaceStore(tmp_path)


def test_a_face_without_one_of_its_maps_is_an_error(tmp_path):
    """Only the texture may be missing; no other map is replaced by the picture."""
    face = invented_face(0)
    del face["render"]
    save_file(face, tmp_path / "face.safetensors", metadata={"set": "a"})
    with pytest.raises(SafetensorError, match="render"):
        FaceStore(tmp_path).load("face")


def test_listed_faces_are_held_out(store, tmp_path):
    train, held_out = FaceStore(store).split(tmp_path / "held_out.txt")
    assert held_out == ["face 3", "face 6"]
    assert sorted(train + held_out) == FaceStore(store).names


def test_a_sample_depends_on_the_seed_and_its_number_only(store):
    first, second, other = stream(store), stream(store), stream(store, seed=1)
    for name, value in first[5].items():
        np.testing.assert_array_equal(second[5][name], value)
    assert any((other[n]["window"] != first[n]["window"]).any() for n in range(3))


def test_faces_held_on_the_device_make_the_same_batches(store):
    read, drawn = stream(store), stream(store, read=False)
    held = read.store.stack(read.names, torch.device("cpu"))
    batch, numbers = (default_collate([faces[n] for n in range(6)]) for faces in (read, drawn))
    numbers |= {name: values[numbers["index"]] for name, values in held.items()}
    for name, value in batch.items():
        assert torch.equal(numbers[name], value), name


def test_sets_of_weight_zero_are_not_drawn(store):
    faces = stream(store, set_weights={"b": 0.0})
    drawn = {faces.names[np.searchsorted(faces.cumulative, value, side="right")] for value in np.linspace(0, 0.999, 50)}
    assert drawn == {"face 0", "face 2", "face 4", "face 6"}


def test_wide_open_mouths_are_drawn_as_often_as_asked(tmp_path):
    for name, opening in (("shut", 1.9), ("open", 2.1)):  # where outer eye corners are 10 apart
        face = invented_face(0)
        face["landmarks"][[33, 263, 13, 14], :2] = [[20, 20], [30, 20], [25, 40], [25, 40 + opening]]
        save_file(face, tmp_path / f"{name}.safetensors", metadata={"set": "a"})
    assert [stream(tmp_path, open_mouth_weight=weight).cumulative.tolist() for weight in (1.0, 3.0)] == [[0.5, 1], [0.75, 1]]


def test_heads_that_are_turned_away_are_drawn_as_often_as_asked(tmp_path):
    for name, degrees in (("a frontal", 10), ("half", 32.5), ("profile", 80)):
        face = invented_face(0)
        face["coefficients"][251:254] = [0, np.deg2rad(degrees), 0]
        save_file(face, tmp_path / f"{name}.safetensors", metadata={"set": "a"})
    assert stream(tmp_path, turned_weight=1.0).cumulative == pytest.approx([1 / 3, 2 / 3, 1])
    assert stream(tmp_path, turned_weight=5.0).cumulative == pytest.approx([1 / 9, 4 / 9, 1])


def test_a_store_without_any_weight_is_an_error(store):
    with pytest.raises(ValueError, match="`set_weights`"):
        stream(store, set_weights={"a": 0.0, "b": 0.0})


@pytest.mark.parametrize("dropout", [0.0, 1.0])
def test_dropped_identities_are_zeros(store, dropout):
    faces = stream(store, identity_dropout=dropout)
    identity = network_inputs(default_collate([faces[n] for n in range(4)]), 32)["identity"]
    assert ((identity == 0).all(dim=1) == bool(dropout)).all()


@pytest.mark.parametrize("factor", COARSENESS)
def test_coarse_pictures_have_less_detail_and_others_are_as_they_were(factor):
    pictures = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    coarse, same = coarsen(pictures, torch.tensor([factor, 1.0]))
    assert torch.equal(same, pictures[1])
    torch.testing.assert_close(coarse.mean((1, 2)), pictures[0].mean((1, 2)), atol=0.02, rtol=0)
    assert coarse.diff(dim=-1).abs().mean() < 0.8 / factor * pictures[0].diff(dim=-1).abs().mean()


def test_some_samples_are_coarse(store):
    faces = stream(store)
    drawn = [faces[n]["coarseness"] for n in range(100)]
    assert 2 <= sum(value > 1 for value in drawn) <= 20 and set(drawn) <= {1, *COARSENESS}


def test_a_kept_mouth_is_not_erased():
    mask = torch.from_numpy(invented_face(0)["mask"]).permute(2, 0, 1)[None].float()
    whole, kept = (erased_region(mask, torch.tensor([keep]), torch.zeros(1, 1, 1, 1))[0, 0] for keep in (False, True))
    assert whole.sum() == 44 * 40 and whole[16:60, 16:56].all()
    assert kept.sum() == whole.sum() - 10 * 24


@pytest.mark.parametrize("grow", [-3, 5])
def test_a_region_grows_by_so_many_pixels(grow):
    mask = torch.from_numpy(invented_face(0)["mask"]).permute(2, 0, 1)[None].float()
    changed = erased_region(mask, torch.tensor([False]), torch.full((1, 1, 1, 1), float(grow)))[0, 0]
    assert changed[16 - grow : 60 + grow, 16 - grow : 56 + grow].all() and changed.sum() == (44 + 2 * grow) * (40 + 2 * grow)


def test_a_region_is_widened_on_one_side_only(store):
    """It reaches farther there, so that the network learns to paint what lies beside a face; elsewhere it stays the same."""
    same, right = (network_inputs(stored(store, widen=np.float32(widen)), 64)["mask"][0, 0] for widen in ([0, 0], [0.12, 0]))
    assert torch.equal(same[:, :32], right[:, :32])
    reach, wider = (region.nonzero()[:, 1].max() for region in (same, right))
    assert wider >= reach + 3 and (right >= same).all()


def test_nothing_far_from_a_face_is_erased():
    """Stored distances end at 32 pixels, so a region that grew by more would reach everywhere."""
    mask = torch.zeros(1, 2, 8, 8)
    mask[:, 0, :, :2] = 100
    assert erased_region(mask, torch.tensor([False]), torch.full((1, 1, 1, 1), 50.0))[0, 0].sum() == 16


def test_half_of_the_regions_are_widened_to_every_side(store):
    faces = stream(store)
    drawn = np.stack([faces[n]["widen"] for n in range(200)])
    lengths = np.linalg.norm(drawn, axis=1)
    assert 70 <= (lengths > 0).sum() <= 130 and lengths.max() < 0.12
    assert all((side * drawn[:, axis] > 0.03).sum() > 10 for side in (-1, 1) for axis in (0, 1))


@pytest.mark.parametrize("mirrored", [False, True])
def test_coefficients_and_chip_follow_the_window(tmp_path, mirrored):
    """A dot where the head's origin projects to stays there."""
    loaded_face(tmp_path, 0, size=288)
    for seed in range(10):
        rng = np.random.default_rng(seed)
        batch = stored(tmp_path, "face", mirrored=mirrored)
        x0, y0 = rng.uniform(6, 26, 2)
        batch["window"] = torch.tensor([[x0, y0, rng.uniform(240, 262)]]).float()
        batch["coefficients"][0, 254:257] = torch.from_numpy(rng.uniform(-0.3, 0.3, 3)).float()
        x, y = project(batch["coefficients"][0, 254:257], 256, margin=16)[:2].tolist()
        rows, columns = np.mgrid[:288, :288] + 0.5
        batch["maps"][0, :3] = torch.from_numpy(255 * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / 18))

        cut = cut_out(batch, 256)
        weight = cut["image"][0, 0].double()
        centre = np.array([(weight.sum(axis) * (torch.arange(256) + 0.5)).sum() / weight.sum() for axis in (0, 1)])
        np.testing.assert_allclose(centre, project(cut["coefficients"][0, 254:257], 256)[:2], atol=0.3)
        before, after = (chip[0, :, :2].double().numpy() @ point + chip[0, :, 2].numpy()
                         for chip, point in ((batch["chip"], (x, y)), (cut["chip"], centre)))  # fmt: skip
        np.testing.assert_allclose(after, (150 - before[0], before[1]) if mirrored else before, atol=0.3)


def test_a_mirrored_face_is_mirrored_in_everything(tmp_path):
    loaded_face(tmp_path, 0)
    plain, mirrored = (cut_out(stored(tmp_path, "face", mirrored=value), 64) for value in (False, True))
    for name in set(MAPS) - {"normals"}:
        torch.testing.assert_close(mirrored[name], plain[name].flip(3), atol=1e-2, rtol=0, msg=name)
    x, *others = (mirrored["normals"].flip(3) - plain["normals"])[0]
    torch.testing.assert_close(mirrored["normals"][0, 0].flip(1), 255 - plain["normals"][0, 0], atol=1e-2, rtol=0)
    assert max(other.abs().max() for other in others) < 1e-2 < x.abs().max()
    torch.testing.assert_close(mirrored["coefficients"], mirror_coefficients(plain["coefficients"]))
    chips = [sample(cut["image"], cut["chip"], 150) for cut in (plain, mirrored)]
    torch.testing.assert_close(chips[1], chips[0].flip(3), atol=0.1, rtol=0)


def test_small_pictures_are_means_of_large_ones(store):
    large, small = (cut_out(stored(store), resolution)["image"] for resolution in (64, 32))
    torch.testing.assert_close(small, torch.nn.functional.avg_pool2d(large, 2), atol=1e-2, rtol=0)


def test_conditions_are_in_the_documented_order(store):
    batch = stored(store)
    inputs = network_inputs(batch, 64)
    conditions = inputs["spatial_conditions"][0]
    assert conditions.shape == (9, 64, 64)
    assert torch.equal(conditions[:1], 2 * inputs["mask"][0] - 1)
    for channels, name in ((slice(1, 4), "render"), (slice(4, 7), "normals"), (slice(7, 9), "guides")):
        torch.testing.assert_close(conditions[channels], planes(batch, name) / 127.5 - 1, atol=1e-4, rtol=0)


def test_openings_count_with_what_lies_around(store):
    batch = stored(store)
    lines, openings = batch["maps"][0, STARTS["guides"] : STARTS["guides"] + 2]
    lines[:], openings[:] = 0, 0
    openings[24:27, 34:40], lines[44, 44] = 128, 255  # an eye, and a line that is none
    (around,) = network_inputs(batch, 64)["openings"][0]
    assert (around[18:25, 28:38] == 1).all() and around.sum() == 7 * 10


def test_erased_pixels_do_not_reach_the_texture_encoder(store):
    inputs = network_inputs(stored(store), 64)
    erased = inputs["mask"][0, 0] == 1
    assert erased.any() and (inputs["masked_texture"][0, :3, erased] == 0).all()
    torch.testing.assert_close(inputs["masked_texture"][0, :3, ~erased], inputs["image"][0, :, ~erased])


@pytest.mark.parametrize("name", HIDEABLE)
def test_hidden_inputs_are_left_out_and_nothing_else_is(store, name):
    plain, without = network_inputs(stored(store), 64), network_inputs(stored(store), 64, [name])
    for key, channels in HIDEABLE[name]:
        assert plain[key][:, channels].any() and not without[key][:, channels].any()
        plain[key][:, channels] = 0
    assert without["coefficients"].any() == (name != "geometry")
    assert all(torch.equal(without[other], value) for other, value in plain.items())


def test_frames_of_clips_are_shown_another_frame(tmp_path):
    save_file(invented_face(0) | {"texture": invented_face(1)["image"]}, tmp_path / "face.safetensors", metadata={"set": "a"})
    batch = stored(tmp_path, "face")
    inputs = network_inputs(batch, 64)
    assert inputs["video"].all() and inputs["mask"].any()
    assert torch.equal(planes(batch, "texture"), torch.from_numpy(invented_face(1)["image"][4:-4, 4:-4]).permute(2, 0, 1))
    torch.testing.assert_close(inputs["masked_texture"][0, :3], planes(batch, "texture") / 127.5 - 1, atol=1e-4, rtol=0)
    assert (inputs["masked_texture"][0, 3] == -1).all()


def test_a_still_frame_is_shown_as_a_picture_is(tmp_path):
    save_file(invented_face(0) | {"texture": invented_face(1)["image"]}, tmp_path / "face.safetensors", metadata={"set": "a"})
    still = network_inputs(stored(tmp_path, "face", still=True), 64)
    save_file(invented_face(0), tmp_path / "face.safetensors", metadata={"set": "a"})
    for key, value in network_inputs(stored(tmp_path, "face"), 64).items():
        assert torch.equal(still[key], value), key


def test_some_frames_are_still(store):
    assert {share: {bool(stream(store, still_frames=share)[n]["still"]) for n in range(20)} for share in (0, 0.5, 1)} == {
        0: {False}, 0.5: {False, True}, 1: {True}
    }  # fmt: skip


def test_stills_are_not_video(store):
    assert not network_inputs(stored(store), 64)["video"].any()


def test_brighter_pictures_have_more_light(store):
    batch = stored(store)
    batch["maps"][:, :3] //= 2
    plain, bright = network_inputs(batch, 64), network_inputs(batch | {"gain": torch.tensor([[1.1, 1.2, 1.3]])}, 64)
    gain = torch.tensor([1.1, 1.2, 1.3])
    torch.testing.assert_close(bright["image"] + 1, (plain["image"] + 1) * gain[:, None, None])
    changed = bright["coefficients"] - plain["coefficients"]
    light = plain["coefficients"][:, 224:251].reshape(9, 3)
    torch.testing.assert_close(bright["coefficients"][:, 224:251].reshape(9, 3), light * gain)
    assert changed[:, :224].abs().sum() == changed[:, 251:].abs().sum() == 0
