"""Invented people: the demo photo with sampled identities, two photos of each."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffdeid.evaluation.run import Judges, judges

ROOT = Path(__file__).parents[2]
PEOPLE = 8


@pytest.fixture(scope="session")
def panel() -> Judges:
    """The released networks."""
    return judges(str(ROOT / "weights/diffdeid"), ROOT / "weights/evaluators")


@pytest.fixture(scope="session")
def people(pipeline, astronaut, tmp_path_factory) -> Path:
    """`<person>_a.png`, and `<person>_b.png` with noise and in another light."""
    photo = Image.open(astronaut).convert("RGB").crop((90, 0, 370, 280))
    options = {"num_images_per_prompt": PEOPLE, "num_inference_steps": 2, "output_type": "np"}
    pictures = pipeline(photo, generator=torch.Generator().manual_seed(3), **options).images
    folder, rng = tmp_path_factory.mktemp("people"), np.random.default_rng(0)
    for number, picture in enumerate(pictures):
        other = (0.85 * picture + rng.normal(10, 4, picture.shape)).round().clip(0, 255).astype(np.uint8)
        Image.fromarray(picture).save(folder / f"{number}_a.png")
        Image.fromarray(other).save(folder / f"{number}_b.png")
    return folder


@pytest.fixture(scope="session")
def few(people, tmp_path_factory) -> Path:
    """Two of them."""
    folder = tmp_path_factory.mktemp("few")
    for name in ("0_a.png", "0_b.png", "1_a.png", "1_b.png"):
        shutil.copy(people / name, folder)
    return folder
