from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from diffdeid.errors import ConfigurationError
from diffdeid.geometry.align import CHIP_LANDMARKS, CHIP_PADDING, CHIP_SIZE, chip_matrix, warp
from diffdeid.models.face_analyser import FaceAnalyserModel
from diffdeid.models.face_recognition import FaceRecognitionModel

ROOT = Path(__file__).parents[2]
WEIGHTS = ROOT / "weights/diffdeid/face_recognition"
needs_weights = pytest.mark.skipif(not WEIGHTS.exists(), reason="weights/diffdeid is not here")


def tiny_model() -> FaceRecognitionModel:
    torch.manual_seed(0)
    return FaceRecognitionModel(block_out_channels=(4, 8, 8), layers_per_block=(1, 2, 1), embedding_dim=16)


def as_chips(*images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 127.5 - 1


@pytest.fixture(scope="module")
def astronaut() -> np.ndarray:
    return cv2.cvtColor(cv2.imread(str(ROOT / "tests/assets/astronaut.png")), cv2.COLOR_BGR2RGB)


@pytest.fixture(scope="module")
def model() -> FaceRecognitionModel:
    return FaceRecognitionModel.from_pretrained(WEIGHTS)


def test_embeddings_have_unit_length_around_the_mean():
    model = tiny_model()
    model.mean.copy_(torch.randn(16))
    output = model(torch.rand(3, 3, 150, 150) * 2 - 1)
    torch.testing.assert_close(output.embedding.norm(dim=1), torch.ones(3))
    cosine = torch.cosine_similarity(output.embedding, output.descriptor - model.mean)
    torch.testing.assert_close(cosine, torch.ones(3))


def test_batch_gives_what_singles_give():
    model, chips = tiny_model(), torch.rand(3, 3, 150, 150) * 2 - 1
    singles = torch.cat([model(chip[None]).embedding for chip in chips])
    torch.testing.assert_close(model(chips).embedding, singles)


def test_gradients_reach_the_pixels():
    chips = (torch.rand(1, 3, 150, 150) * 2 - 1).requires_grad_()
    tiny_model()(chips).embedding[:, 0].sum().backward()
    assert chips.grad.isfinite().all() and chips.grad.abs().sum() > 0


def test_weights_survive_saving(tmp_path):
    model, chips = tiny_model(), torch.rand(1, 3, 150, 150)
    model.mean.copy_(torch.randn(16))
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(FaceRecognitionModel.from_pretrained(tmp_path)(chips).embedding, model(chips).embedding)


@pytest.mark.parametrize("name", ["mean", "stem.bias"])
def test_missing_tensors_are_refused(tmp_path, name):
    change_weights(tmp_path, lambda tensors: tensors.pop(name))
    with pytest.raises(ConfigurationError, match=name):
        FaceRecognitionModel.from_pretrained(tmp_path)


def test_extra_tensors_are_refused(tmp_path):
    change_weights(tmp_path, lambda tensors: tensors.update(surplus=torch.zeros(1)))
    with pytest.raises(ConfigurationError, match="surplus"):
        FaceRecognitionModel.from_pretrained(tmp_path)


def test_misshapen_tensors_are_refused(tmp_path):
    change_weights(tmp_path, lambda tensors: tensors.update(mean=torch.zeros(17)))
    with pytest.raises(ValueError, match="mean"):
        FaceRecognitionModel.from_pretrained(tmp_path)


def change_weights(folder: Path, change) -> None:
    tiny_model().save_pretrained(folder)
    path = folder / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


@needs_weights
def test_released_mean_is_calibrated(model):
    assert 0.1 < model.mean.norm() < 2


@needs_weights
def test_network_equals_dlib(model, astronaut):
    dlib = pytest.importorskip("dlib")
    files = pytest.importorskip("face_recognition_models")
    original = dlib.face_recognition_model_v1(files.face_recognition_model_location())
    chips = [np.ascontiguousarray(astronaut[y : y + 150, x : x + 150]) for x, y in ((150, 40), (20, 300), (300, 0))]
    expected = np.array([original.compute_face_descriptor(chip) for chip in chips])
    with torch.no_grad():
        np.testing.assert_allclose(model(as_chips(*chips)).descriptor, expected, atol=1e-3)  # float16 on disk


def test_chip_equals_dlib(astronaut):
    dlib = pytest.importorskip("dlib")
    points = np.array([(262, 98), (238, 99), (192, 101), (214, 100), (229, 131)], float)
    parts = dlib.points([dlib.point(int(x), int(y)) for x, y in points])
    shape = dlib.full_object_detection(dlib.rectangle(178, 57, 270, 175), parts)
    expected = dlib.get_face_chip(astronaut, shape, size=CHIP_SIZE, padding=CHIP_PADDING)
    landmarks = np.zeros((468, 2))
    landmarks[list(CHIP_LANDMARKS)] = points + 0.5
    ours = warp(astronaut, chip_matrix(landmarks), CHIP_SIZE)
    assert np.abs(ours.astype(int) - expected).mean() < 3  # dlib interpolates linearly


@needs_weights
def test_one_person_stays_one_under_rotation_and_scale(model, astronaut):
    analyser = FaceAnalyserModel.from_pretrained(WEIGHTS.parent / "face_analyser")
    chips = []
    for picture in (astronaut, np.rot90(astronaut).copy(), cv2.resize(astronaut, None, fx=0.7, fy=0.7)):
        (face,) = analyser(picture)
        chips.append(warp(picture, chip_matrix(face.landmarks), CHIP_SIZE))
    with torch.no_grad():
        embeddings = model(as_chips(*chips)).embedding
    assert (embeddings @ embeddings.T).min() > 0.9
