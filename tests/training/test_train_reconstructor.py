"""Everything is tested on faces rendered from known coefficients, so labels and pictures agree."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import load_file
from torch.nn.functional import normalize
from torch.utils.data import default_collate

from diffdeid.errors import ConfigurationError
from diffdeid.geometry.camera import to_camera
from diffdeid.geometry.eyes import gaze_from_iris, iris_centres
from diffdeid.geometry.landmarks import EYE_CORNERS
from diffdeid.geometry.lighting import shade
from diffdeid.geometry.pixels import from_bytes
from diffdeid.geometry.renderer import render
from diffdeid.geometry.rotation import rotation_matrix
from diffdeid.models.face_reconstructor import FaceReconstructorModel
from diffdeid.models.morphable_model import MorphableModel
from diffdeid.structures import MorphableCoefficients
from diffdeid.training import train_reconstructor
from diffdeid.training.config import ReconstructorTrainConfig
from diffdeid.training.data import FaceStore
from diffdeid.training.reconstructor_data import (
    NO_JITTER,
    ReconstructorFaces,
    brightened,
    degraded,
    draw_jitter,
    jittered_labels,
    jittered_picture,
    landmark_twins,
    mirrored,
    picture_landmarks,
    plain_batches,
    read_faces,
    turned_light,
)
from diffdeid.training.train_reconstructor import ReconstructionLoss, build_network, train

WEIGHTS = Path(__file__).parents[2] / "weights" / "diffdeid"
STAGES = ((1, 3, 1, 1, 8), (1, 3, 2, 2, 8), (1, 3, 2, 2, 8), (1, 3, 2, 2, 8), (1, 3, 2, 2, 16))
NETWORK = dict(sample_size=32, stages=STAGES, embedding_size=8, neck_channels=16, hidden_size=32)
NO_RENDERS = np.empty((0, 144, 144, 4), np.uint8)
COUNT, SIZE, STORE_MARGIN = 6, 128, 8  # of the rendered faces


@pytest.fixture(scope="module")
def head() -> MorphableModel:
    return MorphableModel.from_pretrained(WEIGHTS, subfolder="morphable_model").float()


@pytest.fixture(scope="module")
def labels(head) -> dict[str, torch.Tensor]:
    """Different heads in different poses and lights."""
    torch.manual_seed(0)
    light = torch.randn(COUNT, 9, 3) * 0.05
    light[:, 0] += 0.7
    pose = torch.cat([0.2 * torch.randn(COUNT, 3), 0.1 * torch.randn(COUNT, 3)], dim=1)
    coefficients = MorphableCoefficients(
        0.7 * torch.randn(COUNT, 80),
        torch.zeros(COUNT, 64),
        0.5 * torch.randn(COUNT, 80),
        light.flatten(1),
        pose,
        0.1 * torch.randn(COUNT, 4),
    )
    coefficients.expression[:, :52] = 0.2 * torch.rand(COUNT, 52)
    landmarks = projected(head, coefficients.pack())
    return {"coefficients": coefficients.pack(), "landmarks": landmarks, "iris": iris_centres(landmarks, coefficients.gaze)}


@pytest.fixture(scope="module")
def pictures(head, labels) -> np.ndarray:
    """`(COUNT, SIZE + 2 margin, …, 3)` uint8."""
    coefficients = MorphableCoefficients.unpack(labels["coefficients"])
    output = head(coefficients.shape, coefficients.expression, coefficients.albedo)
    vertices = to_camera(output.vertices, coefficients.pose)
    image = render(vertices, output.albedo, coefficients.illumination, head.triangles, SIZE, STORE_MARGIN).image
    return (255 * image.clamp(0, 1)).round().byte().numpy()


@pytest.fixture
def store(tmp_path, labels, pictures) -> Path:
    folder = tmp_path / "store"
    folder.mkdir()
    for index in range(COUNT):
        face = {
            "image": pictures[index],
            "fit": labels["coefficients"][index].numpy(),
            "landmarks": SIZE * labels["landmarks"][index].numpy(),
            "iris": SIZE * labels["iris"][index, :, None].expand(2, 5, 2).contiguous().numpy(),
        }
        save_file(face, folder / f"face {index}.safetensors", metadata={"set": "rendered"})
    (tmp_path / "held_out.txt").write_text("face 3\n")
    return folder


@pytest.fixture
def config(store, tmp_path) -> ReconstructorTrainConfig:
    """Two steps of four faces."""
    return ReconstructorTrainConfig(
        data=str(store),
        output=str(tmp_path / "run"),
        model=str(WEIGHTS),
        network=NETWORK,
        validation_names=str(tmp_path / "held_out.txt"),
        batch_size=4,
        max_samples=8,
        warmup_samples=0,
        log_minutes=0,
        checkpoint_minutes=0,
    )


def projected(head: MorphableModel, coefficients: torch.Tensor) -> torch.Tensor:
    rho = MorphableCoefficients.unpack(coefficients)
    return picture_landmarks(head(rho.shape, rho.expression).landmarks, rho.pose)


def jitter(**values) -> dict[str, torch.Tensor]:
    """The same jitter of all faces."""
    values = {name: torch.as_tensor(value, dtype=torch.float32) for name, value in {**NO_JITTER, **values}.items()}
    return {name: value.expand(COUNT, *value.shape) for name, value in values.items()}


def pixels(actual: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """Distances in a crop of 256."""
    return 256 * (actual - expected)[..., :2].norm(dim=-1)


def objective(head: MorphableModel, labels: dict[str, torch.Tensor]) -> ReconstructionLoss:
    return ReconstructionLoss(head, torch.zeros(261), torch.ones(261), ReconstructorTrainConfig(data="", output=""))


def training_batch(head, labels, pictures) -> dict[str, torch.Tensor]:
    """Eight augmented samples with their labels, as in `train`."""
    centre = head.at_landmarks(head.mean).mean(0)
    both = mirrored(labels, landmark_twins(head))
    batch = default_collate([ReconstructorFaces(pictures, NO_RENDERS, SIZE, seed=0)[n] for n in range(8)])
    chosen = {name: torch.cat([labels[name], both[name]])[batch["index"]] for name in labels}
    return batch | jittered_labels(chosen, batch, centre)


class TestMirror:
    def test_twins_are_pairs_across_the_middle(self, head):
        twins = landmark_twins(head)
        assert twins[twins].tolist() == list(range(468))
        (right_outer, right_inner), (left_inner, left_outer) = EYE_CORNERS
        assert twins[[right_outer, right_inner, 1]].tolist() == [left_outer, left_inner, 1]

    def test_landmarks_of_a_lopsided_head_are_refused(self, head):
        lopsided = copy.deepcopy(head)
        lopsided.mean[:, 0] += 0.1 * lopsided.mean[:, 1]
        with pytest.raises(ConfigurationError, match="not symmetric"):
            landmark_twins(lopsided)

    def test_mirrored_coefficients_project_to_mirrored_landmarks(self, head, labels):
        other = mirrored(labels, landmark_twins(head))
        distances = pixels(projected(head, other["coefficients"]), other["landmarks"])
        assert distances.mean() < 0.3 and distances.max() < 2  # as symmetric as the head's expressions are
        gaze = MorphableCoefficients.unpack(other["coefficients"]).gaze
        torch.testing.assert_close(iris_centres(other["landmarks"], gaze), other["iris"], atol=1e-5, rtol=0)

    def test_mirroring_twice_changes_nothing(self, head, labels):
        twins = landmark_twins(head)
        for name, values in mirrored(mirrored(labels, twins), twins).items():
            torch.testing.assert_close(values, labels[name])


class TestJitter:
    def moved(self, head, labels, **values) -> dict[str, torch.Tensor]:
        return jittered_labels(labels, jitter(**values), head.at_landmarks(head.mean).mean(0))

    def test_none_changes_nothing(self, head, labels):
        for name, values in self.moved(head, labels).items():
            torch.testing.assert_close(values, labels[name], atol=1e-5, rtol=1e-4)

    def test_turning_is_exact(self, head, labels):
        moved = self.moved(head, labels, angle=0.3)
        torch.testing.assert_close(
            projected(head, moved["coefficients"])[..., :2], moved["landmarks"][..., :2], atol=1e-5, rtol=0
        )
        torch.testing.assert_close(
            self.moved(head, moved, angle=-0.3)["coefficients"], labels["coefficients"], atol=1e-5, rtol=1e-4
        )

    def test_a_positive_angle_turns_the_picture_counter_clockwise(self, head, labels):
        before, after = (values["landmarks"][0, 263] - 0.5 for values in (labels, self.moved(head, labels, angle=0.1)))
        turn = torch.atan2(-after[1], after[0]) - torch.atan2(-before[1], before[0])
        assert turn.item() == pytest.approx(0.1, abs=1e-4)

    @pytest.mark.parametrize("values", [dict(shift=(0.06, -0.06)), dict(zoom=0.92), dict(zoom=1.08)], ids=str)
    def test_another_window_is_nearly_exact(self, head, labels, values):
        moved = self.moved(head, labels, **values)
        distances = pixels(projected(head, moved["coefficients"]), moved["landmarks"])
        assert distances.mean() < 0.15 and distances.max() < 1

    def test_gaze_is_measured_in_the_eye_and_stays(self, head, labels):
        moved = self.moved(head, labels, angle=0.2, shift=(0.05, 0.02), zoom=1.07)
        iris = moved["iris"][:, :, None].expand(-1, -1, 5, -1)
        torch.testing.assert_close(gaze_from_iris(moved["landmarks"], iris), labels["coefficients"][:, 257:], atol=1e-4, rtol=0)

    def test_turned_light_shades_turned_normals_as_before(self):
        torch.manual_seed(0)
        light, turn = torch.randn(4, 27), rotation_matrix(torch.randn(4, 3))
        normals = normalize(torch.randn(4, 50, 3), dim=-1)
        before = shade(torch.ones(1), normals, light)
        torch.testing.assert_close(shade(torch.ones(1), normals @ turn.mT, turned_light(light, turn)), before, atol=1e-4, rtol=0)

    def test_gain_brightens_light_and_picture(self, head, labels, pictures):
        gain = np.array([0.5, 0.7, 0.9], np.float32)
        light = self.moved(head, labels, gain=gain)["coefficients"][:, 224:251].unflatten(1, (9, 3))
        torch.testing.assert_close(
            light, labels["coefficients"][:, 224:251].unflatten(1, (9, 3)) * torch.from_numpy(gain), atol=1e-4, rtol=0
        )
        dark = brightened(jittered_picture(pictures[0], NO_JITTER, SIZE), gain)
        np.testing.assert_allclose(dark, jittered_picture(pictures[0], NO_JITTER, SIZE) * gain, atol=0.51)

    def test_a_large_window_about_a_turned_box_is_nearly_exact_too(self, head, labels):
        moved = self.moved(head, labels, angle=-0.4, shift=(0.14, 0.19), zoom=0.72)
        distances = pixels(projected(head, moved["coefficients"]), moved["landmarks"])
        assert distances.mean() < 1 and distances.max() < 4

    @pytest.mark.parametrize("seed", range(4))
    @pytest.mark.parametrize("askew", [False, True])
    def test_pictures_move_like_landmarks(self, head, labels, seed, askew):
        drawn = draw_jitter(np.random.default_rng(seed), askew)
        spot = np.array([0.62, 0.41])
        stored = SIZE + 2 * STORE_MARGIN
        x, y = (np.arange(stored) + 0.5 - STORE_MARGIN) / SIZE - spot[:, None]
        picture = (255 * np.exp(-(x**2 + y[:, None] ** 2) / 2 / 0.03**2)).astype(np.uint8)[..., None].repeat(3, axis=2)
        window = jittered_picture(picture, drawn | {"gain": np.ones(3, np.float32)}, SIZE)[..., 0].astype(float)
        centres = (np.arange(SIZE) + 0.5) / SIZE
        found = [(window.sum(0) * centres).sum() / window.sum(), (window.sum(1) * centres).sum() / window.sum()]
        marked = {**labels, "landmarks": torch.tensor([*spot, 0.0]).float().expand(COUNT, 468, 3)}
        moved = jittered_labels(marked, jitter(**drawn), torch.zeros(3))["landmarks"][0, 0, :2]
        np.testing.assert_allclose(found, moved, atol=1e-3)

    def test_without_jitter_the_crop_proper_is_cut_out(self, pictures):
        proper = pictures[0, STORE_MARGIN:-STORE_MARGIN, STORE_MARGIN:-STORE_MARGIN]
        np.testing.assert_array_equal(jittered_picture(pictures[0], NO_JITTER, SIZE), proper)


class TestSamples:
    def test_depend_on_seed_and_number_only(self, pictures):
        first, second = (ReconstructorFaces(copy, NO_RENDERS, 32, seed=1) for copy in (pictures, pictures.copy()))
        second[3]
        for name, value in first[5].items():
            np.testing.assert_array_equal(second[5][name], value)
        assert (ReconstructorFaces(pictures, NO_RENDERS, 32, seed=2)[5]["image"] != first[5]["image"]).any()

    def test_renders_are_laid_over_something(self, pictures):
        renders = np.zeros((3, *pictures.shape[1:3], 4), np.uint8)
        renders[:, 40:100, 40:100] = 255
        faces = ReconstructorFaces(pictures, renders, SIZE, seed=0)
        drawn = [faces[n] for n in range(40)]
        assert {sample["index"] % 9 >= 6 for sample in drawn} == {False, True} and max(s["index"] for s in drawn) < 18
        assert {float(sample["face"]) for sample in drawn} <= {0.0, 1.0}
        laid = next(s for s in drawn if s["index"] % 9 >= 6 and s["face"] and not s["grey"])
        np.testing.assert_allclose(laid["picture"][64, 60], np.minimum(255 * laid["gain"], 255), atol=1)
        assert any(s["picture"][:4].max() > 0 for s in drawn if s["index"] % 9 >= 6)  # and not the black of the render

    def test_degrading_leaves_the_picture_alone_and_changes_most_copies(self, pictures):
        before, rng = pictures[0].copy(), np.random.default_rng(0)
        copies = [degraded(pictures[0], rng) for _ in range(20)]
        np.testing.assert_array_equal(pictures[0], before)
        assert all(copy.shape == before.shape and copy.dtype == np.uint8 for copy in copies)
        assert 10 < sum((copy != before).any() for copy in copies) < 20

    def test_labels_fit_their_augmented_pictures(self, head, labels, pictures):
        batch = training_batch(head, labels, pictures)
        assert {True, False} == set((batch["index"] < COUNT).tolist())
        losses = objective(head, labels)(MorphableCoefficients.unpack(batch["coefficients"]), batch)
        assert losses["coefficients"] == 0 and losses["landmarks"] < 2e-3 and losses["gaze"] < 2e-3
        others = {name: value.roll(1, 0) if name in ("picture", "landmarks", "iris") else value for name, value in batch.items()}
        strangers = objective(head, labels)(MorphableCoefficients.unpack(batch["coefficients"]), others)
        for name in ("landmarks", "photometric", "gaze"):
            assert losses[name] < 0.4 * strangers[name], name


class TestReconstructionLoss:
    def batch(self, labels, pictures) -> dict[str, torch.Tensor]:
        (batch,) = plain_batches(pictures, labels, SIZE, torch.device("cpu"))
        return batch

    def test_the_truth_has_none(self, head, labels, pictures):
        batch = self.batch(labels, pictures)
        losses = objective(head, labels)(MorphableCoefficients.unpack(batch["coefficients"]), batch)
        assert losses["landmarks"] < 1e-6 and losses["gaze"] < 1e-6 and losses["coefficients"] == 0
        assert losses["photometric"] < 0.02

    @pytest.mark.parametrize("group", ["albedo", "illumination", "pose"])
    def test_skin_of_another_colour_light_or_place_is_noticed(self, head, labels, pictures, group):
        batch = self.batch(labels, pictures)
        truth = MorphableCoefficients.unpack(batch["coefficients"])
        changed = replace(truth, **{group: getattr(truth, group).roll(1, 0)})
        loss = objective(head, labels)
        assert loss(changed, batch)["photometric"] > 1.5 * loss(truth, batch)["photometric"]

    def test_colours_teach_shape_skin_light_and_pose(self, head, labels, pictures):
        batch = self.batch(labels, pictures)
        coefficients = (batch["coefficients"] + 0.01).requires_grad_()
        objective(head, labels)(MorphableCoefficients.unpack(coefficients), batch)["photometric"].backward()
        gradient = MorphableCoefficients.unpack(coefficients.grad)
        for group in ("shape", "expression", "albedo", "illumination", "pose"):
            assert getattr(gradient, group).abs().sum() > 0, group
        assert gradient.gaze.abs().sum() == 0

    def test_what_is_no_face_has_no_labels(self, head, labels, pictures):
        batch = self.batch(labels, pictures) | {"face": torch.zeros(COUNT)}
        wrong = MorphableCoefficients.unpack(batch["coefficients"] + 1)
        losses = objective(head, labels)(wrong, batch, torch.full((COUNT,), 0.1))
        assert losses["landmarks"] == losses["coefficients"] == losses["photometric"] == losses["gaze"] == 0

    def test_doubt_is_least_where_it_is_the_error(self, head, labels, pictures):
        batch = self.batch(labels, pictures)
        truth = MorphableCoefficients.unpack(batch["coefficients"])
        moved = replace(truth, pose=truth.pose + torch.tensor([0, 0, 0, 0.1, 0, 0]))
        error = pixels(projected(head, moved.pack()), batch["landmarks"]).mean(1) / 256
        said = [objective(head, labels)(moved, batch, factor * error)["doubt"] for factor in (0.8, 1, 1.25)]
        assert said[1] < said[0] and said[1] < said[2]

    def test_labels_of_grey_pictures_say_nothing_about_colour(self, head, labels, pictures):
        batch = self.batch(labels, pictures)
        truth = MorphableCoefficients.unpack(batch["coefficients"])
        changed, grey = replace(truth, albedo=truth.albedo + 1), batch | {"grey": torch.ones(COUNT)}
        loss = objective(head, labels)
        assert loss(changed, batch)["coefficients"] > 0 and loss(changed, grey)["coefficients"] == 0


def test_two_steps_lower_the_loss(head, labels, pictures):
    batch = training_batch(head, labels, pictures)
    torch.manual_seed(0)
    network = FaceReconstructorModel(**NETWORK)
    network.mean.copy_(labels["coefficients"].mean(0))
    network.std.copy_(labels["coefficients"].std(0).clamp(min=0.01))
    loss_of = ReconstructionLoss(head, network.mean, network.std, ReconstructorTrainConfig(data="", output=""))
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    losses = []
    for _ in range(3):
        loss = loss_of(network(from_bytes(batch["image"])).coefficients, batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > losses[1] > losses[2]


def test_faces_are_read_at_the_size_of_the_network_with_points_in_crop_sizes(store, labels):
    faces = FaceStore(store)
    read, points = read_faces(faces, faces.names, 32)
    assert read.shape == (COUNT, 36, 36, 3)
    for name, values in points.items():
        torch.testing.assert_close(values, labels[name])


def state_of(checkpoint: Path) -> dict[str, torch.Tensor]:
    averaged = load_file(checkpoint / "diffusion_pytorch_model.safetensors")
    return load_file(checkpoint / "state" / "model.safetensors") | {f"averaged.{name}": value for name, value in averaged.items()}


def test_an_interrupted_run_ends_with_the_weights_of_an_uninterrupted_one(config, tmp_path, interrupt_after_checkpoint):
    whole = state_of(train(replace(config, output=str(tmp_path / "whole"))))

    interrupt_after_checkpoint(train_reconstructor, train, config)
    assert [path.name for path in Path(config.output).glob("*checkpoint*")] == ["checkpoint-000000004"]

    resumed = state_of(train(config))
    assert resumed.keys() == whole.keys()
    for name, value in whole.items():
        torch.testing.assert_close(resumed[name], value, atol=1e-6, rtol=1e-5, msg=name)


def test_a_finished_run_is_not_trained_further(config):
    checkpoint = train(config)
    assert train(config) == checkpoint


def test_a_run_leaves_a_network_and_a_log_with_held_out_errors(config):
    checkpoint = train(config)
    network = FaceReconstructorModel.from_pretrained(checkpoint)
    assert network.config.sample_size == 32 and network.std.min() >= 0.009
    entries = [json.loads(line) for line in (Path(config.output) / "log.jsonl").read_text().splitlines()]
    assert [entry["samples"] for entry in entries] == [4, 8]
    expected = {"landmarks_percent", "pose_degrees", "gaze", "photometric", "loss"}
    assert all(set(entries[-1][part]) == expected for part in ("held_out", "seen", "turned"))


def test_a_run_starts_from_the_averaged_weights_and_statistics_of_another(config, tmp_path):
    checkpoint = train(config)
    second = replace(config, init_from=config.output, output=str(tmp_path / "second"), network={"sample_size": 16})
    network, source = build_network(second), FaceReconstructorModel.from_pretrained(checkpoint)
    assert network.config.sample_size == 16
    for name, value in source.state_dict().items():
        torch.testing.assert_close(network.state_dict()[name], value)
    continued = FaceReconstructorModel.from_pretrained(train(second))
    torch.testing.assert_close(continued.mean, source.mean)


def test_weights_of_unknown_coefficients_are_refused():
    with pytest.raises(ValueError, match="coefficient_weights.*shape.*got.*identity"):
        ReconstructorTrainConfig(data="", output="", coefficient_weights={"identity": 1.0})
