"""The network that ships, on a photo that it has not seen."""

import numpy as np
import pytest
import torch

from diffdeid import read_image
from diffdeid.geometry.camera import project, to_camera
from diffdeid.geometry.eyes import eye_frame
from diffdeid.geometry.rotation import rotation_matrix, rotation_vector
from diffdeid.options import DeidentifyOptions
from diffdeid.structures import FaceJob


@pytest.fixture(scope="module")
def found(pipeline, astronaut):
    """Landmarks in the crop, and what fit and network make of the face."""
    picture = np.asarray(read_image(astronaut).image)
    faces = pipeline.detect_faces(picture)
    jobs = [FaceJob(picture, face) for face in faces]
    with torch.no_grad():
        sources = {name: pipeline.engine.reconstruct(jobs, DeidentifyOptions(reconstruction=name)) for name in ("fit", "network")}
    return torch.from_numpy(sources["fit"].landmarks).float(), {name: one.coefficients for name, one in sources.items()}


def landmark_error(pipeline, coefficients, landmarks) -> float:
    """In percent of the distance between the eyes."""
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
