"""Our models in diffusers' suite, except those with outputs that it does not know: lists (texture), ρ (reconstructor), faces."""

import pytest
import torch

from diffdeid.models.face_recognition import FaceRecognitionModel
from diffdeid.models.lds import LDSModel
from diffdeid.models.morphable_model import MorphableModel
from diffdeid.models.unet import DiffDeIDUNet2DModel
from tests.tiny import tiny_lds, tiny_morphable_model, tiny_texture_encoder, tiny_unet

suite = pytest.importorskip("diffusers_tests.models.testing_utils", reason="DIFFUSERS_TESTS_DIR is not set")


def seeded(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


class UNet(suite.BaseModelTesterConfig):
    model_class = DiffDeIDUNet2DModel
    output_shape = (3, 16, 16)

    def get_init_dict(self):
        return dict(tiny_unet().config)

    def get_dummy_inputs(self):
        with torch.no_grad():
            texture = tiny_texture_encoder()(seeded(2, 4, 16, 16))
        known = {"identity": seeded(2, 128), "coefficients": seeded(2, 261), "texture": texture}
        return {"sample": seeded(2, 3, 16, 16), "timestep": 5, "spatial_conditions": seeded(2, 9, 16, 16)} | known


class LDS(suite.BaseModelTesterConfig):
    model_class = LDSModel
    output_shape = (208,)

    def get_init_dict(self):
        return dict(tiny_lds().config)

    def get_dummy_inputs(self):
        return {"sample": seeded(2, 208), "timestep": 5, "conditions": seeded(2, 230)}


class FaceRecognition(suite.BaseModelTesterConfig):
    model_class = FaceRecognitionModel
    output_shape = (128,)

    def get_init_dict(self):
        return {"block_out_channels": (8, 16), "layers_per_block": (1, 1)}

    def get_dummy_inputs(self):
        return {"chips": seeded(2, 3, 150, 150)}


class Head(suite.BaseModelTesterConfig):
    model_class = MorphableModel
    output_shape = (42, 3)

    def get_init_dict(self):
        return dict(tiny_morphable_model().config)

    def get_dummy_inputs(self):
        return {"shape": seeded(2, 80), "expression": seeded(2, 64), "albedo": seeded(2, 80)}


class TestUNet(UNet, suite.ModelTesterMixin):
    pass


class TestUNetMemory(UNet, suite.MemoryTesterMixin):
    pass


class TestUNetTraining(UNet, suite.TrainingTesterMixin):
    pass


class TestUNetAttention(UNet, suite.AttentionTesterMixin):
    pass


class TestLDS(LDS, suite.ModelTesterMixin):
    pass


class TestFaceRecognition(FaceRecognition, suite.ModelTesterMixin):
    pass


class TestHead(Head, suite.ModelTesterMixin):
    pass
