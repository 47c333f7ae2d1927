from pathlib import Path

import numpy as np
import pytest
import torch
from skimage.data import astronaut, chelsea

from diffdeid.conversion.efficientnet import load_trunk
from diffdeid.evaluation.features import EfficientNetLite0
from diffdeid.geometry.pixels import to_tensor
from diffdeid.models.context_encoder import ContextEncoderModel
from diffdeid.models.efficientnet import InvertedResidual
from tests.tiny import perturb, tiny_context_encoder, tiny_pipeline

WEIGHTS = Path(__file__).parents[2] / "weights"


@torch.no_grad()
def test_a_context_for_each_picture_alone_and_in_a_batch():
    encoder, pictures = perturb(tiny_context_encoder()), torch.rand(3, 3, 64, 64) * 2 - 1
    together = encoder(pictures).context
    assert together.shape == (3, 128)
    torch.testing.assert_close(together, torch.cat([encoder(one, return_dict=False)[0] for one in pictures.split(1)]))


@torch.no_grad()
def test_a_mirrored_picture_tells_the_same():
    encoder, pictures = perturb(tiny_context_encoder()), torch.rand(2, 3, 64, 64) * 2 - 1
    torch.testing.assert_close(encoder(pictures).context, encoder(pictures.flip(3)).context)


@torch.no_grad()
def test_it_matters_where_in_a_picture_things_are():
    """Things above, below, at a side or in the middle give different features."""
    encoder = tiny_context_encoder()
    encoder.stem = encoder.blocks = encoder.features = torch.nn.Identity()
    top, side, middle = torch.zeros(3, 1, 1, 6, 6)
    top[:, :, :2], side[..., :2], middle[..., 2:4] = 1, 1, 1
    assert encoder.pooled_features(top).tolist() == [[1, 1, 0, 0, 0, 0]]
    assert encoder.pooled_features(side).tolist() == [[0.5, 0] * 3]
    assert encoder.pooled_features(middle).tolist() == [[0, 1] * 3]


def test_more_independent_numbers_than_numbers_are_refused():
    with pytest.raises(ValueError, match="`rank` must be at most `context_dim`, 128, got 200"):
        ContextEncoderModel(rank=200)


@torch.no_grad()
def test_the_expected_identity_is_a_unit_vector():
    identity = tiny_context_encoder().expected_identity(torch.randn(4, 128))
    torch.testing.assert_close(identity.norm(dim=1), torch.ones(4))


@torch.no_grad()
def test_it_survives_saving(tmp_path):
    encoder = perturb(tiny_context_encoder())
    encoder.save_pretrained(tmp_path)
    pictures = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(ContextEncoderModel.from_pretrained(tmp_path)(pictures).context, encoder(pictures).context)


def test_blocks_add_their_input_where_shapes_agree():
    same, wider = InvertedResidual(4, 4, 3, 1, 2), InvertedResidual(4, 8, 3, 2, 2)
    torch.nn.init.zeros_(same.project.conv.weight)
    torch.nn.init.zeros_(same.project.conv.bias)
    x = torch.randn(1, 4, 7, 7)
    assert torch.equal(same(x), x) and wider(x).shape == (1, 8, 4, 4)


@torch.no_grad()
def test_the_trunk_is_that_of_the_evaluators(tmp_path):
    """That is an independent implementation, with separate layers for batch normalisation."""
    judge = EfficientNetLite0(WEIGHTS / "evaluators/efficientnet_lite0.safetensors")
    classes = {"_fc.weight": torch.randn(1000, 1280), "_fc.bias": torch.randn(1000)}  # which the evaluators do without
    torch.save(judge.state | classes, tmp_path / "lite0.pth")
    encoder = load_trunk(tmp_path / "lite0.pth")
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 3, 224, 224))).float()
    ours = encoder.features(encoder.blocks(encoder.stem((pixels - 127) / 128))).mean((2, 3))
    torch.testing.assert_close(ours, judge(pixels), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(encoder.classes.weight, classes["_fc.weight"])


@torch.no_grad()
def test_a_cat_is_a_pet_and_an_astronaut_is_none():
    encoder = ContextEncoderModel.from_pretrained(WEIGHTS / "diffdeid/context_encoder").float()
    faces = chelsea()[30:256, 100:326], astronaut()[20:220, 125:325]
    cat, person = (to_tensor([np.ascontiguousarray(face)]) for face in faces)
    assert encoder.pet(cat) > 0.9 and encoder.pet(person) < 0.2
    torch.testing.assert_close(encoder.pet(torch.cat([cat.flip(3)] * 2)), encoder.pet(cat).repeat(2))


def test_the_released_one_is_small():
    files = list((WEIGHTS / "diffdeid/context_encoder").glob("*.safetensors"))
    assert sum(file.stat().st_size for file in files) < 10.5e6  # 2.6 of them tell pets


def test_the_pipeline_refuses_another_model_in_its_place():
    with pytest.raises(TypeError, match="context_encoder"):
        tiny_pipeline(context_encoder=torch.nn.Linear(1, 1))
