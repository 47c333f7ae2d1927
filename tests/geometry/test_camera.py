import torch

from diffdeid.geometry.camera import DISTANCE, project, to_camera


def pixel(*point: float, size: int = 256, margin: int = 0) -> torch.Tensor:
    return project(torch.tensor(point), size, margin)


def test_the_origin_lands_in_the_middle():
    torch.testing.assert_close(pixel(0, 0, 0), torch.tensor([128, 128, DISTANCE]))


def test_x_is_right_and_y_is_up():
    middle = pixel(0, 0, 0)
    assert pixel(1, 0, 0)[0] > middle[0] and pixel(1, 0, 0)[1] == middle[1]
    assert pixel(0, 1, 0)[1] < middle[1] and pixel(0, 1, 0)[0] == middle[0]


def test_a_decimetre_at_the_origin_is_half_the_crop():
    assert pixel(1, 0, 0)[0] - pixel(0, 0, 0)[0] == 128


def test_nearer_is_larger():
    near, far = pixel(1, 1, 2), pixel(1, 1, -2)
    assert near[2] < far[2]
    assert near[0] - 128 > far[0] - 128 > 0


def test_a_margin_shifts_by_itself():
    shift = pixel(0.3, -0.7, 0.5, margin=16) - pixel(0.3, -0.7, 0.5)
    torch.testing.assert_close(shift, torch.tensor([16.0, 16, 0]))


def test_pictures_scale_with_the_crop():
    small, large = pixel(0.3, -0.7, 0.5, size=64), pixel(0.3, -0.7, 0.5, size=256)
    torch.testing.assert_close(small[:2] * 4, large[:2])


def test_the_pose_turns_about_the_origin_and_then_moves():
    pose = torch.tensor([[0, 0, torch.pi / 2, 1, 2, 3]])
    torch.testing.assert_close(to_camera(torch.tensor([[[1.0, 0, 0]]]), pose), torch.tensor([[[1.0, 3, 3]]]))


def test_poses_keep_distances():
    points, poses = torch.randn(4, 10, 3), torch.randn(4, 6)
    torch.testing.assert_close(torch.cdist(to_camera(points, poses), to_camera(points, poses)), torch.cdist(points, points))


def test_projection_is_differentiable():
    points, pose = torch.randn(1, 5, 3, dtype=torch.float64), torch.randn(1, 6, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda points, pose: project(to_camera(points, pose), 4), (points.requires_grad_(), pose.requires_grad_())
    )
