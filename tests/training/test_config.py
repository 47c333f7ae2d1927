import json

import pytest

from diffdeid.training.config import (
    FaceParserTrainConfig,
    LDSTrainConfig,
    ReconstructorTrainConfig,
    RefinerTrainConfig,
    TrainConfig,
)
from tests.conftest import ROOT


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("resolution", 100),
        ("max_samples", 0),
        ("max_minutes", -1),
        ("batch_size", 0),
        ("learning_rate", 0.0),
        ("identity_dropout", 1.5),
        ("denoising_weight", -1.0),
        ("set_weights", {"a": -1.0}),
        ("perceptual_network", "resnet"),
        ("mixed_precision", "fp8"),
        ("rollout", 1.5),
        ("rollout_steps", []),
        ("rollout_steps", [1]),
        ("perceptual_part", 100),
        ("perceptual_part", 112),
        ("perceptual_weight", 0.0),
    ],
)
def test_a_wrong_value_is_refused_by_its_name(name, value):
    with pytest.raises(ValueError, match=f"`{name}`"):
        TrainConfig(data="store", output="run", **{"style_weight": 0.1} | {name: value})


def test_an_unknown_field_is_refused_by_its_name(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"data": "store", "output": "run", "lerning_rate": 1}))
    with pytest.raises(ValueError, match="lerning_rate"):
        TrainConfig.from_file(path)


@pytest.mark.parametrize("config", [TrainConfig(data="s", output="r", max_minutes=3), LDSTrainConfig(data="s", output="r")])
def test_a_saved_config_reads_back(config, tmp_path):
    config.save(tmp_path / "config.json")
    assert type(config).from_file(tmp_path / "config.json") == config


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.json")), ids=lambda path: path.stem)
def test_the_configs_of_the_repository_are_valid(path):
    kinds = {"lds": LDSTrainConfig, "face_parser": FaceParserTrainConfig, "reconstructor": ReconstructorTrainConfig}
    kinds |= {"refiner": RefinerTrainConfig}
    kinds.get(path.stem, TrainConfig).from_file(path)
