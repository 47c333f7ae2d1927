import pytest
import torch

from diffdeid.models.texture_encoder import TextureEncoderModel
from diffdeid.models.unet import DiffDeIDUNet2DModel
from diffdeid.models.unet_blocks import patch_convolution
from tests.tiny import perturb, tiny_texture_encoder


@torch.no_grad()
def test_one_key_and_value_per_level_and_position():
    keys, values = tiny_texture_encoder()(torch.randn(2, 4, 16, 32))
    assert [key.shape for key in keys] == [value.shape for value in values] == [(2, 4 * 8, 8), (2, 2 * 4, 16)]


@torch.no_grad()
def test_a_batch_gives_what_singles_give():
    encoder, image = perturb(tiny_texture_encoder()), torch.randn(2, 4, 16, 16)
    batch, singles = encoder(image), [encoder(image[i : i + 1]) for i in range(2)]
    for field in ("keys", "values"):
        for level, tokens in enumerate(getattr(batch, field)):
            expected = torch.cat([getattr(single, field)[level] for single in singles])
            torch.testing.assert_close(tokens, expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_weights_survive_saving(tmp_path):
    encoder, image = perturb(tiny_texture_encoder()).half(), torch.randn(1, 4, 16, 16).half()
    encoder.save_pretrained(tmp_path)
    loaded = TextureEncoderModel.from_pretrained(tmp_path, dtype=torch.float16)
    for expected, tokens in zip(encoder(image).keys, loaded(image).keys, strict=True):
        torch.testing.assert_close(expected, tokens, atol=1e-3, rtol=1e-3)  # layouts in memory differ, and so do roundings


def test_a_wrong_size_is_explained():
    with pytest.raises(ValueError, match="multiples of 8"):
        tiny_texture_encoder()(torch.zeros(1, 4, 20, 20))


def test_default_widths_fit_the_default_unet():
    unet = DiffDeIDUNet2DModel().config
    assert TextureEncoderModel().config.texture_channels == unet.block_out_channels[-unet.num_texture_levels :]


@torch.no_grad()
def test_patch_convolution_is_pixel_unshuffle_and_a_3x3_convolution():
    image, convolution = torch.randn(1, 2, 16, 16), patch_convolution(2, 5, patch_size=4)
    # (out, in, 3 * 4, 3 * 4) -> (out, in * 4 * 4, 3, 3), channels in pixel_unshuffle's order
    weight = convolution.weight.unflatten(3, (3, 4)).unflatten(2, (3, 4)).permute(0, 1, 3, 5, 2, 4).flatten(1, 3)
    expected = torch.nn.functional.conv2d(torch.nn.functional.pixel_unshuffle(image, 4), weight, convolution.bias, padding=1)
    torch.testing.assert_close(convolution(image), expected)
