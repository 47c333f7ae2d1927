"""A checkpoint laid out like Deep3DFaceRecon's, with random weights; its formulas, written out here, are the oracle."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates
from torch.nn.functional import batch_norm, conv2d, max_pool2d, normalize, relu
from typer.testing import CliRunner

from diffdeid.cli import app
from diffdeid.conversion.d3dfr import convert_d3dfr
from diffdeid.errors import ConfigurationError
from diffdeid.geometry.camera import project, to_camera
from diffdeid.geometry.lighting import shade
from diffdeid.models import face_reconstructor
from diffdeid.models.face_reconstructor import FaceReconstructorModel
from diffdeid.models.morphable_model import MorphableModel

STEM, WIDTHS, DEPTHS = 8, (16, 32, 64, 128), (2, 1, 1, 2)  # instead of 64, (256, …, 2048), (3, 4, 6, 3)
HEADS = (80, 64, 80, 3, 27, 2, 1)


def random_state(stem=STEM, widths=WIDTHS, depths=DEPTHS) -> dict[str, torch.Tensor]:
    """The state dict of `net_recon`."""
    generator = torch.Generator().manual_seed(0)
    state = {}

    def convolution(name, channels_in, channels_out, kernel):
        fan_in = channels_in * kernel * kernel
        state[f"{name}.weight"] = torch.randn(channels_out, channels_in, kernel, kernel, generator=generator) / fan_in**0.5

    def norm(name, channels):
        for key, scale, offset in (("weight", 0.2, 1), ("bias", 0.2, 0), ("running_mean", 0.2, 0), ("running_var", 0.2, 0.8)):
            state[f"{name}.{key}"] = scale * torch.rand(channels, generator=generator) + offset
        state[f"{name}.num_batches_tracked"] = torch.tensor(7)

    convolution("backbone.conv1", 3, stem, 7)
    norm("backbone.bn1", stem)
    channels = stem
    for stage, (width, depth) in enumerate(zip(widths, depths, strict=True), 1):
        for block in range(depth):
            name = f"backbone.layer{stage}.{block}"
            for layer, sizes in enumerate([(channels, width // 4, 1), (width // 4, width // 4, 3), (width // 4, width, 1)], 1):
                convolution(f"{name}.conv{layer}", *sizes)
                norm(f"{name}.bn{layer}", sizes[1])
            if block == 0:
                convolution(f"{name}.downsample.0", channels, width, 1)
                norm(f"{name}.downsample.1", width)
            channels = width
    for index, size in enumerate(HEADS):
        state[f"final_layers.{index}.weight"] = torch.randn(size, channels, 1, 1, generator=generator) * 0.3 / channels**0.5
        state[f"final_layers.{index}.bias"] = torch.randn(size, generator=generator) * 0.2
    return state


def run_network(state, x) -> torch.Tensor:
    """Deep3DFaceRecon's 257 coefficients of pictures `(B, 3, 224, 224)` in [0, 1]."""

    def norm(x, name):
        keys = ("running_mean", "running_var", "weight", "bias")
        return batch_norm(x, *(state[f"{name}.{key}"] for key in keys))

    def block(x, name, stride):
        out = relu(norm(conv2d(x, state[f"{name}.conv1.weight"]), f"{name}.bn1"))
        out = relu(norm(conv2d(out, state[f"{name}.conv2.weight"], stride=stride, padding=1), f"{name}.bn2"))
        out = norm(conv2d(out, state[f"{name}.conv3.weight"]), f"{name}.bn3")
        if f"{name}.downsample.0.weight" in state:
            x = norm(conv2d(x, state[f"{name}.downsample.0.weight"], stride=stride), f"{name}.downsample.1")
        return relu(out + x)

    x = relu(norm(conv2d(x, state["backbone.conv1.weight"], stride=2, padding=3), "backbone.bn1"))
    x = max_pool2d(x, 3, 2, 1)
    for stage, depth in enumerate(DEPTHS, 1):
        for index in range(depth):
            x = block(x, f"backbone.layer{stage}.{index}", 2 if index == 0 and stage > 1 else 1)
    x = x.mean((2, 3), keepdim=True)
    return torch.cat(
        [conv2d(x, state[f"final_layers.{i}.weight"], state[f"final_layers.{i}.bias"]) for i in range(7)], 1
    ).flatten(1)


def frame_of(crops: torch.Tensor) -> torch.Tensor:
    """The input of Deep3DFaceRecon for crops `(B, 3, H, H)`: 224 pixels, of which 203 show the crop, 17 pixels too high."""
    size = crops.shape[-1]
    column = (torch.arange(224) + 0.5 - 112) * size / 203 + size / 2 - 0.5
    grid = torch.meshgrid(column + 17 * size / 203, column, indexing="ij")
    pictures = [
        [map_coordinates(channel, [axis.numpy() for axis in grid], order=1, mode="nearest") for channel in crop]
        for crop in crops.numpy()
    ]
    return torch.from_numpy(np.array(pictures))


