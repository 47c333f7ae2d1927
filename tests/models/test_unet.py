import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import normalize
from torch.utils.flop_counter import FlopCounterMode

from diffdeid.errors import ConfigurationError
from diffdeid.models.texture_encoder import TextureEncoderModel
from diffdeid.models.unet import DiffDeIDUNet2DModel
from tests.tiny import perturb, tiny_texture_encoder, tiny_unet


def inputs(batch_size=2, size=16, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator).to(dtype)  # noqa: E731
    with torch.no_grad():
        texture = perturb(tiny_texture_encoder()).to(dtype)(draw(batch_size, 4, size, size))
    return {
        "sample": draw(batch_size, 3, size, size),
        "timestep": torch.arange(batch_size) * 300 + 5,
        "spatial_conditions": draw(batch_size, 9, size, size),
        "identity": normalize(draw(batch_size, 128), dim=1),
        "coefficients": draw(batch_size, 261),
        "texture": texture,
        "video": torch.arange(batch_size) % 2 == 1,
    }


def row(arguments, index):
    """The inputs of one sample of a batch."""
    part = {name: value[index : index + 1] for name, value in arguments.items() if name != "texture"}
    return part | {"texture": type(arguments["texture"])(*([t[index : index + 1] for t in x] for x in arguments["texture"]))}


@torch.no_grad()
def test_untrained_texture_has_no_effect():
    unet, arguments = perturb(tiny_unet()), inputs()
    for attention in unet.texture_attentions:
        attention.tau.zero_()
    other = arguments | {"texture": type(arguments["texture"])(*([t + 1 for t in x] for x in arguments["texture"]))}
    assert torch.equal(unet(**arguments).sample, unet(**other).sample)
    assert all((attention.tau == 0).all() for attention in tiny_unet().texture_attentions)


@torch.no_grad()
def test_the_texture_can_replace_the_noise_features_as_the_paper_writes():
    unet, arguments = perturb(tiny_unet(texture_residual="texture")), inputs()
    for attention in unet.texture_attentions:
        attention.tau.zero_()
    other = arguments | {"texture": type(arguments["texture"])(*([t + 1 for t in x] for x in arguments["texture"]))}
    assert not torch.equal(unet(**arguments).sample, unet(**other).sample)


class PlainAttention:
    """softmax(QKᵀ / √d) V, computed literally."""

    _attention_backend = None

    def __call__(self, attention, query, key, value):
        query, key, value = (x.unflatten(2, (-1, attention.head_dim)).transpose(1, 2) for x in (query, key, value))
        weights = (query @ key.transpose(2, 3) / attention.head_dim**0.5).softmax(3)
        return (weights @ value).transpose(1, 2).flatten(2)


@torch.no_grad()
def test_attention_processors_and_backends_can_be_exchanged():
    unet, arguments = perturb(tiny_unet()), inputs()
    expected = unet(**arguments).sample
    unet.set_attention_backend("_native_math")
    torch.testing.assert_close(unet(**arguments).sample, expected)
    unet.set_attention_backend("native")  # for others too: diffusers' choice is everybody's
    unet.set_attn_processor(PlainAttention())
    assert {type(processor) for processor in unet.attn_processors.values()} == {PlainAttention}
    torch.testing.assert_close(unet(**arguments).sample, expected)
    assert tiny_texture_encoder().attn_processors


@torch.no_grad()
@pytest.mark.parametrize("name", ["sample", "spatial_conditions", "identity", "coefficients", "timestep", "video"])
def test_every_input_matters(name):
    unet, arguments = perturb(tiny_unet()), inputs()
    changed = arguments | {name: torch.zeros_like(arguments[name])}  # a zero identity is "no identity"
    assert not torch.allclose(unet(**arguments).sample, unet(**changed).sample, atol=1e-4)


@torch.no_grad()
def test_video_mode_ignores_the_identity():
    unet, arguments = perturb(tiny_unet()), inputs()
    other = unet(**arguments | {"identity": arguments["identity"].flip(0)}).sample
    image, frame = (unet(**arguments).sample != other).flatten(1).any(dim=1)
    assert image and not frame


@torch.no_grad()
@pytest.mark.parametrize("level", [0, 1])
@pytest.mark.parametrize("field", ["keys", "values"])
def test_texture_matters_at_each_level_once_tau_is_trained(level, field):
    unet, arguments = perturb(tiny_unet()), inputs()
    before = unet(**arguments).sample
    tokens = getattr(arguments["texture"], field)
    tokens[level] = torch.randn_like(tokens[level])
    assert not torch.equal(before, unet(**arguments).sample)


