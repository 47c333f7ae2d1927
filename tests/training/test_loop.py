import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from safetensors.numpy import save_file
from safetensors.torch import load_file
from torch.utils.data import default_collate

from diffdeid.models.texture_encoder import TextureEncoderModel
from diffdeid.models.unet import DiffDeIDUNet2DModel
from diffdeid.training import loop
from diffdeid.training.averaging import AveragedModel
from diffdeid.training.config import TrainConfig
from diffdeid.training.data import EXCHANGED, FaceStore, ValidationFaces, network_inputs
from diffdeid.training.loop import (
    SCHEDULER,
    Denoiser,
    Judges,
    draw_part,
    hiding_timesteps,
    spread_timesteps,
    train,
    training_losses,
)
from diffdeid.training.losses import signal_to_noise
from diffdeid.training.perceptual import mobilenet_v2
from tests.tiny import tiny_texture_encoder, tiny_unet
from tests.training.conftest import invented_face

WEIGHTS = Path(__file__).parents[2] / "weights/diffdeid"

NETWORK_FILE = "diffusion_pytorch_model.safetensors"


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    trained = load_file(checkpoint / "state" / "model.safetensors")
    return trained | {f"averaged.{name}": value for name, value in load_file(checkpoint / "unet" / NETWORK_FILE).items()}


def log(config: TrainConfig) -> list[dict]:
    return [json.loads(line) for line in (Path(config.output) / "log.jsonl").read_text().splitlines()]


