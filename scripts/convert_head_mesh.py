"""A trained `FaceReconstructorModel` and its head -> `head_mesh.onnx`, with which the face analyser finds turned heads.

    pip install onnx
    python scripts/convert_head_mesh.py runs/reconstructor/checkpoint-000100000 head_mesh.onnx

The graph gives the points of the attention mesh, also those on the far side of a head:

    image       (N, S, S, 3) RGB in 0…1, S the `sample_size` of the network
    landmarks   (N, 478, 3) in its pixels: 468 of the mesh, then the right and the left iris, 5 points each
    doubt       (N, 1), their expected mean error, in sides of the image

Weights are kept as float16, and become float32 when the graph is loaded.
"""

from io import BytesIO
from pathlib import Path
from typing import Annotated

import onnx
import torch
import typer
from torch import Tensor, nn

from diffdeid.conversion.onnx_weights import halved
from diffdeid.geometry.camera import DISTANCE, FOCAL, project, to_camera
from diffdeid.geometry.eyes import iris_centres
from diffdeid.models.face_reconstructor import FaceReconstructorModel
from diffdeid.models.morphable_model import MorphableModel

IRIS_RADIUS = 0.0585  # decimetres
RIM = ((0, 0), (1, 0), (0, -1), (-1, 0), (0, 1))  # centre, right, top, left and bottom of an iris, in its radii
IRIS_DEPTH = [133] * 5 + [362] * 5  # an iris has no depth of its own; it gets that of the inner corner of its eye


class HeadMesh(nn.Module):
    """The graph in torch: `(N, S, S, 3)` in 0…1 -> landmarks `(N, 478, 3)` in pixels and doubt `(N, 1)`."""

    def __init__(self, network: FaceReconstructorModel, model: MorphableModel):
        super().__init__()
        self.network = network
        bases = model.mean, model.identity_basis, model.expression_basis
        for name, basis in zip(("place", "shape", "expression"), bases, strict=True):
            self.register_buffer(name, model.at_landmarks(basis.float()))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        size = image.shape[1]
        found = self.network(2 * image.permute(0, 3, 1, 2) - 1)
        rho = found.coefficients
        grown = rho.shape @ self.shape.flatten(1) + rho.expression[:, : len(self.expression)] @ self.expression.flatten(1)
        placed = project(to_camera(self.place + grown.unflatten(1, (-1, 3)), rho.pose), size)
        deep = (placed[..., 2:] - DISTANCE) * (FOCAL * size / DISTANCE)
        radius = FOCAL * size * IRIS_RADIUS / placed[..., 2].mean(1)
        eyes = iris_centres(placed, rho.gaze)[:, :, None] + radius[:, None, None, None] * image.new_tensor(RIM)
        irises = torch.cat([eyes.flatten(1, 2), deep[:, IRIS_DEPTH]], dim=-1)
        landmarks = torch.cat([torch.cat([placed[..., :2], deep], dim=-1), irises], dim=1)
        return landmarks, found.expected_error[:, None]


def main(
    network: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="Folder of a `FaceReconstructorModel`.")],
    out: Annotated[Path, typer.Argument(help="The graph to write.")],
    morphable_model: Annotated[Path, typer.Option(exists=True, file_okay=False)] = Path("weights/diffdeid/morphable_model"),
) -> None:
    """Write the graph."""
    head = MorphableModel.from_pretrained(morphable_model).float()
    mesh = HeadMesh(FaceReconstructorModel.from_pretrained(network).float(), head).eval()
    size, written = mesh.network.config.sample_size, BytesIO()
    names = dict(input_names=["image"], output_names=["landmarks", "doubt"])
    free = {name: {0: "faces"} for name in ("image", "landmarks", "doubt")}
    torch.onnx.export(mesh, (torch.rand(2, size, size, 3),), written, **names, dynamic_axes=free, dynamo=False)
    onnx.save(halved(onnx.load_from_string(written.getvalue())), out)


if __name__ == "__main__":
    typer.run(main)
