"""Our pipelines in diffusers' suite; skipped tests say why. It has no place for `DiffDeIDVideoPipeline`, which writes files."""

from functools import cache

import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize

from diffdeid import DiffDeIDPipeline, LDSPipeline
from diffdeid.io.images import to_uint8_array
from diffdeid.models.face_analyser import FaceAnalyserModel
from diffdeid.structures import Face
from tests.conftest import ROOT
from tests.tiny import tiny_lds_pipeline, tiny_pipeline

suite = pytest.importorskip("diffusers_tests.pipelines.testing_utils", reason="DIFFUSERS_TESTS_DIR is not set")
OPTIONAL = suite.BasePipelineTesterConfig.optional_input_params


@cache
def photo() -> Image.Image:
    return Image.open(ROOT / "tests/assets/astronaut.png").convert("RGB")


@cache
def faces() -> list[Face]:
    return FaceAnalyserModel.from_pretrained(ROOT / "weights/diffdeid", subfolder="face_analyser")(to_uint8_array(photo()))


class Pictures(suite.BasePipelineTesterConfig):
    pipeline_class = DiffDeIDPipeline
    required_input_params_in_call_signature = frozenset(["image"])
    optional_input_params = OPTIONAL - {"latents"}  # noise belongs to a face and an attempt, of which a picture may have many
    batch_input_params = frozenset(["image", "faces", "identity"])
    output_shape = (3, 512, 512)

    def get_dummy_components(self):
        return tiny_pipeline().components | {"identity_limit": -1.0}

    def get_dummy_inputs(self):
        person = normalize(torch.ones(1, 128)), torch.zeros(1, 80)
        known = {"faces": faces(), "identity": person}
        return {"image": photo(), "num_inference_steps": 2, "generator": self.get_generator(0), "output_type": "pt"} | known


class TestPictures(Pictures, suite.PipelineTesterMixin):
    @pytest.mark.skip(reason="no output_type='latent': what leaves the pipeline has been checked (tests/pipelines has our own)")
    def test_callback_inputs(self):
        pass


class TestPicturesMemory(Pictures, suite.MemoryTesterMixin):
    pass


class Identities(suite.BasePipelineTesterConfig):
    pipeline_class = LDSPipeline
    required_input_params_in_call_signature = frozenset(["num_identities"])
    optional_input_params = OPTIONAL & {"num_inference_steps", "generator", "return_dict"}  # there is no picture
    batch_input_params = frozenset()
    output_shape = (128,)

    def get_dummy_components(self):
        return tiny_lds_pipeline().components

    def get_dummy_inputs(self):
        return {"num_identities": 2, "num_inference_steps": 2, "generator": self.get_generator(0)}


class TestIdentities(Identities, suite.PipelineTesterMixin):
    @pytest.mark.skip(reason="there is nothing to make a batch of")
    def test_inference_batch_consistent(self):
        pass

    @pytest.mark.skip(reason="there is nothing to make a batch of")
    def test_inference_batch_single_identical(self):
        pass


class TestIdentitiesMemory(Identities, suite.MemoryTesterMixin):
    pass
