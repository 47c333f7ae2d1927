import numpy as np
import pytest
import torch
from torch import Tensor, nn

from diffdeid.errors import AssetNotFoundError
from diffdeid.evaluation.features import Inception, features
from diffdeid.evaluation.run import Judges, evaluate_pair


class MeanColour(nn.Module):
    """Has the interface of the published file, but is not a network."""

    def forward(self, pictures: Tensor, return_features: bool = False) -> Tensor:
        assert return_features and pictures.dtype == torch.uint8
        return pictures.float().mean((2, 3))


@pytest.fixture
def file(tmp_path):
    torch.jit.script(MeanColour()).save(tmp_path / "inception.pt")
    return tmp_path / "inception.pt"


def test_features_are_those_of_each_picture_whatever_the_batch(panel):
    crops = list(np.random.default_rng(0).integers(0, 256, (18, 224, 224, 3), np.uint8))
    found = features(panel.features, crops)
    assert found.shape[0] == 18 and found.dtype == np.float64
    np.testing.assert_allclose(features(panel.features, crops[16:]), found[16:], atol=1e-4)


def test_an_inception_file_gives_the_features_and_its_name_to_the_distances(file, few, panel):
    crops = [np.full((224, 224, 3), shade, np.uint8) for shade in (10, 200)]
    np.testing.assert_allclose(features(Inception(file), crops), [[10] * 3, [200] * 3])
    evaluation = evaluate_pair(few, few, Judges(panel.examiner, Inception(file)))
    names = {metric.name for metric in evaluation.metrics}
    assert {"Fréchet distance [Inception]", "kernel distance of originals [Inception]"} <= names


def test_a_missing_inception_file_is_named(tmp_path):
    with pytest.raises(AssetNotFoundError, match="absent.pt"):
        Inception(tmp_path / "absent.pt")