def turn(angles: torch.Tensor) -> torch.Tensor:
    """R = Rz Ry Rx."""
    (cx, cy, cz), (sx, sy, sz) = angles.cos(), angles.sin()
    x = torch.tensor([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    y = torch.tensor([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    z = torch.tensor([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return z @ y @ x


def colour(albedo, normals, gamma) -> torch.Tensor:
    """Deep3DFaceRecon's shading of `(N, 3)` albedo and normals under its γ `(27,)`."""
    a = math.pi, 2 * math.pi / math.sqrt(3), 2 * math.pi / math.sqrt(8)
    c = 1 / math.sqrt(4 * math.pi), math.sqrt(3) / math.sqrt(4 * math.pi), 3 * math.sqrt(5) / math.sqrt(12 * math.pi)
    x, y, z = normals.T
    harmonics = [
        a[0] * c[0] * torch.ones_like(x), -a[1] * c[1] * y, a[1] * c[1] * z, -a[1] * c[1] * x, a[2] * c[2] * x * y,
        -a[2] * c[2] * y * z, 0.5 * a[2] * c[2] / math.sqrt(3) * (3 * z**2 - 1), -a[2] * c[2] * x * z,
        0.5 * a[2] * c[2] * (x**2 - y**2),
    ]  # fmt: skip
    light = gamma.reshape(3, 9) + torch.tensor([0.8, 0, 0, 0, 0, 0, 0, 0, 0])
    return albedo * (torch.stack(harmonics, 1) @ light.T)


@pytest.fixture(scope="module")
def basel(tmp_path_factory) -> Path:
    """A morphable model of the right sizes, whose origin is not the mean of its vertices."""
    generator = torch.Generator().manual_seed(1)
    model = MorphableModel(40, 1, 80, 80, 0, [f"expression_{i:02d}" for i in range(64)], expression_bounded=False)
    model.mean.copy_(torch.randn(40, 3, generator=generator) * 0.5 + torch.tensor([0.02, -0.1, 0.3]))
    model.identity_basis.copy_(torch.randn(80, 40, 3, generator=generator) * 0.02)
    model.expression_basis.copy_(torch.randn(64, 40, 3, generator=generator) * 0.02)
    folder = tmp_path_factory.mktemp("basel")
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def converted(basel, tmp_path_factory) -> FaceReconstructorModel:
    folder = tmp_path_factory.mktemp("d3dfr")
    torch.save({"net_recon": random_state(), "opt_00": {"state": {}}, "sched_00": {"last_epoch": 20}}, folder / "epoch_20.pth")
    result = CliRunner().invoke(
        app, ["convert", "d3dfr", str(folder / "epoch_20.pth"), str(folder / "out"), "--morphable-model", str(basel)]
    )
    assert result.exit_code == 0, result.output
    return FaceReconstructorModel.from_pretrained(folder / "out").eval()


@pytest.fixture(scope="module")
def crops() -> torch.Tensor:
    """Two smooth pictures `(2, 3, 256, 256)` in [0, 1]."""
    coarse = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    return torch.nn.functional.interpolate(coarse, size=(256, 256), mode="bicubic").clamp(0, 1)


@pytest.fixture(scope="module")
def theirs(crops) -> list[torch.Tensor]:
    """Its coefficients: identity, expression, texture, angles, γ, translation."""
    return run_network(random_state(), frame_of(crops)).split((80, 64, 80, 3, 27, 3), dim=1)


@pytest.fixture(scope="module")
@torch.no_grad()
def ours(converted, crops):
    return converted(crops * 2 - 1).coefficients


def test_shape_and_albedo_are_as_theirs(ours, theirs):
    assert theirs[0].std() > 0.1
    for found, expected in zip((ours.shape, ours.expression, ours.albedo), theirs, strict=False):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_points_are_seen_at_the_same_pixels(ours, theirs, basel):
    identity, expression, _, angles, _, translation = theirs
    model = MorphableModel.from_pretrained(basel)
    found = project(to_camera(model(ours.shape, ours.expression).vertices, ours.pose), 256)
    for row in range(2):
        shape = model.mean - model.mean.mean(0)  # recentred, as there
        shape = shape + torch.einsum("k,kvc->vc", identity[row], model.identity_basis)
        shape = shape + torch.einsum("k,kvc->vc", expression[row], model.expression_basis)
        x, y, z = (shape @ turn(angles[row]).T + translation[row]).T
        u, v = 1015 * x / (10 - z), 1015 * y / (10 - z)  # pixels of 224, from the middle, v upwards
        expected = torch.stack([128 + u * 256 / 203, 128 + (17 - v) * 256 / 203], dim=1)
        inside = (expected - 128).abs().amax(1) < 128
        assert inside.sum() > 20
        torch.testing.assert_close(found[row, inside, :2], expected[inside], atol=0.4, rtol=0)


def test_faces_are_shaded_alike(ours, theirs):
    generator = torch.Generator().manual_seed(3)
    normals = normalize(torch.randn(50, 3, generator=generator), dim=1)
    albedo = torch.rand(50, 3, generator=generator)
    found = shade(albedo.expand(2, -1, -1), normals.expand(2, -1, -1), ours.illumination)
    for row in range(2):
        torch.testing.assert_close(found[row], colour(albedo, normals, theirs[4][row]), atol=1e-4, rtol=1e-4)


def test_there_is_no_gaze(ours):
    assert torch.equal(ours.gaze, torch.zeros(2, 4))


def test_every_rotation_is_the_same_turn(converted, monkeypatch):
    monkeypatch.setattr(face_reconstructor, "DEEP3D_TILT", 0)
    model = FaceReconstructorModel.from_config(converted.config).eval()
    points, pivot = torch.randn(1, 5, 3), torch.tensor(converted.config.deep3d_pivot)
    for angles in torch.tensor([[0.3, 0, 0], [0, -0.8, 0], [0, 0, 1.2], [0.4, 0.9, -0.3], [-0.2, 1.5, 0.1]]):
        model.head.bias.data[251:254] = angles
        pose = model(torch.zeros(1, 3, 256, 256)).coefficients.pose
        torch.testing.assert_close(to_camera(points, pose), (points - pivot) @ turn(angles).T, atol=1e-5, rtol=1e-5)


def test_crops_of_all_sizes_are_taken(converted, crops):
    smaller = torch.nn.functional.interpolate(crops, size=(192, 192), mode="bilinear", antialias=True)
    pose = [converted(x * 2 - 1).coefficients.pose for x in (crops, smaller)]
    torch.testing.assert_close(*pose, atol=0.02, rtol=0)


@pytest.mark.slow
def test_the_real_size_is_recognised(basel, tmp_path):
    torch.save({"net_recon": random_state(64, (256, 512, 1024, 2048), (3, 4, 6, 3))}, tmp_path / "epoch_20.pth")
    convert_d3dfr(tmp_path / "epoch_20.pth", tmp_path / "out", basel)
    config = FaceReconstructorModel.from_pretrained(tmp_path / "out").config
    default = FaceReconstructorModel().config
    assert [tuple(config[key]) for key in ("hidden_sizes", "depths")] == [default["hidden_sizes"], default["depths"]]


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_code_in_a_pickle_does_not_run(basel, tmp_path):
    torch.save({"net_recon": random_state(), "more": Malicious(tmp_path / "it_ran")}, tmp_path / "epoch_20.pth")
    with pytest.raises(ConfigurationError, match="refused"):
        convert_d3dfr(tmp_path / "epoch_20.pth", tmp_path / "out", basel)
    assert not (tmp_path / "it_ran").exists() and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda state: state.pop("final_layers.4.bias"), r"lacks \['final_layers.4.bias'\]"),
        (lambda state: state.pop("backbone.layer4.0.conv3.weight"), r"lacks \['backbone.layer4.0.conv3.weight'\]"),
        (
            lambda state: state.pop("backbone.layer2.0.bn2.running_var"),
            "encoder.stages.1.layers.0.layer.1.normalization.running_var",
        ),
        (
            lambda state: state.update({"final_layers.0.weight": torch.zeros(100, 128, 1, 1)}),
            r"\(80, 128, 1, 1\), has \(100, 128",
        ),
        (lambda state: state.update({"backbone.conv1.weight": torch.zeros(8, 3, 3, 3)}), r"ResNet-50.*size mismatch"),
    ],
)
def test_a_network_that_does_not_fit_is_refused(basel, tmp_path, change, message):
    state = random_state()
    change(state)
    torch.save({"net_recon": state}, tmp_path / "epoch_20.pth")
    with pytest.raises(ConfigurationError, match=f"(?s){message}"):
        convert_d3dfr(tmp_path / "epoch_20.pth", tmp_path / "out", basel)


@pytest.mark.parametrize("content", [{"net_other": {}}, [1, 2], {"net_recon": None}])
def test_another_checkpoint_is_refused(basel, tmp_path, content):
    torch.save(content, tmp_path / "epoch_20.pth")
    with pytest.raises(ConfigurationError, match="has no `net_recon`"):
        convert_d3dfr(tmp_path / "epoch_20.pth", tmp_path / "out", basel)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint"])
def test_a_file_of_another_kind_is_refused_in_one_line(basel, tmp_path, content):
    (tmp_path / "epoch_20.pth").write_bytes(content)
    arguments = ["convert", "d3dfr", str(tmp_path / "epoch_20.pth"), str(tmp_path / "out"), "--morphable-model", str(basel)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1 and "is not a file that torch reads" in result.output and len(result.output.splitlines()) == 1


def test_our_own_head_is_refused(tmp_path):
    MorphableModel(4, 1, 80, 80, 3, ["jawOpen"]).save_pretrained(tmp_path / "head")
    torch.save({"net_recon": random_state()}, tmp_path / "epoch_20.pth")
    with pytest.raises(ConfigurationError, match="diffdeid convert bfm"):
        convert_d3dfr(tmp_path / "epoch_20.pth", tmp_path / "out", tmp_path / "head")
