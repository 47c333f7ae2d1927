"""A store of invented faces and settings for toy-sized networks."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from diffdeid.training.data import DISTANCE_LEVELS, FaceStore
from tests.tiny import TINY_WIDTHS


def invented_face(seed: int, size: int = 72) -> dict[str, np.ndarray]:
    """The tensors of one file of a store; a crop of 64 pixels with a margin of 4."""
    rng = np.random.default_rng(seed)
    maps = {"image": 3, "render": 3, "normals": 3, "guides": 2}
    face = {name: rng.integers(0, 256, (size, size, channels), dtype=np.uint8) for name, channels in maps.items()}
    face["mask"] = np.zeros((size, size, 2), np.uint8)
    rows, columns = np.mgrid[:size, :size] + 0.5
    inside = np.min([rows - 16, 60 - rows, columns - 16, 56 - columns], axis=0)  # pixels to the outline of a rectangle
    face["mask"][..., 0] = (127.5 + DISTANCE_LEVELS * inside).clip(0, 255)
    face["mask"][44:54, 24:48, 1] = 255
    identity = rng.normal(size=128).astype(np.float32)
    return face | {
        "identity": identity / np.linalg.norm(identity),
        "coefficients": rng.normal(size=261).astype(np.float32),
        "fit": rng.normal(size=261).astype(np.float32),
        "landmarks": rng.uniform(12, 52, (468, 3)).astype(np.float32),
        "iris": rng.uniform(20, 44, (2, 5, 2)).astype(np.float32),
    }


def loaded_face(folder, seed: int, size: int = 72, **more: np.ndarray) -> dict[str, np.ndarray]:
    """An invented face as `FaceStore` gives it, with `more` tensors in its file."""
    folder.mkdir(exist_ok=True)
    save_file(invented_face(seed, size) | more, folder / "face.safetensors", metadata={"set": "a"})
    return FaceStore(folder).load("face")


@pytest.fixture
def store(tmp_path):
    """A folder of eight faces, two of which are held out."""
    folder = tmp_path / "store"
    folder.mkdir()
    for index in range(8):
        save_file(invented_face(index), folder / f"face {index}.safetensors", metadata={"set": "ab"[index % 2]})
    (tmp_path / "held_out.txt").write_text("face 3\nface 6\n")
    return folder


@pytest.fixture
def settings(store, tmp_path) -> dict:
    """Arguments of a `TrainConfig` for two steps of four faces."""
    return dict(
        data=str(store),
        output=str(tmp_path / "run"),
        validation_names=str(tmp_path / "held_out.txt"),
        unet=dict(condition_dim=16, **TINY_WIDTHS),
        texture_encoder=dict(texture_channels=(8, 16), **TINY_WIDTHS),
        resolution=32,
        batch_size=4,
        max_samples=8,
        warmup_samples=0,
        learning_rate=1e-2,
        mixed_precision="no",
        perceptual_weight=0.0,
        log_steps=1,
        checkpoint_minutes=0.0,
    )


@pytest.fixture
def interrupt_after_checkpoint(monkeypatch):
    """`f(module, train, config)`: the training of a module, stopped right after its first checkpoint."""

    def run(module, train, config):
        save_checkpoint = module.save_checkpoint

        def save_and_stop(*arguments):
            save_checkpoint(*arguments)
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(module, "save_checkpoint", save_and_stop)
            with pytest.raises(KeyboardInterrupt):
                train(config)

    return run
