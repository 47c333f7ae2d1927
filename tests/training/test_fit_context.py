from dataclasses import replace

import numpy as np
import torch
from safetensors.numpy import save_file

from diffdeid.geometry.surroundings import ERASED, surroundings
from diffdeid.training import fit_context as fitting
from diffdeid.training.data import MARGIN, FaceStore
from diffdeid.training.fit_context import fit_context, people, read_features
from tests.geometry.test_surroundings import face_at
from tests.tiny import tiny_context_encoder


def faces(count, noise, seed=0):
    """Features `(count, 96)` that tell of embeddings, of length 1."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(count, 96, generator=generator)
    told = features @ torch.randn(96, 128, generator=torch.Generator().manual_seed(9))
    embeddings = told + noise * torch.randn(count, 128, generator=generator)
    return features, torch.nn.functional.normalize(embeddings, dim=1)


def test_the_heads_predict_people_from_their_surroundings():
    encoder = tiny_context_encoder()
    (features, identity), (new, truth) = faces(600, 1.0), faces(100, 1.0, seed=1)
    _, context = fit_context(encoder, features, identity, new)
    assert ((encoder.expected_identity(context) @ truth.T).argmax(1) == torch.arange(100)).float().mean() > 0.5  # chance: .01


def test_contexts_of_training_faces_are_no_better_than_of_new_ones(monkeypatch):
    """The surroundings tell nothing here, but a map would know the faces that it was fitted to."""
    monkeypatch.setattr("diffdeid.training.fit_context.PENALTIES", (1.0,))
    encoder, generator = tiny_context_encoder(), torch.Generator().manual_seed(0)
    features, identity = torch.randn(200, 96, generator=generator), torch.randn(200, 128, generator=generator)
    crossed, fitted = fit_context(encoder, features, torch.nn.functional.normalize(identity, dim=1), features)
    centred = torch.nn.functional.normalize(identity, dim=1)
    centred = centred - centred.mean(0)
    of_others, own = (((values - values.mean(0)) * centred).sum(1).mean() for values in (crossed, fitted))
    assert own > 0.05 and of_others < 0.2 * own


def test_faces_without_surroundings_have_no_context():
    encoder, (features, identity) = tiny_context_encoder(), faces(60, 1.0)
    features[::3] = torch.nan
    context, _ = fit_context(encoder, features, identity, features[1:2])
    assert context[::3].isnan().all() and context[1::3].isfinite().all()


def test_one_persons_faces_have_one_number():
    generator = torch.Generator().manual_seed(0)
    base = torch.nn.functional.normalize(torch.randn(5, 128, generator=generator), dim=1)
    rows = torch.nn.functional.normalize(base.repeat(3, 1) + 0.03 * torch.randn(15, 128, generator=generator), dim=1)
    numbers = people(rows).view(3, 5)
    assert (numbers == numbers[0]).all() and numbers[0].unique().numel() == 5


def test_features_are_read_off_what_surrounds_the_faces_alone(monkeypatch, tmp_path):
    """Only the face itself is erased; the cover of a face without irises would take nearly the whole picture."""
    face, margin = face_at(128, 128, 150), MARGIN * 288
    tensors = {"image": np.full((288, 288, 3), 200, np.uint8), "landmarks": face.landmarks.astype(np.float32)}
    save_file(tensors | {"iris": np.zeros((2, 5, 2), np.float32)}, tmp_path / "face.safetensors", metadata={"set": "a"})
    shown, crop = [], fitting.surroundings
    monkeypatch.setattr(fitting, "surroundings", lambda *args: shown.append(crop(*args)) or shown[-1])
    read_features(FaceStore(tmp_path), ["face"], tiny_context_encoder(), [])
    expected = surroundings(tensors["image"], replace(face, landmarks=face.landmarks + [margin, margin, 0]))
    assert len(shown) == 1 and (shown[0] == expected).all()
    assert 0.2 < (expected == ERASED).mean() < 0.8