def test_two_steps_on_four_faces_lower_the_loss(settings):
    config, scheduler = TrainConfig(**settings), DDIMScheduler(**SCHEDULER)
    store = FaceStore(config.data)
    faces = [ValidationFaces(store, store.names)[index] for index in range(4)]
    batch = network_inputs(default_collate(faces), config.resolution)
    noise = torch.randn(batch["image"].shape, generator=torch.Generator().manual_seed(0))
    model = Denoiser(tiny_unet(), tiny_texture_encoder())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(3):
        timesteps = torch.tensor([100, 300, 500, 700])
        noisy, snr = scheduler.add_noise(batch["image"], noise, timesteps), signal_to_noise(scheduler, timesteps)
        loss = training_losses(model, scheduler, batch, noisy, timesteps, snr, config)[0]["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > losses[1] > losses[2]


def test_stills_and_frames_train_together_with_every_loss(settings, store):
    for index in range(4):
        texture = {"texture": invented_face(index + 10)["image"]}
        save_file(invented_face(index) | texture, store / f"frame {index}.safetensors", metadata={"set": "clips"})
        save_file(invented_face(index), store / f"face {index}{EXCHANGED}.safetensors", metadata={"set": "exchanged"})
    weights_of_losses = {"identity_weight": 0.2, "geometry_weight": 0.1}
    few_samples = {"set_weights": {"clips": 4.0}}  # … of which some must be frames
    config = TrainConfig(**settings | weights_of_losses | few_samples | {"model": str(WEIGHTS), "keep_mouth": 0.5})
    train(config)
    last = log(config)[-1]
    parts = {"denoising": 1, "reconstruction": 0.1, "identity": 0.2, "geometry": 0.1}
    assert last["loss"] == pytest.approx(sum(weight * last[name] for name, weight in parts.items()), rel=0.01)
    assert all(last[name] > 0 for name in parts)
    trained = weights(max(Path(config.output).glob("checkpoint-*")))
    assert trained["unet.video_embedding"].any()


def test_no_loss_says_how_an_exchanged_face_should_look(settings):
    config, scheduler = TrainConfig(**settings), DDIMScheduler(**SCHEDULER)
    faces = ValidationFaces(FaceStore(config.data), ["face 0"])
    batch = network_inputs(default_collate([faces[0]]), config.resolution)
    perceptual, model = mobilenet_v2().eval(), Denoiser(tiny_unet(), tiny_texture_encoder())
    seen = {}
    for exchanged in (False, True):
        batch["exchanged"] = torch.tensor([exchanged])
        noisy, timesteps, snr = torch.zeros_like(batch["image"]), torch.tensor([300]), torch.tensor([1.0])
        losses, _ = training_losses(model, scheduler, batch, noisy, timesteps, snr, config, Judges(perceptual))
        seen[exchanged] = {name: losses[name].item() for name in ("denoising", "reconstruction", "perceptual")}
    assert seen[True]["reconstruction"] == seen[True]["perceptual"] == 0 < min(seen[False].values())
    assert 0 < seen[True]["denoising"] < seen[False]["denoising"] / 4  # outside the face


def test_exchanged_faces_are_hidden_by_noise():
    scheduler = DDIMScheduler(**SCHEDULER)
    hiding = hiding_timesteps(scheduler, torch.arange(1000))
    assert hiding.min() == 875 and hiding.max() == 999
    assert (scheduler.alphas_cumprod[hiding] < 1e-3).all()


@pytest.fixture
def adversarial(settings, monkeypatch) -> TrainConfig:
    """A run on the sampler's own pictures, with all losses of the perceptual network (random weights)."""
    torch.manual_seed(0)
    network = mobilenet_v2().eval().requires_grad_(False)
    monkeypatch.setattr(loop, "load_perceptual_network", lambda name, weights: network)
    weights_of_losses = {"perceptual_weight": 0.3, "style_weight": 0.1, "adversarial_weight": 0.2}
    sampled = {"rollout": 1.0, "rollout_steps": [3], "model": str(WEIGHTS), "perceptual_part": 16}
    return TrainConfig(**settings | weights_of_losses | sampled | {"max_samples": 16})


def test_the_sampler_s_own_pictures_train_the_denoiser_against_a_discriminator(adversarial):
    """The discriminator learns in small steps here: with large ones its loss jumps by more than it falls."""
    config = replace(adversarial, max_samples=48, discriminator_rate=0.2)
    train(config)
    parts = {"denoising": 1, "reconstruction": 0.1, "perceptual": 0.3, "style": 0.1, "adversarial": 0.2}
    entries = log(config)
    for entry in entries:
        assert entry["loss"] == pytest.approx(sum(weight * entry[name] for name, weight in parts.items()), rel=0.01, abs=1e-3)
    first, last = (np.mean([entry["discriminator"] for entry in part]) for part in (entries[:4], entries[-4:]))
    assert last < first
    assert entries[-1]["discriminator"] < entries[0]["discriminator"]


def test_an_interrupted_adversarial_run_ends_as_an_uninterrupted_one(adversarial, tmp_path, interrupt_after_checkpoint):
    whole = weights(train(replace(adversarial, output=str(tmp_path / "whole"))))
    interrupt_after_checkpoint(loop, train, adversarial)
    resumed = weights(train(adversarial))
    for name, value in whole.items():
        torch.testing.assert_close(resumed[name], value, atol=0, rtol=0, msg=name)


def test_the_perceptual_network_looks_at_parts_inside_the_crop(settings):
    config, generator = TrainConfig(**settings | {"resolution": 64, "perceptual_part": 16}), torch.Generator().manual_seed(0)
    parts = [draw_part(config, generator) for _ in range(100)]
    assert all(part.stop - part.start == 16 for pair in parts for part in pair)
    starts = {part.start for pair in parts for part in pair}
    assert min(starts) == 8 and max(starts) == 64 - 16 - 8


def test_every_checkpoint_is_shown_at_once(settings):
    shown = []
    last = train(TrainConfig(**settings), lambda checkpoint: shown.append((checkpoint.name, (checkpoint / "unet").is_dir())))
    assert shown == [("checkpoint-000000004", True), (last.name, True)]


def test_timesteps_of_all_processes_together_are_spread_evenly():
    drawn = [spread_timesteps(DDIMScheduler(), 5, torch.Generator().manual_seed(rank), rank, world=2) for rank in (0, 1)]
    assert (torch.cat(drawn) // 100).sort().values.tolist() == list(range(10))


def test_an_interrupted_run_ends_with_the_weights_of_an_uninterrupted_one(settings, tmp_path, interrupt_after_checkpoint):
    config = TrainConfig(**settings)
    whole = weights(train(replace(config, output=str(tmp_path / "whole"))))

    interrupt_after_checkpoint(loop, train, config)
    assert [path.name for path in Path(config.output).glob("checkpoint-*")] == ["checkpoint-000000004"]

    resumed = weights(train(config))
    assert resumed.keys() == whole.keys()
    for name, value in whole.items():
        torch.testing.assert_close(resumed[name], value, atol=0, rtol=0, msg=name)
    assert [entry["samples"] for entry in log(config)] == [4, 8]


def test_a_checkpoint_is_a_folder_of_loadable_networks(settings):
    checkpoint = train(TrainConfig(**settings))
    assert checkpoint.name == "checkpoint-000000008"
    DiffDeIDUNet2DModel.from_pretrained(checkpoint, subfolder="unet")
    TextureEncoderModel.from_pretrained(checkpoint, subfolder="texture_encoder")
    assert json.loads((checkpoint / "scheduler" / "scheduler_config.json").read_text())["prediction_type"] == "sample"


def test_a_run_starts_from_the_averaged_weights_of_another(settings, tmp_path):
    first = TrainConfig(**settings)
    checkpoint = train(first)
    second = replace(first, init_from=first.output, output=str(tmp_path / "second"), learning_rate=1e-12, resolution=64)
    continued = train(second)
    for name, value in load_file(checkpoint / "unet" / NETWORK_FILE).items():
        torch.testing.assert_close(load_file(continued / "unet" / NETWORK_FILE)[name], value, atol=1e-6, rtol=0)


def test_old_checkpoints_are_removed(settings):
    config = TrainConfig(**settings | dict(max_samples=16, keep_checkpoints=2))
    train(config)
    names = sorted(path.name for path in Path(config.output).glob("*checkpoint*"))
    assert names == ["checkpoint-000000012", "checkpoint-000000016"]


def test_the_log_has_errors_at_fixed_noise_levels_and_a_grid(settings):
    config = TrainConfig(**settings)
    train(config)
    last = log(config)[-1]
    assert last["samples"] == 8
    assert set(last["validation"]) == set(last["seen"]) == {"-6", "-3", "-1", "1"}
    assert (Path(config.output) / "samples-000000008.png").is_file()


def test_averaging_starts_near_the_latest_weights_and_slows_down():
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    averaged = AveragedModel(model, decay=0.5)
    torch.nn.init.ones_(model.weight)
    values = []
    for _ in range(20):
        averaged.update(model)
        values.append(averaged.model.weight.item())
    assert values[0] == pytest.approx(1 - 2 / 11)
    assert (1 - values[-1]) / (1 - values[-2]) == pytest.approx(0.5, abs=1e-2)
