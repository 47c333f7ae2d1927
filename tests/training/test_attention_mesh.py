from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from diffdeid.geometry.align import ffhq_matrix, warp
from diffdeid.models.face_analyser import FaceAnalyserModel
from diffdeid.training.attention_mesh import AttentionMesh

ROOT = Path(__file__).parents[2]
WEIGHTS = ROOT / "weights/diffdeid/face_analyser"
pytestmark = pytest.mark.skipif(not WEIGHTS.exists(), reason="weights/diffdeid is not here")


@pytest.fixture(scope="module")
def mesh() -> AttentionMesh:
    return AttentionMesh(WEIGHTS / "attention_mesh.onnx")


@pytest.fixture(scope="module")
def crop() -> np.ndarray:
    image = cv2.cvtColor(cv2.imread(str(ROOT / "tests/assets/astronaut.png")), cv2.COLOR_BGR2RGB)
    face = FaceAnalyserModel.from_pretrained(WEIGHTS)(image)[0]
    return warp(image, ffhq_matrix(face.landmarks), 256)


def as_batch(*crops: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float() / 127.5 - 1


def test_the_marks_are_those_of_the_face_analyser(mesh, crop):
    analyser = FaceAnalyserModel.from_pretrained(WEIGHTS)
    face = analyser(crop)[0]
    expected = np.concatenate([face.landmarks[:, :2], face.iris[:, 0]])
    marks = mesh(as_batch(crop))[0].numpy()
    assert marks.shape == (470, 2)
    size = np.ptp(expected, axis=0).max()
    distances = np.linalg.norm(marks - expected, axis=1) / size  # they look at other crops
    assert distances.mean() < 0.012 and distances[468:].max() < 0.01


def test_faces_of_a_batch_do_not_mix_and_gradients_reach_the_picture(mesh, crop):
    moved = np.roll(crop, 4, axis=1)
    both = as_batch(crop, moved).requires_grad_()
    marks = mesh(both)
    assert torch.allclose(marks[1], mesh(as_batch(moved))[0], atol=1e-3)
    assert (marks[1] - marks[0])[:, 0].mean().item() == pytest.approx(4, abs=0.5)
    (gradient,) = torch.autograd.grad(marks[0, 13, 1], both)
    assert gradient[0].abs().max() > 0 and not gradient[1].any()
