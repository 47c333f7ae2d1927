"""Renders of heads, with exact labels."""

from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from diffdeid.geometry.rotation import rotation_matrix
from diffdeid.models.morphable_model import MorphableModel
from diffdeid.structures import MorphableCoefficients
from diffdeid.training.data import FaceStore
from diffdeid.training.head_renders import (
    hair_on,
    head_map,
    invented,
    laid_on,
    render_heads,
    render_some,
    window_matrix,
)
from diffdeid.training.reconstructor_data import picture_landmarks

WEIGHTS = Path(__file__).parents[2] / "weights" / "diffdeid"
SIZE = 64


@pytest.fixture(scope="module")
def head() -> MorphableModel:
    return MorphableModel.from_pretrained(WEIGHTS, subfolder="morphable_model").float()


@pytest.fixture(scope="module")
def where(head):
    return head_map(head)


@pytest.fixture(scope="module")
def rendered(head, where):
    """Four invented heads."""
    generator = torch.Generator().manual_seed(0)
    return turned(head, where, invented(head, 4, generator), 0, generator)


def turned(head, where, heads, seed: int, generator):
    rng = np.random.default_rng(seed)
    angles = rng.uniform(-60, 60, (len(heads.pose), 3))
    return render_some(head, where, heads, None, angles, partial(window_matrix, rng=rng), SIZE, 0.3, generator)


def test_labels_are_exact(head, rendered):
    pictures, labels = rendered
    rho = MorphableCoefficients.unpack(labels["coefficients"])
    torch.testing.assert_close(picture_landmarks(head(rho.shape, rho.expression).landmarks, rho.pose), labels["landmarks"])
    assert pictures.shape == (4, 72, 72, 4)


def test_landmarks_lie_on_the_head(rendered):
    pictures, labels = rendered
    for picture, landmarks in zip(pictures, labels["landmarks"], strict=True):
        column, row = (landmarks[:, :2] * SIZE + 4).floor().long().clamp(0, 71).T
        near = cv2.dilate(picture[..., 3], np.ones((3, 3), np.uint8))  # many lie on the outline
        assert (near[row, column] > 0).mean() > 0.98


def test_a_seed_says_all(head, where):
    def drawn():
        generator = torch.Generator().manual_seed(3)
        return turned(head, where, invented(head, 2, generator), 3, generator)

    (first, labels), (second, others) = drawn(), drawn()
    np.testing.assert_allclose(first.astype(int), second, atol=1)  # threads add up in any order
    torch.testing.assert_close(labels["coefficients"], others["coefficients"], atol=1e-4, rtol=1e-4)


def test_a_photograph_is_seen_again_from_where_it_was_taken(head, where):
    """A photo that is laid on the mesh and rendered from the same side is unchanged; unseen vertices get colours of the photo."""
    generator = torch.Generator().manual_seed(0)
    rho = invented(head, 1, generator)
    vertices = head(rho.shape, rho.expression).vertices
    across = torch.linspace(0.2, 0.9, 288).expand(288, 288)
    photo = torch.stack([across, across.T, torch.full((288, 288), 0.5)])[None]
    points, seen, colours = laid_on(head, where, vertices, rho.pose, photo)
    x = (points[0, :, 0] + 1) / 2 * 0.7 + 0.2
    shown = seen[0, :, 0] > 0
    assert 500 < shown.sum() < len(shown)
    torch.testing.assert_close(colours[0, shown, 0], x[shown], atol=0.01, rtol=0)
    assert colours.min() > 0.15 and colours.max() < 0.95
    assert shown[head.landmark_corners[1]].all()  # the tip of the nose


def test_eyes_and_faces_have_no_hair(head, where):
    hair = hair_on(where, head, 8, torch.Generator().manual_seed(0))
    assert hair.min() >= 0 and hair.max() <= 1
    assert hair[:, head.eyeballs > 0].max() < 0.01 and head.at_landmarks(hair[..., None]).mean() < 0.01
    assert len({round(float(amount), 3) for amount in hair.mean(1)}) > 4


def test_windows_are_about_the_face(rendered):
    points = rendered[1]["landmarks"][0].double().numpy()
    rng = np.random.default_rng(0)
    for _ in range(30):
        matrix = window_matrix(points, rng)
        middle = matrix[:, :2] @ points[:, :2].mean(0) + matrix[:, 2]
        assert np.abs(middle - 0.5).max() < 0.35


def test_heads_of_photographs_are_turned(head, rendered, tmp_path):
    pictures, labels = rendered
    for number in range(4):
        face = {"image": pictures[number, ..., :3].copy(), "fit": labels["coefficients"][number].numpy()}
        save_file(face, tmp_path / f"{number}.safetensors")
    store = FaceStore(tmp_path)
    renders, found = render_heads(head, store, store.names, 14, SIZE, seed=0)
    assert renders.shape == (14, 72, 72, 4) and set(np.unique(renders[..., 3])) == {0, 255}
    shapes = labels["coefficients"][:, :80]
    assert all((shape == shapes).all(1).any() for shape in found["coefficients"][:, :80])
    forward = rotation_matrix(found["coefficients"][:, 251:254])[..., 2]
    assert forward.std(0).max() > 0.3
    assert found["coefficients"].isfinite().all()
