"""The released network, on a photo that it was not trained on."""

import numpy as np
import pytest
import torch

from diffdeid import read_image
from diffdeid.geometry.camera import project, to_camera
from diffdeid.geometry.eyes import eye_frame
from diffdeid.geometry.rotation import rotation_matrix, rotation_vector
from diffdeid.models.face_reconstructor import FaceReconstructorModel
from diffdeid.options import DeidentifyOptions
from diffdeid.structures import FaceJob


@pytest.fixture(scope="module")
def found(pipeline, astronaut):
    """The landmarks in the crop, and the coefficients by fit and by network."""
    picture = np.asarray(read_image(astronaut).image)
    faces = pipeline.detect_faces(picture)
    jobs = [FaceJob(picture, face) for face in faces]
    with torch.no_grad():
        sources = {name: pipeline.engine.reconstruct(jobs, DeidentifyOptions(reconstruction=name)) for name in ("fit", "network")}
    return torch.from_numpy(sources["fit"].landmarks).float(), {name: one.coefficients for name, one in sources.items()}


def landmark_error(pipeline, coefficients, landmarks) -> float:
    """Mean error of landmarks in percent of the distance between the eyes."""
    head = pipeline.morphable_model(coefficients.shape, coefficients.expression)
    points = project(to_camera(head.landmarks, coefficients.pose.float()), pipeline.size)
    eyes, _, _ = eye_frame(landmarks)
    return float(100 * (points - landmarks)[..., :2].norm(dim=-1).mean() / (eyes[:, 0] - eyes[:, 1]).norm())


def test_landmarks_lie_where_the_detector_sees_them(pipeline, found):
    landmarks, coefficients = found
    assert landmark_error(pipeline, coefficients["network"], landmarks) < 5


def test_pose_light_and_gaze_agree_with_the_fit(found):
    fitted, network = found[1]["fit"], found[1]["network"]
    turn = rotation_matrix(fitted.pose[:, :3]).mT @ rotation_matrix(network.pose[:, :3].float())
    assert rotation_vector(turn).norm().rad2deg() < 8
    assert (fitted.illumination[:, :3] - network.illumination[:, :3]).abs().max() < 0.2
    torch.testing.assert_close(network.gaze, fitted.gaze)  # from the irises, in both


def test_every_slot_is_filled_and_finite(found):
    packed = found[1]["network"].pack()
    assert packed.shape == (1, 261) and packed.isfinite().all()
    expression = found[1]["network"].expression
    assert expression.min() >= 0 and expression.max() <= 1
    assert expression[:, 52:].max() < 1e-2  # nobody uses them


def toy(**config) -> FaceReconstructorModel:
    stages = ((1, 3, 1, 1, 8), (1, 3, 2, 2, 8), (1, 3, 2, 2, 8), (1, 3, 2, 2, 8), (1, 3, 2, 2, 16))
    torch.manual_seed(0)
    model = FaceReconstructorModel(
        **dict(sample_size=64, stages=stages, embedding_size=8, neck_channels=8, hidden_size=16) | config
    )
    for layer in model.modules():  # as it starts, next to nothing passes through it
        if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear):
            torch.nn.init.kaiming_normal_(layer.weight)
    return model.eval()


def test_an_efficientnet_says_how_far_it_may_be_off():
    found = toy()(torch.rand(3, 3, 64, 64))
    assert found.coefficients.pack().shape == (3, 261)
    assert found.expected_error.shape == (3,) and (found.expected_error > 0).all()


def test_a_resnet_does_not():
    model = toy(stages=None, hidden_sizes=(8, 16), depths=(1, 1))
    assert model(torch.rand(1, 3, 64, 64)).expected_error is None


def test_crops_of_other_sizes_are_resized():
    model, crops = toy(), torch.rand(1, 3, 64, 64)
    larger = crops.repeat_interleave(4, 2).repeat_interleave(4, 3)
    torch.testing.assert_close(model(larger).coefficients.pack(), model(crops).coefficients.pack(), atol=1e-5, rtol=1e-5)


def test_mirror_images_are_told_alike():
    model, crops = toy(expression_bounded=False), torch.rand(2, 3, 64, 64)
    generator = torch.Generator().manual_seed(0)
    order = torch.arange(261).view(-1, 3).flip(1).flatten()  # pairs, and what stays
    sign = torch.where(torch.rand(87, 1, generator=generator) < 0.5, -1.0, 1.0).expand(87, 3).flatten()
    model.mirror_order.copy_(order)
    model.mirror_sign.copy_(sign)
    there = model(crops)
    back = model(crops.flip(3))
    torch.testing.assert_close(back.coefficients.pack(), sign * there.coefficients.pack()[:, order], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(back.expected_error, there.expected_error)


def test_it_sees_where_the_face_is():
    """Pooling must not remove the places of features."""
    picture = torch.zeros(1, 3, 64, 64)
    picture[..., 20:40, 4:24] = 1
    model = toy()
    assert (model(picture).coefficients.pose - model(picture.roll(32, 3)).coefficients.pose).abs().max() > 1e-3


def test_weights_survive_saving(tmp_path):
    model, crops = toy(), torch.rand(1, 3, 64, 64)
    model.save_pretrained(tmp_path)
    again = FaceReconstructorModel.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(again(crops).coefficients.pack(), model(crops).coefficients.pack())