@torch.no_grad()
def test_a_batch_gives_what_singles_give():
    unet, arguments = perturb(tiny_unet()), inputs()
    singles = torch.cat([unet(**row(arguments, i)).sample for i in range(2)])
    torch.testing.assert_close(unet(**arguments).sample, singles, atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("size", [8, 24, 32])
def test_output_has_the_size_of_the_input(size):
    unet, arguments = tiny_unet(), inputs(size=size)
    assert unet(**arguments, return_dict=False)[0].shape == (2, 3, size, size)


@torch.no_grad()
def test_a_number_as_timestep_is_the_timestep_of_all():
    unet, arguments = perturb(tiny_unet()), inputs()
    expected = unet(**arguments | {"timestep": torch.tensor([7, 7])}).sample
    assert torch.equal(unet(**arguments | {"timestep": 7}).sample, expected)


@torch.no_grad()
def test_memory_format_does_not_matter():
    unet, arguments = perturb(tiny_unet()), inputs()
    expected = unet(**arguments).sample
    for name in ("sample", "spatial_conditions"):
        arguments[name] = arguments[name].to(memory_format=torch.channels_last)
    torch.testing.assert_close(unet.to(memory_format=torch.channels_last)(**arguments).sample, expected, atol=1e-5, rtol=0)


def test_gradients_reach_every_parameter_of_both_networks():
    unet, texture_encoder, arguments = perturb(tiny_unet()), perturb(tiny_texture_encoder()), inputs()
    texture = texture_encoder(torch.randn(2, 4, 16, 16))
    unet(**arguments | {"texture": texture}).sample.square().mean().backward()
    for model in (unet, texture_encoder):
        assert not [
            name
            for name, parameter in model.named_parameters()
            # A constant added to all keys leaves the softmax unchanged.
            if not name.startswith("to_keys.") or name.endswith("weight")
            if parameter.grad is None or not parameter.grad.any()
        ]


def test_training_starts_from_a_zero_prediction_and_moves():
    unet, arguments = tiny_unet(), inputs()
    prediction = unet(**arguments).sample
    assert not prediction.any()
    (prediction - 1).square().mean().backward()
    assert unet.conv_out.weight.grad.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@torch.no_grad()
def test_weights_survive_saving(tmp_path, dtype):
    unet, arguments = perturb(tiny_unet()).to(dtype), inputs(dtype=dtype)
    unet.save_pretrained(tmp_path)
    loaded = DiffDeIDUNet2DModel.from_pretrained(tmp_path, dtype=dtype)
    assert loaded.dtype == dtype
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in unet.state_dict().items())
    torch.testing.assert_close(loaded(**arguments).sample, unet(**arguments).sample)


@pytest.mark.parametrize("damage", ["removed", "added", "reshaped"])
def test_weights_that_do_not_fit_are_refused(tmp_path, damage):
    tiny_unet().save_pretrained(tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    if damage == "removed":
        del tensors["texture_attentions.0.tau"]
    if damage == "added":
        tensors["texture_attentions.0.bias"] = torch.zeros(3)
    if damage == "reshaped":
        tensors["texture_attentions.0.tau"] = torch.zeros(3)
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ValueError if damage == "reshaped" else ConfigurationError, match="texture_attentions.0"):
        DiffDeIDUNet2DModel.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sample": torch.zeros(2, 3, 20, 16)}, "multiples of 8"),
        ({"sample": torch.zeros(2, 4, 16, 16)}, "(batch, 3, height, width)"),
        ({"spatial_conditions": torch.zeros(2, 9, 8, 8)}, "`spatial_conditions` has size (8, 8)"),
    ],
)
def test_wrong_shapes_are_explained(change, message):
    with pytest.raises(ValueError) as error:
        tiny_unet()(**inputs() | change)
    assert message in str(error.value)


def test_a_texture_of_another_network_is_refused():
    with pytest.raises(ValueError, match="texture_channels"):
        tiny_unet(num_texture_levels=1)(**inputs())


def test_defaults_keep_to_the_budget():
    with torch.device("meta"):
        unet, texture_encoder = DiffDeIDUNet2DModel(), TextureEncoderModel()
        image, conditions, masked_image = (torch.zeros(1, channels, 256, 256) for channels in (3, 9, 4))
        identity, coefficients = torch.zeros(1, 128), torch.zeros(1, 261)
    with FlopCounterMode(display=False) as once:
        texture = texture_encoder(masked_image)
    with FlopCounterMode(display=False) as step:
        unet(image, 0, conditions, identity, coefficients, texture)
    assert unet.num_parameters() + texture_encoder.num_parameters() <= 32e6
    assert 1e9 < once.get_total_flops() <= 3e9
    assert 6e9 < step.get_total_flops() <= 9e9
