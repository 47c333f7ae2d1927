import pytest
import torch
from safetensors.torch import save_file

from diffdeid.errors import ConfigurationError
from diffdeid.models.face_parser import CLASSES, FRONT, FaceParserModel
from tests.tiny import perturb

STAGES = ((1, 3, 1, 1, 8), (1, 3, 2, 2, 8), (1, 5, 2, 2, 12), (1, 3, 2, 2, 16))


def tiny_face_parser(**config) -> FaceParserModel:
    torch.manual_seed(0)
    config = dict(sample_size=64, stem_channels=8, stages=STAGES, decoder_channels=(16, 12, 8, 8), detail_channels=8) | config
    return perturb(FaceParserModel(**config)).eval()


@torch.no_grad()
def test_logits_for_every_pixel_alone_and_in_a_batch():
    parser, images = tiny_face_parser(), torch.rand(3, 3, 64, 64) * 2 - 1
    together = parser(images).logits
    assert together.shape == (3, CLASSES, 64, 64)
    alone = torch.cat([parser(image, return_dict=False)[0] for image in images.split(1)])
    torch.testing.assert_close(together, alone)


@torch.no_grad()
def test_the_front_is_a_probability_in_full_precision_whatever_the_weights_are():
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    full, half = tiny_face_parser(), tiny_face_parser().to(torch.bfloat16)
    expected = full(images).logits.softmax(1)[:, [FRONT]]
    torch.testing.assert_close(full.front(images), expected)
    found = half.front(images)
    assert found.dtype == torch.float32 and found.shape == (2, 1, 64, 64)
    torch.testing.assert_close(found, expected, atol=0.05, rtol=0)


@torch.no_grad()
def test_fine_edges_reach_the_logits():
    """A change of one pixel, which the encoder sees only blurred, changes its logits and those of a neighbour differently."""
    parser, images = tiny_face_parser(), torch.zeros(1, 3, 64, 64)
    changed = images.clone()
    changed[..., 32, 32] = 1
    difference = (parser(changed).logits - parser(images).logits).abs().sum(1)[0]
    assert difference[32, 32] > 0 and not torch.isclose(difference[32, 32], difference[33, 33])


def test_weights_survive_saving_and_others_are_refused(tmp_path):
    parser = tiny_face_parser(front_threshold=0.7)
    parser.save_pretrained(tmp_path)
    again = FaceParserModel.from_pretrained(tmp_path)
    assert again.config.front_threshold == 0.7
    for name, weight in parser.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], weight)
    state = {name: weight for name, weight in parser.state_dict().items() if name != "head.bias"}
    save_file(state, tmp_path / "diffusion_pytorch_model.safetensors")
    with pytest.raises(ConfigurationError, match="head.bias"):
        FaceParserModel.from_pretrained(tmp_path)


def test_the_decoder_has_as_many_steps_as_the_encoder():
    with pytest.raises(ValueError, match="`decoder_channels` must be 4 numbers"):
        tiny_face_parser(decoder_channels=(16, 8))


def test_the_released_size_is_small():
    assert sum(weight.numel() for weight in FaceParserModel().parameters()) * 2 < 2e6  # bytes in float16
