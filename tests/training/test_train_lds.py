import json
from dataclasses import replace

import pytest
import torch

from diffdeid.models.context_encoder import ContextEncoderModel
from diffdeid.models.lds import LDSModel
from diffdeid.pipelines.pipeline_lds import LDSPipeline
from diffdeid.training.config import LDSTrainConfig
from diffdeid.training.data import FaceStore
from diffdeid.training.fit_context import read_features
from diffdeid.training.train_lds import (
    forget,
    learn_direction,
    learn_ghost,
    learn_spread,
    read_labels,
    read_vectors,
    train,
)
from tests.tiny import tiny_context_encoder, tiny_morphable_model


def settings(store, tmp_path) -> LDSTrainConfig:
    tiny_context_encoder().save_pretrained(tmp_path / "released" / "context_encoder")
    tiny_morphable_model().save_config(tmp_path / "released" / "morphable_model")
    return LDSTrainConfig(
        data=str(store),
        output=str(tmp_path / "lds"),
        trunk=str(tmp_path / "released"),
        model=dict(hidden_dim=16, num_layers=1),
        validation_names=str(tmp_path / "held_out.txt"),
        batch_size=8,
        max_steps=6,
        eval_steps=2,
    )


def test_the_trained_folder_loads_and_samples_identities(store, tmp_path):
    pipeline = LDSPipeline.from_pretrained(train(settings(store, tmp_path)))
    pipeline.set_progress_bar_config(disable=True)
    pipeline.lds.shape_limit.fill_(torch.inf)  # six steps teach no heads
    output = pipeline(num_identities=3, num_inference_steps=2)
    assert output.identity.shape == (3, 128) and output.shape.shape == (3, 80)
    assert ContextEncoderModel.from_pretrained(tmp_path / "lds" / "context_encoder").config.context_dim == 128


def test_sets_whose_pictures_show_too_little_have_no_context(store, tmp_path):
    encoder, faces = tiny_context_encoder(), FaceStore(store)
    features = read_features(faces, faces.names, encoder, ["b"])
    shown = [faces.open(name).metadata()["set"] == "a" for name in faces.names]
    assert (~features.isnan().any(dim=1)).tolist() == shown
    train(replace(settings(store, tmp_path), tight_sets=["b"]))


def test_people_are_told_by_k_or_by_attributes_or_not_at_all(store, tmp_path):
    model, conditions = LDSModel(hidden_dim=16, num_layers=1, attribute_names=("age",)), torch.zeros(400, 229)
    config = replace(settings(store, tmp_path), unconditional=0.2, by_attributes=0.3, condition_dropout=0.25)
    told = forget(model, conditions, config, torch.Generator().manual_seed(0))
    flags = torch.stack([group.isfinite().all(1) for group in told.split(model.condition_sizes, dim=1)], dim=1)
    gaps = torch.stack([group.isnan().any(1) for group in told.split(model.condition_sizes, dim=1)], dim=1)
    assert (flags != gaps).all()  # groups are known or not as a whole
    by_attributes, by_k = flags[:, -1], flags[:, :-1].any(1)
    assert not (by_attributes & by_k).any()
    assert by_attributes.float().mean() == pytest.approx(0.3, abs=0.07)
    assert (~by_attributes & ~by_k).float().mean() == pytest.approx(0.2, abs=0.07)
    assert flags[by_k, :-1].float().mean() == pytest.approx(0.75, abs=0.05)


def test_the_spread_of_conditions_is_that_of_the_known_ones():
    model, conditions = LDSModel(hidden_dim=16, num_layers=1), 3 + 2 * torch.randn(500, 228)
    conditions[::2, :128], conditions[:, 130] = torch.nan, 0.0
    learn_spread(model, conditions)
    torch.testing.assert_close(model.condition_mean[:128], conditions[1::2, :128].mean(0))
    torch.testing.assert_close(model.condition_std[:128], conditions[1::2, :128].std(0, correction=0))
    assert model.condition_std[130] == 1 and model.condition_mean[130] == 0


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
    lds = LDSPipeline.from_pretrained(train(replace(settings(store, tmp_path), attributes=str(tmp_path / "labels.jsonl")))).lds
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


def test_what_leaves_ghosts_is_learned_and_is_no_attribute(store, tmp_path):
    rows = [
        {"name": f"face {number}", "glasses": number % 2, "covered_forehead": number // 2, "age": number} for number in range(4)
    ]
    (tmp_path / "labels.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = replace(settings(store, tmp_path), attributes=str(tmp_path / "labels.jsonl"))
    lds = LDSPipeline.from_pretrained(train(config)).lds
    assert list(lds.config.attribute_names) == ["age"] and list(lds.config.ghost_names) == ["glasses", "covered_forehead"]
    names, _ = FaceStore(store).split(config.validation_names)
    vectors = dict(zip(names, read_vectors(FaceStore(store), names)[:, :128], strict=True))
    assert all(lds.leaves_ghosts(vectors[name][None]).item() for name in ("face 1", "face 2"))


def test_most_wearers_and_few_others_leave_ghosts():
    generator = torch.Generator().manual_seed(0)
    identity = torch.randn(2000, 128, generator=generator)
    worn = ((identity @ torch.randn(128, generator=generator)) / 128**0.5 > 1.2).float()
    model = LDSModel(hidden_dim=16, num_layers=1, ghost_names=("glasses", "cap"))
    assert not model.leaves_ghosts(identity).any()  # before anything is known
    assert not LDSModel(hidden_dim=16, num_layers=1).leaves_ghosts(identity).any()
    learn_ghost(model, 1, "cap", identity, list(range(1000)), worn[:1000])
    refused = model.leaves_ghosts(identity[1000:])
    assert refused[worn[1000:] == 1].float().mean() > 0.7
    assert refused[worn[1000:] == 0].float().mean() < 0.2


def test_glasses_that_nobody_or_everybody_wears_are_an_error():
    model = LDSModel(hidden_dim=16, num_layers=1, ghost_names=("glasses",))
    with pytest.raises(ValueError, match="glasses"):
        learn_ghost(model, 0, "glasses", torch.randn(8, 128), [0, 1, 2], torch.ones(3))


def test_labels_of_nobody_are_an_error(tmp_path):
    (tmp_path / "labels.jsonl").write_text('{"name": "stranger", "age": 3}\n')
    with pytest.raises(ValueError, match="no labels"):
        read_labels(tmp_path / "labels.jsonl", {"face 0"})
