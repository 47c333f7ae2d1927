"""Toy-sized components of the real classes, with fixed weights."""

import torch
from diffusers import DDIMScheduler

from diffdeid.models.lds import LDSModel
from diffdeid.models.texture_encoder import TextureEncoderModel
from diffdeid.models.unet import DiffDeIDUNet2DModel
from diffdeid.pipelines.pipeline_lds import LDSPipeline

TINY_WIDTHS = dict(block_out_channels=(8, 16), attention_head_dim=8, norm_num_groups=4)


def tiny_unet(**config) -> DiffDeIDUNet2DModel:
    """Two levels, both with texture; takes sides that are multiples of 8."""
    torch.manual_seed(0)
    return DiffDeIDUNet2DModel(sample_size=32, condition_dim=16, **TINY_WIDTHS, **config).eval()


def tiny_texture_encoder() -> TextureEncoderModel:
    torch.manual_seed(0)
    return TextureEncoderModel(texture_channels=(8, 16), **TINY_WIDTHS).eval()


def tiny_lds() -> LDSModel:
    torch.manual_seed(0)
    return LDSModel(hidden_dim=16, num_layers=2).eval()


def tiny_lds_pipeline() -> LDSPipeline:
    pipeline = LDSPipeline(tiny_lds(), DDIMScheduler(clip_sample=False, timestep_spacing="trailing"))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def perturb(model: torch.nn.Module) -> torch.nn.Module:
    """Add noise to all parameters, so that branches which start at zero take part."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model
