"""What users of diffusers expect of any pipeline: our own small versions of its test suite (tests/conformance runs that one)."""

import importlib.util
import shutil

import accelerate
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from PIL import Image

from diffdeid import DiffDeIDPipeline, DiffDeIDVideoPipeline, LDSPipeline
from diffdeid.command_line import load
from diffdeid.errors import AssetNotFoundError
from diffdeid.models.face_analyser import FaceAnalyserModel
from diffdeid.models.face_reconstructor import FaceReconstructorModel
from diffdeid.structures import Face
from tests.conftest import ROOT
from tests.tiny import tiny_lds_pipeline, tiny_pipeline, tiny_refiner

IDENTITY = torch.nn.functional.normalize(torch.ones(1, 128)), torch.zeros(1, 80)


@pytest.fixture(scope="module")
def analyser() -> FaceAnalyserModel:
    return FaceAnalyserModel.from_pretrained(ROOT / "weights/diffdeid", subfolder="face_analyser")


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    return np.asarray(Image.open(ROOT / "tests/assets/astronaut.png").convert("RGB"))


@pytest.fixture(scope="module")
def faces(analyser, photo) -> list[Face]:
    return analyser(photo)


@pytest.fixture
def run(photo, faces):
    def run(pipe, image=None, faces=faces, **options):
        options = {"num_inference_steps": 1, "output_type": "pt", "generator": torch.Generator().manual_seed(0)} | options
        return pipe(photo if image is None else image, faces=faces, **options).images

    return run


@pytest.fixture
def three(analyser):
    """The three pipelines, each with a function that runs it."""
    pipe = tiny_pipeline(refiner=tiny_refiner())
    pipe.register_modules(face_analyser=analyser)
    video = DiffDeIDVideoPipeline.sharing(pipe)

    def picture(pipe, run, photo):
        return run(pipe, faces=None)

    def frames(pipe, run, photo):
        made = pipe.stream([photo] * 2, num_inference_steps=1, generator=torch.Generator().manual_seed(0))
        return torch.from_numpy(np.stack(list(made)))

    def identities(pipe, run, photo):
        return pipe(2, num_inference_steps=2, generator=torch.Generator().manual_seed(0)).identity

    return {"picture": (pipe, picture), "video": (video, frames), "lds": (tiny_lds_pipeline(), identities)}


