"""Solvers remember their last steps, so faces and people that are made at the same time must not share one."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from PIL import Image

from diffdeid import DeidentifyOptions
from diffdeid.engine.faces import Engine
from diffdeid.models.face_analyser import FaceAnalyserModel
from diffdeid.stages.denoise import NO_CALLBACKS, Callbacks
from diffdeid.stages.identity import IdentitySampler
from diffdeid.structures import FaceBatch, FaceJob, NewIdentity
from tests.conftest import ROOT
from tests.tiny import tiny_lds, tiny_pipeline

OPTIONS = DeidentifyOptions(num_inference_steps=4)


@pytest.fixture(scope="module")
def engine() -> Engine:
    solver = DPMSolverMultistepScheduler(prediction_type="sample", use_lu_lambdas=True)
    return replace(tiny_pipeline().engine, scheduler=solver)


@pytest.fixture(scope="module")
def source(engine, astronaut) -> FaceBatch:
    picture = np.asarray(Image.open(astronaut).convert("RGB"))
    analyser = FaceAnalyserModel.from_pretrained(ROOT / "weights/diffdeid", subfolder="face_analyser")
    with torch.no_grad():
        return engine.reconstruct([FaceJob(picture, face) for face in analyser(picture)], OPTIONS)


@torch.no_grad()
def paint(engine: Engine, source: FaceBatch, seed: int, callbacks: Callbacks = NO_CALLBACKS) -> torch.Tensor:
    people = NewIdentity(source.embedding, source.coefficients.shape, OPTIONS.level)
    texture = engine.encode_texture(source.images, source.masks)
    latents = engine.prepare_latents([torch.Generator().manual_seed(seed)])
    return replace(engine, callbacks=callbacks).paint(source, people, texture, latents, OPTIONS)[0].face


def test_faces_painted_in_the_middle_of_another_do_not_change_it(engine, source):
    alone = paint(engine, source, 0)

    def interrupt(step: int, t: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        paint(engine, source, 1)
        return latents

    torch.testing.assert_close(paint(engine, source, 0, Callbacks(on_step=interrupt)), alone, rtol=0, atol=0)


def test_people_drawn_in_the_middle_of_another_do_not_change_them():
    solver = DPMSolverMultistepScheduler(use_lu_lambdas=True)
    quiet = IdentitySampler(tiny_lds(), solver, torch.device("cpu"))
    noise = quiet.prepare_latents(3, torch.Generator().manual_seed(0))

    def interrupted(steps):
        for t in steps:
            quiet.sample(-noise, None, 4)
            yield t

    with torch.no_grad():
        alone, _ = quiet.sample(noise, None, 4)
        among, _ = IdentitySampler(quiet.lds, solver, quiet.device, interrupted).sample(noise, None, 4)
    torch.testing.assert_close(among, alone, rtol=0, atol=0)
