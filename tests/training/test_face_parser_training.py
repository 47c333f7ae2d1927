"""The loss, the measurements, and resuming."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from diffdeid.models.context_encoder import ContextEncoderModel
from diffdeid.models.face_parser import FACE, FRONT, FaceParserModel
from diffdeid.training.config import FaceParserTrainConfig
from diffdeid.training.face_parser_data import UNKNOWN
from diffdeid.training.train_face_parser import (
    HeldOut,
    build_network,
    inner_skin,
    measure,
    parsing_loss,
    train,
)
from tests.models.test_face_parser import tiny_face_parser
from tests.training.test_face_parser_data import hands, landmarks  # noqa: F401  fixtures

CONFIG = FaceParserTrainConfig(data="", hands="", output="")


def certain(classes: torch.Tensor, confidence: float = 8.0) -> torch.Tensor:
    return confidence * torch.nn.functional.one_hot(classes.clamp(max=FRONT).long(), 4).permute(0, 3, 1, 2).float()


def test_only_skin_away_from_borders_is_inner():
    classes = torch.full((1, 9, 9), FACE)
    classes[0, 4, 0], classes[0, 0, 8] = FRONT, UNKNOWN
    inner = inner_skin(classes, border=2)[0]
    assert not inner[2:7, :3].any() and inner[:2, :8].all() and not inner[0, 8] and inner[1, 8]


def test_the_loss_is_least_for_what_is_true_and_kept_skin_costs_more_than_lost_hair():
    classes = torch.full((1, 16, 16), FACE)
    classes[..., 8:] = FRONT
    erased = torch.ones(1, 16, 16)
    right = parsing_loss(certain(classes), classes, erased, CONFIG)["loss"]
    kept, lost = classes.clone(), classes.clone()
    kept[:, :4, :4], lost[:, :4, 12:] = FRONT, FACE
    kept, lost = (parsing_loss(certain(guess), classes, erased, CONFIG)["loss"] for guess in (kept, lost))
    assert right < 0.01 < lost < kept


def test_unknown_pixels_do_not_count():
    classes = torch.full((1, 16, 16), FACE)
    classes[:, :8] = UNKNOWN
    one, other = certain(classes), certain(classes)
    other[:, :, :8] = torch.randn(1, 4, 8, 16)
    losses = [parsing_loss(logits, classes, torch.ones(1, 16, 16), CONFIG)["loss"] for logits in (one, other)]
    torch.testing.assert_close(*losses)


def test_the_threshold_keeps_a_thousandth_of_the_skin():
    class Guess(torch.nn.Module):
        def front(self, images):
            return images[:, :1] / 2 + 0.5

    torch.manual_seed(0)
    images = torch.randint(0, 200, (4, 64, 64, 3), dtype=torch.uint8)
    classes = torch.full((4, 64, 64), FACE, dtype=torch.uint8)
    classes[:, :8], images[:, :8] = FRONT, 240
    everywhere = torch.ones(4, 64, 64, dtype=torch.bool)
    images[0, 32, 32:44] = 220  # 12 of 4 · 54 · 64 pixels of skin, less than a thousandth
    results = measure(Guess(), {"hair": HeldOut(images, classes, everywhere, classes == FRONT)})
    assert 199 / 255 - 0.01 <= results["threshold"] < 219 / 255 and results["hair"] == 1 and results["kept_at_borders"] < 0.001


@pytest.fixture
def config(tmp_path, landmarks, hands) -> dict:  # noqa: F811
    """Twelve crops, of which one is held out, and a toy network to start from."""
    folder = tmp_path / "crops"
    (folder / "labels").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(12):
        labels = np.full((144, 144), 1, np.uint8)
        labels[:30] = 13
        cv2.imwrite(str(folder / f"face_{number:02d}.png"), rng.integers(0, 256, (144, 144, 3), dtype=np.uint8))
        cv2.imwrite(str(folder / "labels" / f"face_{number:02d}.png"), labels)
    np.save(tmp_path / "hands.npy", hands.repeat(2, axis=0))
    tiny_face_parser().save_pretrained(tmp_path / "network")
    values = dict(data=str(folder), hands=str(tmp_path / "hands.npy"), init_from=str(tmp_path / "network"), batch_size=2)
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
        np.savez(tmp_path / name / "landmarks.npz", **{f"face_{number:02d}": landmarks for number in range(12)})
    return values | dict(warmup_samples=2, log_minutes=0, checkpoint_minutes=0)


def test_a_run_goes_on_where_it_stopped(tmp_path, config):
    whole = train(FaceParserTrainConfig(output=str(tmp_path / "whole"), max_samples=8, **config))
    settings = dict(output=str(tmp_path / "parts"), max_samples=8, **config)
    train(FaceParserTrainConfig(**settings | {"max_samples": 4}))
    for checkpoint in Path(settings["output"]).glob("checkpoint-*"):  # as if it had been meant to be longer
        assert checkpoint.name in ("checkpoint-000000002", "checkpoint-000000004")
    resumed = train(FaceParserTrainConfig(**settings))
    assert whole.name == resumed.name == "checkpoint-000000008"
    first, second = (load_file(folder / "diffusion_pytorch_model.safetensors") for folder in (whole, resumed))
    assert first.keys() == second.keys() and all(torch.isfinite(weight).all() for weight in first.values())
    assert FaceParserModel.from_pretrained(resumed).config.front_threshold > 0
    lines = [json.loads(line) for line in (tmp_path / "parts" / "log.jsonl").read_text().splitlines()]
    assert [line["samples"] for line in lines] == [2, 4, 6, 8] and "hand" in lines[-1]["held_out"]


def test_a_new_network_starts_from_the_trunk_of_the_context_encoder():
    network = build_network(CONFIG)
    trunk = ContextEncoderModel.from_pretrained(CONFIG.model, subfolder="context_encoder").float()
    assert torch.equal(network.stem.conv.weight, trunk.stem.conv.weight)
    assert torch.equal(network.blocks[-1].project.conv.weight, trunk.blocks[len(network.blocks) - 1].project.conv.weight)
