import torch

from diffdeid.pipelines.pipeline_lds import LDSPipeline
from diffdeid.training.config import LDSTrainConfig
from diffdeid.training.data import FaceStore
from diffdeid.training.train_lds import read_vectors, train


def settings(store, tmp_path) -> LDSTrainConfig:
    return LDSTrainConfig(
        data=str(store),
        output=str(tmp_path / "lds"),
        model=dict(hidden_dim=16, num_layers=1),
        validation_names=str(tmp_path / "held_out.txt"),
        batch_size=8,
        max_steps=6,
        eval_steps=2,
    )


def test_the_trained_folder_loads_and_samples_identities(store, tmp_path):
    pipeline = LDSPipeline.from_pretrained(train(settings(store, tmp_path)))
    pipeline.set_progress_bar_config(disable=True)
    output = pipeline(num_identities=3, num_inference_steps=2)
    assert output.identity.shape == (3, 128) and output.shape.shape == (3, 80)


def test_the_statistics_are_those_of_the_training_faces(store, tmp_path):
    config = settings(store, tmp_path)
    names, _ = FaceStore(store).split(config.validation_names)
    lds = LDSPipeline.from_pretrained(train(config)).lds
    vectors = read_vectors(FaceStore(store), names)
    torch.testing.assert_close(lds.mean, vectors.mean(0))
    torch.testing.assert_close(lds.std, vectors.std(0))