def offloaded(pipe) -> dict[str, torch.nn.Module]:
    modules = {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
    return {name: module for name, module in modules.items() if name not in pipe._exclude_from_cpu_offload}


@pytest.mark.parametrize("kind", ["picture", "video", "lds"])
def test_offloading_whole_models_changes_nothing(three, kind, run, photo):
    pipe, make = three[kind]
    expected = make(pipe, run, photo)
    pipe.enable_model_cpu_offload(device="cpu")
    for _ in range(2):
        assert torch.equal(make(pipe, run, photo), expected)
        assert all(isinstance(module._hf_hook, accelerate.hooks.CpuOffload) for module in offloaded(pipe).values())


@pytest.mark.parametrize("kind", ["picture", "video", "lds"])
def test_offloading_module_by_module_changes_nothing(three, kind, run, photo):
    """Parts that are used outside `forward` would find their weights on the meta device."""
    pipe, make = three[kind]
    expected = make(pipe, run, photo)
    for module in offloaded(pipe).values():  # `enable_sequential_cpu_offload` itself cannot, to "cpu"
        accelerate.cpu_offload(module, torch.device("cpu"), offload_buffers=len(module._parameters) > 0)
    for _ in range(2):
        assert torch.equal(make(pipe, run, photo), expected)
        assert all(module.device.type == "meta" for module in offloaded(pipe).values())


def test_the_parts_of_an_offloading_sequence_exist():
    for cls, pipe in ((DiffDeIDPipeline, tiny_pipeline()), (LDSPipeline, tiny_lds_pipeline())):
        assert set(cls.model_cpu_offload_seq.split("->")) <= set(pipe.components)
        assert set(cls._exclude_from_cpu_offload) <= set(pipe.components)


def test_a_pipeline_loads_by_device_map(tmp_path, run):
    tiny_pipeline().save_pretrained(tmp_path)
    loaded, mapped = DiffDeIDPipeline.from_pretrained(tmp_path), DiffDeIDPipeline.from_pretrained(tmp_path, device_map="cpu")
    assert mapped.hf_device_map == "cpu" and torch.equal(run(loaded), run(mapped))


def test_every_part_loads_in_the_precision_asked_for(tmp_path, run):
    tiny_pipeline().save_pretrained(tmp_path)
    pipe = DiffDeIDPipeline.from_pretrained(tmp_path, dtype={"unet": torch.bfloat16, "default": torch.float32})
    modules = {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
    assert {name for name, module in modules.items() if module.dtype == torch.bfloat16} == {"unet"}
    mixed = run(pipe)
    pipe.to(dtype=torch.bfloat16)
    assert {module.dtype for module in modules.values()} == {torch.bfloat16}
    for made in (mixed, run(pipe)):
        assert made.shape == (1, 3, 512, 512) and made.isfinite().all()


def test_the_three_pipelines_share_their_parts():
    pipe = tiny_pipeline()
    for video in (DiffDeIDVideoPipeline(**pipe.components), DiffDeIDVideoPipeline.sharing(pipe)):
        assert all(video.components[name] is part for name, part in pipe.components.items())
    sampler = LDSPipeline(pipe.components["lds"], pipe.components["lds_scheduler"])
    assert sampler.lds is pipe.identity_sampler.lds is pipe.lds
    again = DiffDeIDPipeline.from_pipe(pipe)
    assert again.unet is pipe.unet and again.config.identity_limit == pipe.config.identity_limit
    swapped = DiffDeIDPipeline.from_pipe(pipe, scheduler=DDIMScheduler.from_config(pipe.scheduler.config))
    assert swapped.scheduler is not pipe.scheduler and swapped.unet is pipe.unet


def test_variants_are_saved_loaded_and_missed(tmp_path):
    pipe = tiny_pipeline()
    pipe.save_pretrained(tmp_path, variant="fp16")
    loaded = DiffDeIDPipeline.from_pretrained(tmp_path, variant="fp16")
    assert all(torch.equal(tensor, loaded.unet.state_dict()[name]) for name, tensor in pipe.unet.state_dict().items())
    with pytest.raises((OSError, ValueError), match="bf16"):
        DiffDeIDPipeline.from_pretrained(tmp_path, variant="bf16")


def test_pickles_load_from_own_folders_unless_refused(tmp_path):
    tiny_pipeline().save_pretrained(tmp_path, safe_serialization=False)
    assert (tmp_path / "unet/diffusion_pytorch_model.bin").exists()
    DiffDeIDPipeline.from_pretrained(tmp_path)
    with pytest.raises(OSError, match="safetensors"):
        DiffDeIDPipeline.from_pretrained(tmp_path, use_safetensors=True)


def test_what_is_known_of_pictures_goes_with_each(run, photo, faces):
    pipe = tiny_pipeline()
    other = np.ascontiguousarray(photo[:384])
    people = [IDENTITY, (-IDENTITY[0], IDENTITY[1])]
    seeds = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    together = run(pipe, [photo, other], [faces, faces], identity=people, generator=seeds)
    assert [tuple(image.shape) for image in together] == [(3, 512, 512), (3, 384, 512)]
    for image, identity, seed, made in zip((photo, other), people, (0, 1), together, strict=True):
        alone = run(pipe, image, faces, identity=identity, generator=torch.Generator().manual_seed(seed))
        assert (alone[0] - made).abs().max() < 4 / 255  # some processors round sums over batches otherwise


def test_tensors_of_one_size_come_as_one(run, photo, faces):
    assert run(tiny_pipeline(), [photo, photo], [faces, faces], num_images_per_prompt=2).shape == (4, 3, 512, 512)


def test_the_tuple_holds_what_the_output_holds(photo, faces):
    pipe, options = tiny_pipeline(), {"faces": faces, "num_inference_steps": 1, "output_type": "pt"}
    output = pipe(photo, generator=torch.Generator().manual_seed(0), **options)
    images, reports = pipe(photo, generator=torch.Generator().manual_seed(0), return_dict=False, **options)
    assert torch.equal(output[0], images) and [face.method for face in output.faces[0]] == [face.method for face in reports[0]]


def test_guidance_can_change_at_every_step(run):
    pipe = tiny_pipeline()

    def stronger(pipe, step, timestep, tensors):
        pipe._guidance_scale += 1
        return tensors

    run(pipe, guidance_scale=2.0, num_inference_steps=3, callback_on_step_end=stronger)
    assert pipe.guidance_scale == 2 + pipe.num_timesteps == 5


@pytest.mark.skipif(importlib.util.find_spec("xformers") is not None, reason="xformers is here")
def test_xformers_is_said_to_be_missing():
    with pytest.raises(ModuleNotFoundError, match="xformers"):
        tiny_pipeline().enable_xformers_memory_efficient_attention()


def test_only_the_reconstructor_may_be_missing_from_a_folder(tmp_path):
    """Packages come without it."""
    tiny_pipeline(reconstructor=FaceReconstructorModel(32, None, 8, hidden_sizes=(8, 16), depths=(1, 1))).save_pretrained(
        tmp_path
    )
    assert DiffDeIDPipeline.from_pretrained(tmp_path).reconstructor is not None
    (tmp_path / "reconstructor/config.json").unlink()
    with pytest.raises(OSError, match="reconstructor"):  # there, and not whole
        DiffDeIDPipeline.from_pretrained(tmp_path)
    shutil.rmtree(tmp_path / "reconstructor")
    for kind in (DiffDeIDPipeline, DiffDeIDVideoPipeline):
        assert kind.from_pretrained(tmp_path).reconstructor is None
    with pytest.raises(AssetNotFoundError, match="packages come without it"):
        load(str(tmp_path), "cpu", "float32", "network")
    for name in ("lds", "context_encoder"):
        (tmp_path / name).rename(tmp_path / "elsewhere")
        with pytest.raises(OSError, match=f"{tmp_path.name}|{name}"):
            DiffDeIDPipeline.from_pretrained(tmp_path)
        (tmp_path / "elsewhere").rename(tmp_path / name)
