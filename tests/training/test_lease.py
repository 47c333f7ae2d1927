import importlib.util
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from safetensors.numpy import save_file

from diffdeid.models.texture_encoder import TextureEncoderModel
from diffdeid.models.unet import DiffDeIDUNet2DModel
from diffdeid.training.data import MAPS, FaceStore
from diffdeid.training.prepare import prepare
from tests.tiny import tiny_texture_encoder, tiny_unet

ROOT = Path(__file__).parents[2]
WEIGHTS = ROOT / "weights/diffdeid"


@pytest.fixture(scope="module")
def lease():
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("lease", ROOT / "scripts/lease.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_is_unpacked_is_what_was_packed(lease, tmp_path):
    """A photo, and a frame of a clip, in parts of one face each."""
    if not WEIGHTS.exists():
        pytest.skip("weights/diffdeid is not here")
    photos, clips = tmp_path / "photos", tmp_path / "clips"
    for folder in (photos, clips):
        folder.mkdir()
    shutil.copy(ROOT / "tests/assets/astronaut.png", photos)
    name = "astronaut.png"
    photo = FaceStore(prepare(photos, tmp_path / "store", WEIGHTS))
    with photo.open(name) as file:
        frame = {key: file.get_tensor(key) for key in file.keys()}
    save_file(frame | {"texture": frame["image"]}, clips / "clip.safetensors", metadata={"set": "clips"})

    lease.pack([(photos, tmp_path / "store"), (tmp_path, clips)], tmp_path / "parts", part_bytes=1)
    parts = sorted((tmp_path / "parts").iterdir())
    assert [part.name for part in parts] == ["part-0.safetensors", "part-1.safetensors"]
    (tmp_path / "unpacked").mkdir()
    for part in parts:
        lease.unpack_share(tmp_path / "unpacked", WEIGHTS, part, share=0, shares=1)

    unpacked, expected = FaceStore(tmp_path / "unpacked"), photo.load(name)
    assert unpacked.names == [name, "clip"]
    exact, lossy = unpacked.load(name), unpacked.load("clip")
    assert not exact["video"] and lossy["video"]
    assert unpacked.open("clip").metadata() == {"set": "clips"}
    np.testing.assert_allclose(exact["maps"][:14].astype(int), expected["maps"][:14], atol=1)
    assert np.abs(exact["maps"][14:].astype(int) - expected["maps"][14:]).mean() < 0.5  # landmarks travel rounded
    pictures = MAPS["image"] + MAPS["texture"]
    np.testing.assert_array_equal(lossy["maps"][pictures:], exact["maps"][pictures:])
    assert np.abs(lossy["maps"][:pictures].astype(int) - expected["maps"][:pictures]).mean() < 3
    for face in (exact, lossy):
        np.testing.assert_array_equal(face["coefficients"], expected["coefficients"])
        np.testing.assert_allclose(face["identity"], expected["identity"], atol=1e-3)
        np.testing.assert_allclose(face["chip"], expected["chip"], atol=0.1)


def test_what_the_last_checkpoint_leaves_is_merged_into_a_checkpoint(lease, tmp_path):
    run, out = tmp_path / "run", tmp_path / "out"
    out.mkdir()
    for samples in (1, 2):
        checkpoint, unet = run / f"checkpoint-{samples}", tiny_unet()
        torch.nn.init.constant_(unet.video_embedding, samples)
        for name, part in {"unet": unet, "texture_encoder": tiny_texture_encoder(), "scheduler": DDIMScheduler()}.items():
            part.save_pretrained(checkpoint / name)
        (run / "log.jsonl").write_text(f"{samples}\n")
        (run / f"samples-{samples}.png").touch()
        lease.leave(out, checkpoint)
    assert (out / "log.jsonl").read_text() == "2\n"
    lease.merge(out, tmp_path / "merged", checkpoint)
    merged = DiffDeIDUNet2DModel.from_pretrained(tmp_path / "merged", subfolder="unet")
    for name, value in unet.state_dict().items():
        assert torch.equal(merged.state_dict()[name], value.half().to(merged.dtype)), name
    TextureEncoderModel.from_pretrained(tmp_path / "merged", subfolder="texture_encoder")
