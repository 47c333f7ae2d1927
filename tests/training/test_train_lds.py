import json
from dataclasses import replace

import pytest
import torch

from diffdeid.models.lds import LDSModel
from diffdeid.pipelines.pipeline_lds import LDSPipeline
from diffdeid.training.config import LDSTrainConfig
from diffdeid.training.data import FaceStore
from diffdeid.training.train_lds import learn_direction, learn_glasses, read_labels, read_vectors, train


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


def test_labels_of_some_faces_give_attributes_of_all(store, tmp_path):
    rows = [{"name": "face 0", "age": 30}, {"name": "face 1", "age": 60, "female": 1}, {"name": "face 2", "female": 0}]
    rows += [{"name": "face 3", "beard": 1}, {"name": "stranger", "age": 3}]  # held out, and not there
    (tmp_path / "labels.jsonl").write_text("\n".join(map(json.dumps, rows)))
    lds = LDSPipeline.from_pretrained(
        train(replace(settings(store, tmp_path), attributes=str(tmp_path / "labels.jsonl"), attribute_dropout=0.5))
    ).lds
    assert list(lds.config.attribute_names) == ["age", "female"]
    names, _ = FaceStore(store).split(tmp_path / "held_out.txt")
    attributes = lds.attributes(read_vectors(FaceStore(store), names)[:, :128])
    torch.testing.assert_close(attributes.mean(0), torch.zeros(2), atol=1e-4, rtol=0)
    torch.testing.assert_close(attributes.std(0), torch.ones(2), atol=1e-4, rtol=0)
    assert attributes[1, 0] > attributes[0, 0] and attributes[1, 1] > attributes[2, 1]


def test_a_direction_is_found_from_few_labels():
    generator = torch.Generator().manual_seed(0)
    identity = torch.randn(2000, 128, generator=generator)
    truth = identity @ torch.randn(128, generator=generator)
    model, chosen = LDSModel(hidden_dim=16, num_layers=1, attribute_names=("other", "one")), list(range(0, 2000, 4))
    learn_direction(model, 1, identity, chosen, 40 + 10 * truth[chosen])
    assert torch.corrcoef(torch.stack([model.attributes(identity)[:, 1], truth]))[0, 1] > 0.999
    assert not model.attribute_directions[0].any()


def test_who_wears_glasses_is_learned_and_is_no_attribute(store, tmp_path):
    rows = [{"name": f"face {number}", "glasses": number % 2, "age": number} for number in range(4)]
    (tmp_path / "labels.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = replace(settings(store, tmp_path), attributes=str(tmp_path / "labels.jsonl"))
    lds = LDSPipeline.from_pretrained(train(config)).lds
    assert list(lds.config.attribute_names) == ["age"]
    names, _ = FaceStore(store).split(config.validation_names)
    vectors = dict(zip(names, read_vectors(FaceStore(store), names)[:, :128], strict=True))
    worn = {row["name"]: lds.wears_glasses(vectors[row["name"]][None]).item() for row in rows if row["name"] in vectors}
    assert worn["face 1"]


def test_most_wearers_and_few_others_seem_to_wear_glasses():
    generator = torch.Generator().manual_seed(0)
    identity = torch.randn(2000, 128, generator=generator)
    worn = ((identity @ torch.randn(128, generator=generator)) / 128**0.5 > 1.2).float()
    model = LDSModel(hidden_dim=16, num_layers=1)
    assert not model.wears_glasses(identity).any()  # before anything is known
    learn_glasses(model, identity, list(range(1000)), worn[:1000])
    refused = model.wears_glasses(identity[1000:])
    assert refused[worn[1000:] == 1].float().mean() > 0.7
    assert refused[worn[1000:] == 0].float().mean() < 0.1


def test_glasses_that_nobody_or_everybody_wears_are_an_error():
    with pytest.raises(ValueError, match="glasses"):
        learn_glasses(LDSModel(hidden_dim=16, num_layers=1), torch.randn(8, 128), [0, 1, 2], torch.ones(3))


def test_labels_of_nobody_are_an_error(tmp_path):
    (tmp_path / "labels.jsonl").write_text('{"name": "stranger", "age": 3}\n')
    with pytest.raises(ValueError, match="no labels"):
        read_labels(tmp_path / "labels.jsonl", {"face 0"})
