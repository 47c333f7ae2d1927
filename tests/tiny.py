"""Toy-sized components of the real classes, with fixed weights."""

from pathlib import Path

import torch
from diffusers import DDIMScheduler

from diffdeid.models.context_encoder import ContextEncoderModel
from diffdeid.models.face_recognition import FaceRecognitionModel
from diffdeid.models.lds import LDSModel
from diffdeid.models.morphable_model import MorphableModel
from diffdeid.models.refiner import RefinerModel
from diffdeid.models.texture_encoder import TextureEncoderModel
from diffdeid.models.unet import DiffDeIDUNet2DModel
from diffdeid.pipelines.pipeline_diffdeid import DiffDeIDPipeline
from diffdeid.pipelines.pipeline_lds import LDSPipeline

TINY_WIDTHS = dict(block_out_channels=(8, 16), attention_head_dim=8, norm_num_groups=4)


def tiny_unet(**config) -> DiffDeIDUNet2DModel:
    """Two levels, both with texture; takes sides that are multiples of 8."""
    torch.manual_seed(0)
    return DiffDeIDUNet2DModel(sample_size=32, condition_dim=16, **TINY_WIDTHS, **config).eval()


def tiny_texture_encoder() -> TextureEncoderModel:
    torch.manual_seed(0)
    return TextureEncoderModel(texture_channels=(8, 16), **TINY_WIDTHS).eval()


def tiny_context_encoder() -> ContextEncoderModel:
    """Sees eight channels at a sixteenth of the size."""
    torch.manual_seed(0)
    stages = ((1, 3, 2, 1, 4), (1, 3, 2, 2, 8), (1, 3, 2, 2, 8))
    return ContextEncoderModel(stem_channels=4, stages=stages, feature_channels=16).eval()


def tiny_lds() -> LDSModel:
    torch.manual_seed(0)
    model = LDSModel(hidden_dim=16, num_layers=2, attribute_names=("female", "age"), ghost_names=("glasses", "cap")).eval()
    model.attribute_directions.normal_()
    return model


def tiny_lds_pipeline() -> LDSPipeline:
    pipeline = LDSPipeline(tiny_lds(), DDIMScheduler(clip_sample=False, timestep_spacing="trailing"))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def tiny_refiner() -> RefinerModel:
    torch.manual_seed(0)
    return perturb(RefinerModel(channels=8, num_layers=1)).eval()


def icosphere(subdivisions: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Vertices `(V, 3)` on the unit sphere and triangles `(T, 3)`, counter-clockwise from outside; 42 vertices for 1."""
    golden = (1 + 5**0.5) / 2
    vertices = torch.tensor([[0, one, phi] for one in (-1, 1) for phi in (-golden, golden)])
    vertices = torch.cat([vertices.roll(shift, 1) for shift in range(3)])
    triples = torch.combinations(torch.arange(12), 3)
    sides = vertices[triples] - vertices[triples].roll(1, 1)
    triangles = triples[(sides.norm(dim=-1) < 2.1).all(1)]
    for _ in range(subdivisions):
        a, b, c = vertices[triangles].unbind(1)
        corners = torch.stack([a, b, c, a + b, b + c, c + a], 1)[:, [[0, 3, 5], [3, 1, 4], [5, 4, 2], [3, 4, 5]]]
        corners = torch.nn.functional.normalize(corners, dim=-1).flatten(0, 1)
        _, index = (corners.flatten(0, 1) * 1e4).round().unique(dim=0, return_inverse=True)
        vertices = torch.zeros(int(index.max()) + 1, 3).index_copy(0, index, corners.flatten(0, 1))
        triangles = index.view(-1, 3)
    vertices = torch.nn.functional.normalize(vertices, dim=-1)
    inwards = torch.linalg.det(vertices[triangles]) < 0
    triangles[inwards] = triangles[inwards].flip(1)
    return vertices, triangles


def tiny_morphable_model() -> MorphableModel:
    """A ball of 42 vertices with landmarks scattered over its front."""
    vertices, triangles = icosphere(1)
    torch.manual_seed(0)
    model = MorphableModel(len(vertices), len(triangles), 80, 5, 3, ["jawOpen", "mouthSmileLeft", "tongueOut"])
    front = triangles[vertices[triangles][..., 2].amin(1) > 0]
    model.mean.copy_(vertices)
    model.identity_basis.normal_(std=0.01)
    model.expression_basis.normal_(std=0.05)
    model.albedo_mean.fill_(0.7)
    model.albedo_basis.normal_(std=0.05)
    model.triangles.copy_(triangles)
    model.landmark_corners.copy_(front[torch.randint(len(front), (468,))])
    model.landmark_weights.copy_(torch.rand(468, 3).softmax(1))
    return model.eval()


def perturb(model: torch.nn.Module) -> torch.nn.Module:
    """Add noise to all parameters, so that branches which start at zero take part."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def tiny_pipeline(**config) -> DiffDeIDPipeline:
    """Tiny networks around the shipped head and recogniser, without a face analyser, that accepts every result."""
    weights = Path(__file__).parents[1] / "weights" / "diffdeid"
    pipeline = DiffDeIDPipeline(
        unet=perturb(tiny_unet()),
        texture_encoder=tiny_texture_encoder(),
        scheduler=DDIMScheduler(beta_schedule="linear", prediction_type="sample", timestep_spacing="trailing"),
        morphable_model=MorphableModel.from_pretrained(weights, subfolder="morphable_model"),
        face_recognition=FaceRecognitionModel.from_pretrained(weights, subfolder="face_recognition"),
        lds=tiny_lds(),
        lds_scheduler=DDIMScheduler(clip_sample=False, timestep_spacing="trailing"),
        **{"identity_limit": -1.0, "context_encoder": tiny_context_encoder()} | config,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
