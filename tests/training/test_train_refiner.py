"""Pairs of faces for the refiner, its first weights, and a run that is resumed."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.numpy import save_file
from safetensors.torch import load_file

from diffdeid.models.refiner import SCALE, RefinerModel
from diffdeid.training import train_refiner
from diffdeid.training.config import RefinerTrainConfig
from diffdeid.training.perceptual import FeatureNetwork
from diffdeid.training.refiner_data import RefinerPairs, read_pair, soften_photos, split_pairs
from diffdeid.training.train_refiner import from_srvgg, train
from tests.conftest import ROOT

SIZE = 32


@pytest.fixture
def pairs(tmp_path) -> Path:
    """A folder of eight pairs, two of which are held out. Targets are the softened faces with each pixel twice."""
    folder = tmp_path / "pairs"
    folder.mkdir()
    for number in range(8):
        rng = np.random.default_rng(number)
        face, render = rng.integers(0, 256, (2, SIZE, SIZE, 1), dtype=np.uint8).repeat(3, axis=3)
        mask = np.zeros((SIZE, SIZE), np.uint8)
        mask[8:28, 6:26] = 255
        target = face.repeat(SCALE, 0).repeat(SCALE, 1)
        tensors = {"target": target, "softened": np.stack([face, face]), "render": render, "mask": mask}
        save_file(tensors, folder / f"face {number}.safetensors")
    (tmp_path / "held_out.txt").write_text("face 3\nface 6\n")
    return folder


def test_parts_of_a_pair_show_the_same_place_and_some_of_the_face(pairs):
    names, _ = split_pairs(pairs, pairs.with_name("held_out.txt"))
    data = RefinerPairs(pairs, names, 16, seed=0)
    for number in range(20):
        part = data[number]
        assert part["face"].shape == part["render"].shape == (3, 16, 16) and part["mask"].any()
        torch.testing.assert_close(F.avg_pool2d(part["target"], SCALE), part["face"])
        assert all(torch.equal(value, data[number][name]) for name, value in part.items())
    assert any(not torch.equal(data[0]["face"], data[number]["face"]) for number in range(1, 5))


def test_held_out_pairs_are_not_trained_on(pairs):
    names, held_out = split_pairs(pairs, pairs.with_name("held_out.txt"))
    assert held_out == ["face 3", "face 6"] and len(names) == 6 and not set(names) & set(held_out)
    pairs.with_name("held_out.txt").write_text("nobody\n")
    with pytest.raises(ValueError, match="8 pairs to train on and 0"):
        split_pairs(pairs, pairs.with_name("held_out.txt"))


def test_a_photo_becomes_a_pair_and_a_small_face_does_not(tmp_path, astronaut):
    photos = tmp_path / "photos"
    photos.mkdir()
    photo = Image.open(astronaut).convert("RGB").crop((100, 0, 356, 256))
    photo.resize((1024, 1024), Image.Resampling.LANCZOS).save(photos / "large.png")
    photo.save(photos / "small.png")
    (photos / "broken.jpg").write_bytes(b"no photo")
    soften_photos(photos, tmp_path / "out", ROOT / "weights/diffdeid")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["large.png.safetensors"]
    pair = read_pair(tmp_path / "out/large.png.safetensors")
    face, target, mask = pair["face"], F.avg_pool2d(pair["target"], SCALE), pair["mask"]
    assert pair["target"].shape == (3, 512, 512) and 0.2 < mask.mean() < 0.7
    difference = ((face - target).abs() * mask).sum() / (3 * mask.sum())
    assert 0.005 < difference < 0.1  # the same face, painted anew
    smooth = F.avg_pool2d(face[None], 8) - F.avg_pool2d(target[None], 8)
    assert (smooth.abs() * F.avg_pool2d(mask[None], 8)).mean() < 0.05
    (tmp_path / "out/large.png.safetensors").write_bytes(b"kept")
    (photos / "a new one.png").symlink_to(photos / "large.png")  # before the others by name
    soften_photos(photos, tmp_path / "out", ROOT / "weights/diffdeid")
    assert (tmp_path / "out/large.png.safetensors").read_bytes() == b"kept"
    assert (tmp_path / "out/a new one.png.safetensors").exists()


def srvgg(layers: int, channels: int) -> dict[str, torch.Tensor]:
    generator, state = torch.Generator().manual_seed(0), {}
    for layer in range(0, 2 * layers + 1, 2):
        inputs, outputs = 3 if layer == 0 else channels, 48 if layer == 2 * layers else channels
        state[f"body.{layer}.weight"] = torch.randn(outputs, inputs, 3, 3, generator=generator) / (9 * inputs) ** 0.5
        state[f"body.{layer}.bias"] = torch.randn(outputs, generator=generator)
        if layer < 2 * layers:
            state[f"body.{layer + 1}.weight"] = torch.rand(channels, generator=generator)
    return state


@torch.no_grad()
def test_the_first_weights_come_from_srvgg_and_see_cells_by_their_mean():
    state = srvgg(4, 8)
    network = from_srvgg(state, RefinerModel(channels=8, num_layers=2))
    picture = torch.rand(1, 3, 12, 12, generator=torch.Generator().manual_seed(1)) * 2 - 1
    cells = F.pixel_unshuffle(torch.cat([picture, picture, picture[:, :1]], dim=1), 2)
    found = network.body[0](cells)[..., 1:-1, 1:-1]
    small = (F.avg_pool2d(picture, 2) + 1) / 2  # SRVGG takes 0…1
    expected = F.conv2d(small, state["body.0.weight"], state["body.0.bias"])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert torch.equal(network.body[2].weight, state["body.2.weight"])
    assert torch.equal(network.body[4].weight, state["body.6.weight"])
    last = state["body.8.weight"].unflatten(0, (3, 16)).mean(0)
    torch.testing.assert_close(network.body[6].weight, train_refiner.FAINT * last)


@pytest.fixture
def settings(pairs, monkeypatch) -> dict:
    """Arguments of a `RefinerTrainConfig` for a toy network and random features."""
    torch.manual_seed(0)
    layers = [layer for width, inputs in ((4, 3), (6, 4), (8, 6), (8, 8)) for layer in (torch.nn.Conv2d(inputs, width, 3, 2, 1),)]
    network = FeatureNetwork(layers, taps=(0, 1, 2, 3), channels=(4, 6, 8, 8)).eval()
    monkeypatch.setattr(train_refiner, "load_perceptual_network", lambda name, weights: network)
    monkeypatch.setattr(train_refiner, "MIDDLE", slice(8, 24))
    values = dict(data=str(pairs), validation_names=str(pairs.with_name("held_out.txt")), patch=16, batch_size=2)
    return values | dict(network={"channels": 8, "num_layers": 1}, warmup_samples=2, log_minutes=0, checkpoint_minutes=0)


def test_a_run_goes_on_where_it_stopped(tmp_path, settings):
    settings |= dict(adversarial_from_samples=4, max_samples=8)
    whole = train(RefinerTrainConfig(output=str(tmp_path / "whole"), **settings))
    parts = RefinerTrainConfig(output=str(tmp_path / "parts"), **settings)

    save = train_refiner.save_checkpoint

    def save_and_stop(*arguments):
        save(*arguments)
        if arguments[3] == 4:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train_refiner, "save_checkpoint", save_and_stop)
        train(parts)
    resumed = train(parts)
    assert whole.name == resumed.name == "checkpoint-000000008"
    first, second = (load_file(folder / "diffusion_pytorch_model.safetensors") for folder in (whole, resumed))
    assert all(torch.isfinite(weight).all() for weight in first.values())
    for name, weight in first.items():
        torch.testing.assert_close(second[name], weight)
    lines = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    assert [line["samples"] for line in lines] == [2, 4, 6, 8] and len(lines[-1]["held_out"]["sharpness"]) == 3
    assert (tmp_path / "whole" / "samples-000000008.png").exists()


def test_training_brings_faces_nearer_to_their_targets(tmp_path, settings):
    settings |= dict(adversarial_weight=0.0, style_weight=0.0, perceptual_weight=0.0, learning_rate=1e-2, batch_size=4)
    settings |= dict(lattice_weight=0.0, checkpoint_minutes=1000)  # each pixel twice is a lattice
    config = RefinerTrainConfig(output=str(tmp_path / "run"), max_samples=240, **settings)
    train(config)
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    losses = [line["reconstruction"] for line in lines]
    assert np.mean(losses[-8:]) < 0.8 * np.mean(losses[:8])
