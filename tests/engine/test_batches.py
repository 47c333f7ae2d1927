"""A batch gives what its faces give alone, and tensors are copied to the host only by `on_host`."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.overrides import TorchFunctionMode

import diffdeid
from diffdeid import DeidentifyOptions, DiffDeIDVideoPipeline, FileOptions, VideoOptions
from diffdeid.batch import How, run
from diffdeid.detection import describe
from diffdeid.engine.faces import Engine
from diffdeid.face_lists import PictureList
from diffdeid.geometry import pixels
from diffdeid.models.face_analyser import FaceAnalyserModel
from diffdeid.planning import plan
from diffdeid.stages import components
from diffdeid.stages.identity import face_generators
from diffdeid.structures import FaceJob
from tests.conftest import ROOT
from tests.tiny import tiny_pipeline, tiny_refiner

PACKAGE = Path(diffdeid.__file__).parent
TO_HOST = {"cpu", "numpy", "item", "tolist", "__array__", "__bool__", "__int__", "__float__", "__index__"}
OPTIONS = DeidentifyOptions(num_inference_steps=2)


class HostCopies(TorchFunctionMode):
    """Records where our own code asks for the values of tensors, and how often `on_host` is called."""

    def __init__(self):
        super().__init__()
        self.elsewhere: list[str] = []
        self.count = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if getattr(function, "__name__", "") in TO_HOST:
            caller = sys._getframe(1)
            if caller.f_code is pixels.on_host.__code__:
                self.count += function.__name__ == "cpu"
            elif PACKAGE in Path(caller.f_code.co_filename).parents:
                self.elsewhere.append(f"{caller.f_code.co_filename}:{caller.f_lineno} {function.__name__}")
        return function(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def engine() -> Engine:
    analyser = FaceAnalyserModel.from_pretrained(ROOT / "weights/diffdeid", subfolder="face_analyser")
    return tiny_pipeline(face_analyser=analyser, refiner=tiny_refiner()).engine


@pytest.fixture(scope="module")
def jobs(engine, astronaut) -> list[FaceJob]:
    """The demo photo in three sizes."""
    photo = Image.open(astronaut).convert("RGB")
    pictures = [np.asarray(photo.resize((side, side))) for side in range(300, 420, 40)]
    found = [engine.face_analyser(picture) for picture in pictures]
    return [
        FaceJob(picture, faces[0], faces, [number]) for number, (picture, faces) in enumerate(zip(pictures, found, strict=True))
    ]


@torch.no_grad()
def go_round(engine: Engine, jobs: list[FaceJob]) -> list:
    """An attempt at each face, in one batch."""
    source = engine.reconstruct(jobs, OPTIONS, may_refine=True)
    generators = [face_generators(job.seeds[0]) for job in jobs]
    castings = engine.castings(source, [people for people, _ in generators], OPTIONS, [True] * len(jobs))
    people = [casting.draw(one[None], 1, -1.0) for casting, one in zip(castings, source.embedding, strict=True)]
    texture = engine.encode_texture(source.images, source.masks)
    noises = [noise for _, noise in generators]
    return engine.attempt(source, people, texture, noises, source.embedding.split(1), OPTIONS)


def test_a_batch_of_frames_gives_what_its_frames_give_alone(astronaut, monkeypatch):
    """Apart from rounding, as for photos (`test_a_list_gives_what_singles_give`); the filter passes it on.

    Sharpening would enlarge the rounding by three quarters, and does not know of batches.
    """
    monkeypatch.setattr(components, "sharpen", lambda faces, depths: faces)
    pipe = DiffDeIDVideoPipeline.from_pretrained(ROOT / "weights/diffdeid", reconstructor=None)
    photo = np.asarray(Image.open(astronaut).convert("RGB"))
    frames, made = [np.roll(photo, number, axis=1) for number in range(8)], {}
    for size in (1, 3, 8):
        monkeypatch.setattr(Engine, "batch_size", property(lambda _, size=size: size))
        options = {"generator": torch.Generator().manual_seed(0), "num_inference_steps": 1, "attributes": "any"}
        made[size] = np.stack(list(pipe.stream(frames, lookahead=8, **options))).astype(int)
    assert (made[1] != frames).any((1, 2, 3)).all()
    for size in (3, 8):  # sums of other sizes are rounded otherwise, which shows in few pixels
        apart = np.abs(made[1] - made[size])
        assert apart.max() <= 4 and (apart > 1).mean() < 1e-5


def test_no_stage_copies_to_the_host_except_where_it_says_so(engine, jobs):
    """An accelerator would wait at each copy. So there is one for each batch, except for people, who are drawn face by face."""
    counts = {}
    for number in (1, 3):
        with HostCopies() as copies:
            go_round(engine, jobs[:number])
        assert not copies.elsewhere
        counts[number] = copies.count
    per_face = 3  # seeds, which the host draws; whether K holds attributes; and who of those drawn is far enough
    assert counts[1] > per_face and counts[3] == counts[1] + 2 * per_face


def test_faces_of_several_photos_share_batches_and_look_as_they_do_alone(pipeline, astronaut, tmp_path, monkeypatch):
    """Those of two photos that are searched, and those of two that are listed."""
    portrait, known, sizes = Image.open(astronaut).convert("RGB").crop((100, 0, 356, 256)), {}, {}
    for number in range(4):
        portrait.crop((number, 0, 248 + number, 248)).save(tmp_path / f"{number}.png")
        if number >= 2:
            (face,) = pipeline.detect_faces(np.asarray(portrait.crop((number, 0, 248 + number, 248))))
            known[(tmp_path / f"{number}.png").resolve()] = PictureList((describe(face, 1, 0.7),))
    how = How(VideoOptions(num_inference_steps=1), FileOptions(), existing="replace", seed=3, verify=False)
    made = {}
    for most in (1, 4):
        monkeypatch.setattr(Engine, "mixed_batch_size", most)
        sizes[most] = []
        seen = pipeline.unet.register_forward_pre_hook(lambda _, given, most=most: sizes[most].append(len(given[0])))
        records = [
            record for one in run(lambda _: pipeline, plan([str(tmp_path)], None, 1), how, known, at_once=most) for record in one
        ]
        seen.remove()
        assert [record["status"] for record in records] == ["ok"] * 4
        made[most] = np.stack([np.asarray(Image.open(record["output"])).astype(int) for record in records])
    assert sizes == {1: [1] * 4, 4: [2] * 2}
    assert np.abs(made[1] - made[4]).max() <= 2
