"""Behaviour of the whole pipeline, with tiny networks where structure matters and the released weights where results matter."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffdeid.engine.faces import MAX_ATTEMPTS
from diffdeid.errors import ConfigurationError, NoFaceFoundError
from diffdeid.geometry.boxes import bounding_box
from diffdeid.geometry.cover import silhouette
from diffdeid.geometry.mask import face_region
from diffdeid.geometry.pixels import to_bytes
from diffdeid.models.face_analyser import FaceAnalyserModel
from diffdeid.models.lds import LDSModel
from diffdeid.options import DeidentifyOptions
from diffdeid.pipelines.loading import precisions
from diffdeid.pipelines.pipeline_diffdeid import DiffDeIDPipeline
from diffdeid.stages import components
from diffdeid.stages.compose import lay_over_crops
from diffdeid.stages.identity import IdentitySampler, conditions_of, spread
from diffdeid.structures import Face, FaceJob, NewIdentity
from tests.tiny import perturb, tiny_pipeline

ROOT = Path(__file__).parents[2]
SOMEBODY = NewIdentity(torch.nn.functional.normalize(torch.ones(1, 128)), torch.zeros(1, 80), 7)


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    return np.asarray(Image.open(ROOT / "tests/assets/astronaut.png").convert("RGB"))


@pytest.fixture(scope="module")
def faces(photo) -> list[Face]:
    return FaceAnalyserModel.from_pretrained(ROOT / "weights/diffdeid", subfolder="face_analyser")(photo)


@pytest.fixture(scope="module")
def tiny():
    return tiny_pipeline()


@pytest.fixture
def run(tiny, photo, faces):
    """Calls the tiny pipeline on the photo; returns the first result and its only report."""

    def run(pipe=tiny, seed=0, **options):
        options = {"num_inference_steps": 2, "output_type": "np", "faces": faces} | options
        output = pipe(photo, generator=torch.Generator().manual_seed(seed), **options)
        return output.images[0], output.faces[0][0]

    return run


@torch.no_grad()
def reconstruct(pipe, photo, faces, others=()):
    return pipe.engine.reconstruct([FaceJob(photo, face, others) for face in faces], DeidentifyOptions())


def box_pixels(image: np.ndarray, face: Face) -> np.ndarray:
    x0, y0, x1, y1 = face.box.round().astype(int)
    return image[y0:y1, x0:x1]


def is_hidden(result: np.ndarray, photo: np.ndarray, face: Face) -> bool:
    """Whether a fill, which is smooth, is all that is left of a face."""
    same = (result == photo).all(-1)[silhouette(face, (0, 0), photo.shape[:2])]
    return same.mean() < 0.02


def test_pixels_outside_the_mask_are_untouched_and_the_face_is_not(run, photo, faces):
    result, report = run()
    changed = (result != photo).any(-1)
    x0, y0, x1, y1 = report.box
    rows, columns = np.nonzero(changed)
    assert report.method == "diffusion"
    assert columns.min() > x0 - 30 and columns.max() < x1 + 30 and rows.min() > y0 - 30 and rows.max() < y1 + 30
    assert (
        changed[
            int(y0 + 0.3 * (y1 - y0)) : int(y0 + 0.6 * (y1 - y0)), int(x0 + 0.2 * (x1 - x0)) : int(x1 - 0.2 * (x1 - x0))
        ].mean()
        > 0.99
    )


def test_the_input_is_not_written_to(run, photo):
    before = photo.copy()
    run()
    assert (photo == before).all()


def test_the_same_seed_gives_the_same_bytes_and_another_gives_other_people(run):
    assert (run(seed=1)[0] == run(seed=1)[0]).all()
    assert (run(seed=1)[0] != run(seed=2)[0]).any()


def test_without_a_generator_every_run_is_different(tiny, photo, faces):
    one, two = (tiny(photo, num_inference_steps=1, faces=faces, output_type="np").images[0] for _ in range(2))
    assert (one != two).any()


@pytest.mark.parametrize("count", [1, 3, 8])
def test_a_list_gives_what_singles_give(pipeline, photo, count):
    """Apart from one grey level: sums of convolutions depend on how many faces are in a batch."""
    pictures = [np.ascontiguousarray(np.roll(photo[:, :: (-1) ** number], 3 * number, 1)) for number in range(count)]
    options = {"num_inference_steps": 1, "output_type": "np", "attributes": "any"}
    together = pipeline(pictures, generator=[torch.Generator().manual_seed(seed) for seed in range(count)], **options)
    for seed, picture in enumerate(pictures):
        alone = pipeline(picture, generator=torch.Generator().manual_seed(seed), **options)
        assert np.abs(alone.images[0].astype(int) - together.images[seed]).max() <= 1
        assert alone.faces[0][0].attempts == together.faces[seed][0].attempts


def test_what_is_wrong_with_a_picture_of_a_list_is_said_of_that_picture(pipeline, photo):
    wall = np.full((64, 64, 3), 127, np.uint8)
    output = pipeline([wall, photo, "no picture"], num_inference_steps=1, output_type="np", generator=torch.Generator())
    assert output.images[0] is None and output.images[2] is None and (output.images[1] != photo).any()
    assert isinstance(output.errors[0], NoFaceFoundError) and output.errors[1] is None and output.errors[2] is not None
    assert [len(reports) for reports in output.faces] == [0, 1, 0]
    failed = pipeline([wall, wall], output_type="pt")
    assert failed.images == [None, None] and len(failed.errors) == 2


@torch.no_grad()
def test_pixels_under_the_mask_never_reach_the_network(tiny, photo, faces):
    engine, options = tiny.engine, DeidentifyOptions(num_inference_steps=2, keep_mouth=True)
    source = engine.reconstruct([FaceJob(photo, faces[0])], options)
    scribbled = replace(source, images=torch.where(source.masks > 0, torch.randn_like(source.images), source.images))

    def generate(faces):
        texture = engine.encode_texture(faces.images, faces.masks)
        latents = engine.prepare_latents([torch.Generator().manual_seed(0)])
        return engine.paint(faces, SOMEBODY, texture, latents, options)[0].face

    assert torch.equal(generate(source) * source.masks, generate(scribbled) * source.masks)


def test_the_kept_mouth_is_the_sources_and_an_erased_one_is_not(run, photo, faces):
    x, y = faces[0].landmarks[[13, 14], :2].mean(0).astype(int)
    kept, erased = run(keep_mouth=True)[0], run(keep_mouth=False)[0]
    assert (kept[y, x] == photo[y, x]).all() and (erased[y, x] != photo[y, x]).any()


def test_the_sampler_is_told_what_the_attributes_say(tiny, photo, faces, run, monkeypatch):
    told, sample = [], IdentitySampler.sample
    monkeypatch.setattr(
        IdentitySampler,
        "sample",
        lambda self, latents, conditions, *more: told.append(conditions) or sample(self, latents, conditions),
    )
    for attributes in ("any", "context", "source"):
        run(attributes=attributes)
    face = reconstruct(tiny, photo, faces)
    assert told[0] is None
    for row in told[1].split(1):
        torch.testing.assert_close(row, tiny.lds.conditions(face.context, face.coefficients), equal_nan=True)
    assert tiny.lds.tells_attributes(told[2]) and told[2][:, :-2].isnan().all()  # of K only the attributes are asked for
    seems = tiny.lds.conditions(attributes=tiny.lds.attributes(face.embedding))
    torch.testing.assert_close(told[-1], seems, equal_nan=True)


def test_the_erased_face_is_not_looked_at_to_choose_the_new_one(tiny, photo, faces):
    """Other pixels under the mask, or another source, give the same conditions, bit for bit, except expression and light."""
    scribbled = photo.copy()
    hull = face_region(faces[0].landmarks, photo.shape[:2]) > 0
    scribbled[hull] = np.random.default_rng(0).integers(0, 256, (hull.sum(), 3))
    one, two = (reconstruct(tiny, picture, faces) for picture in (photo, scribbled))
    assert torch.equal(one.context, two.context) and not torch.allclose(one.embedding, two.embedding)
    same = [conditions_of(tiny.lds, replace(face, coefficients=one.coefficients), "context")[0] for face in (one, two)]
    torch.testing.assert_close(*same, atol=0, rtol=0, equal_nan=True)


def test_who_somebody_is_does_not_change_who_is_drawn(photo, faces):
    """With another embedding, head shape and skin, but the same K and nobody refused, the same person is drawn."""
    tiny = tiny_pipeline()
    perturb(tiny.lds)
    source = reconstruct(tiny, photo, faces)
    albedo = source.coefficients.albedo.clone()
    albedo[:, tiny.morphable_model.config.num_tone :] += 1
    stranger = replace(
        source,
        embedding=torch.nn.functional.normalize(-source.embedding, dim=1),
        coefficients=replace(source.coefficients, shape=source.coefficients.shape + 1, albedo=albedo),
    )

    def drawn(face, attributes="context"):
        options = DeidentifyOptions(attributes=attributes)
        (casting,) = tiny.engine.castings(face, [torch.Generator().manual_seed(0)], options, [True])
        return casting.draw(face.embedding, 1, -1.0)

    one, two = drawn(source), drawn(stranger)
    assert torch.equal(one.embedding, two.embedding) and torch.equal(one.shape, two.shape)
    told = drawn(stranger, "source")
    assert not torch.equal(one.embedding, told.embedding)


def test_later_attempts_draw_people_who_vary_more(run, monkeypatch):
    told, vary = [], IdentitySampler.vary

    def watched(self, asked, by, *more):
        told.append((asked, by))
        return vary(self, asked, by, *more)

    monkeypatch.setattr(IdentitySampler, "vary", watched)
    monkeypatch.setattr(components, "verify", lambda *given: [(0.1, "too near")])
    assert run()[1].method == "fill"
    assert [by for _, by in told] == [spread(attempt, 0) for attempt in range(1, MAX_ATTEMPTS + 1)]
    assert all(asked is not None for asked, _ in told)


def test_an_lds_that_is_told_more_of_the_skin_than_its_tone_is_refused():
    pipe = tiny_pipeline()
    with pytest.raises(ConfigurationError, match="tone of the skin"):
        DiffDeIDPipeline(**pipe.components | {"lds": LDSModel(hidden_dim=16, num_layers=1, tone_dim=10)})


def test_other_faces_are_erased_from_the_surroundings(tiny, photo, faces):
    other = replace(faces[0], landmarks=faces[0].landmarks + np.float32([90, 0, 0]))  # beside the face
    scribbled = photo.copy()
    scribbled[face_region(other.landmarks, photo.shape[:2]) > 0] = 255
    seen = [reconstruct(tiny, picture, faces, [other]).context for picture in (photo, scribbled)]
    alone = reconstruct(tiny, photo, faces).context
    assert torch.equal(*seen) and not torch.equal(seen[0], alone)


def test_without_a_context_encoder_anybody_can_be_asked_for(run):
    pipe = tiny_pipeline(context_encoder=None)
    with pytest.raises(ConfigurationError, match="attributes='any'"):
        run(pipe)
    assert run(pipe, attributes="any")[1].method == "diffusion"


def test_a_face_that_nobody_is_far_enough_from_is_covered(run, photo, faces):
    result, report = run(tiny_pipeline(identity_limit=2.1))
    assert report.method == "fill" and "farther than 2.1" in report.reason and is_hidden(result, photo, faces[0])


def test_the_report_says_which_level_was_met(run):
    assert run(tiny_pipeline(identity_limit=0.95), level=10)[1].level < 10
    assert run(level=10)[1].level == 10


@pytest.mark.parametrize("fallback", ["fill", "solid", "mosaic", "blur"])
def test_a_face_that_stays_too_near_is_covered(photo, faces, fallback, run):
    result, report = run(tiny_pipeline(identity_limit=2.1), fallback=fallback, identity=(torch.eye(128)[:1], torch.zeros(1, 80)))
    assert (report.method, report.identity_distance, report.attempts) == (fallback, None, MAX_ATTEMPTS)
    assert "too near" in report.reason
    assert is_hidden(result, photo, faces[0])
    if fallback == "solid":
        assert (box_pixels(result, faces[0]) == 0).all()


def test_values_that_are_not_finite_are_covered(run, photo, faces):
    pipe = tiny_pipeline()
    torch.nn.init.constant_(pipe.unet.conv_out.bias, torch.nan)
    result, report = run(pipe)
    assert report.method == "fill" and "finite" in report.reason and is_hidden(result, photo, faces[0])


def test_a_face_without_landmarks_is_covered(run, photo, faces):
    result, report = run(faces=[replace(faces[0], landmarks=None)])
    assert report.method == "fill" and "landmarks" in report.reason and is_hidden(result, photo, faces[0])


def test_a_mouth_that_is_open_too_wide_is_covered_unless_it_stays(run, photo, faces):
    points = faces[0].landmarks.copy()
    points[14, 1] += 30  # the lower lip
    shouting = [replace(faces[0], landmarks=points)]
    result, report = run(faces=shouting)
    assert report.attempts == 0 and "mouth is open" in report.reason and is_hidden(result, photo, shouting[0])
    assert run(faces=shouting, keep_mouth=True)[1].method == "diffusion"


@pytest.mark.parametrize(("yaw", "method"), [(0.5, "diffusion"), (2.0, "fill")])
def test_a_head_that_is_turned_away_is_covered(run, yaw, method):
    coefficients = torch.zeros(1, 261)
    coefficients[:, 252] = yaw  # the second number of p
    _, report = run(coefficients=coefficients)
    assert report.method == method and (method == "diffusion" or "turned away" in report.reason)


def test_a_pet_is_covered(run, tiny, photo, faces, monkeypatch):
    monkeypatch.setattr(tiny.context_encoder, "pet", lambda images: torch.full((len(images),), 0.8))
    result, report = run()
    assert report.attempts == 0 and "pet" in report.reason and is_hidden(result, photo, faces[0])


def test_small_faces_are_covered_on_request(run):
    assert run(min_face=1000)[1].method == "fill" and run(min_face=10)[1].method == "diffusion"


def test_every_candidate_is_somebody_else(tiny, photo, faces):
    output = tiny(photo, num_images_per_prompt=3, num_inference_steps=1, faces=faces, output_type="np")
    assert len(output.images) == len(output.faces) == 3
    assert (output.images[0] != output.images[1]).any() and (output.images[1] != output.images[2]).any()


def test_no_face_is_an_error(pipeline):
    for picture in (Image.new("RGB", (1, 1)), Image.linear_gradient("L").convert("RGB")):
        with pytest.raises(NoFaceFoundError):
            pipeline(picture)


def test_output_types_agree(run, tiny, photo, faces):
    array = run()[0]
    assert (np.asarray(run(output_type="pil")[0]) == array).all()
    tensor = run(output_type="pt")[0]
    assert tensor.shape == (3, 512, 512) and ((tensor * 255).round().byte().permute(1, 2, 0).numpy() == array).all()
    images, reports = tiny(photo, faces=faces, num_inference_steps=1, return_dict=False)
    assert len(images) == len(reports) == 1


def test_the_callback_sees_and_may_change_every_step(run):
    seen = []

    def callback(pipe, step, timestep, tensors):
        seen.append((step, int(timestep)))
        return {"latents": torch.zeros_like(tensors["latents"])}

    run(callback_on_step_end=callback)
    assert seen == [(0, 999), (1, 499)]


def test_an_error_of_a_callback_is_the_users_and_covers_nothing(run):
    def callback(pipe, step, timestep, tensors):
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        run(callback_on_step_end=callback)


@torch.no_grad()
def test_landmarks_and_irises_of_a_result_are_nearer_to_the_conditions_than_those_that_were_painted(pipeline, photo, faces):
    """The network here paints two pixels aside; the released one may be nearer than the accuracy of landmarks."""
    engine, options = pipeline.engine, DeidentifyOptions(num_inference_steps=2)
    source = engine.reconstruct([FaceJob(photo, faces[0])], options)
    looking_aside = replace(source.coefficients, gaze=source.coefficients.gaze + torch.tensor([0.08, 0, 0.08, 0]))
    source = replace(source, coefficients=looking_aside)
    (casting,) = engine.castings(source, [torch.Generator().manual_seed(0)], options, [True])
    texture, latents = engine.encode_texture(source.images, source.masks), engine.prepare_latents([torch.Generator()])
    (painted,) = engine.paint(source, casting.draw(source.embedding, 7, engine.identity_limit), texture, latents, options)
    painted = replace(painted, face=painted.face.roll(2, dims=2))

    def errors(result: np.ndarray) -> tuple[float, float]:
        seen = pipeline.face_analyser(result, [Face(bounding_box(source.landmarks[0]))])[0]
        marks = np.concatenate([seen.landmarks[:, :2], seen.iris[:, 0]])
        distances = np.linalg.norm(marks - painted.marks, axis=1)
        return distances[:468].mean(), distances[468:].mean()

    unregistered = to_bytes(lay_over_crops(painted.face[None], source.images, source.depths)[0])[0].numpy()
    registered = engine.finish([painted], [source.embedding])[0].result
    for before, after in zip(errors(unregistered), errors(registered), strict=True):
        assert after < 0.75 * before


def test_the_precision_of_the_denoiser_changes_nothing_that_is_seen(pipeline, photo, faces):
    """This includes the noise, which torch would draw differently in each precision."""
    options = {"faces": faces, "num_inference_steps": 2, "output_type": "np"}
    mixed = DiffDeIDPipeline.from_pretrained(
        ROOT / "weights/diffdeid", dtype=precisions("cpu", torch.bfloat16), reconstructor=None
    )
    made, expected = (pipe(photo, generator=torch.Generator().manual_seed(0), **options) for pipe in (mixed, pipeline))
    difference = np.abs(made.images[0].astype(int) - expected.images[0])
    assert 0 < difference.max() < 12 and difference[difference.max(2) > 0].mean() < 1
    assert made.faces[0][0].identity_distance == pytest.approx(expected.faces[0][0].identity_distance, abs=0.02)


@pytest.mark.parametrize(
    ("units", "device", "expected"),
    [
        ({"avx512_bf16": True}, "cpu", torch.bfloat16),
        ({"avx512_bf16": False, "amx_bf16": True}, "cpu", torch.bfloat16),
        ({"avx512_bf16": False, "amx_bf16": False}, "cpu", torch.float32),
        ({"architecture": "arm64"}, "cpu", torch.float32),
        ({"avx512_bf16": True}, "mps", torch.float32),
        ({"cuda": True}, "cuda", torch.bfloat16),
        ({"cuda": True}, "cuda:1", torch.bfloat16),
        ({"cuda": False, "avx512_bf16": True}, "cuda", torch.float32),
    ],
)
def test_bfloat16_where_the_processor_is_made_for_it(monkeypatch, units, device, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: units, raising=False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: units["cuda"])
    assert precisions(device) == {"unet": expected, "refiner": expected, "default": torch.float32}


def test_guidance_changes_the_result(run):
    assert (run(guidance_scale=3.0)[0] != run()[0]).any()


def test_known_coefficients_replace_the_fit(run, tiny, photo, faces):
    fitted = reconstruct(tiny, photo, faces).coefficients.pack()
    assert (run(coefficients=fitted)[0] == run()[0]).all()
    assert (run(coefficients=fitted * 0.5)[0] != run()[0]).any()


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"level": 0}, "level"),
        ({"level": 11}, "level"),
        ({"level": 7.5}, "level"),
        ({"level": None}, "level"),
        ({"num_inference_steps": 1001}, "num_inference_steps"),
        ({"num_inference_steps": 2.5}, "num_inference_steps"),
        ({"keep_mouth": "no"}, "keep_mouth"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt"),
        ({"fallback": "nothing"}, "fallback"),
        ({"output_type": "latent"}, "output_type"),
        ({"callback_on_step_end_tensor_inputs": ["secrets"]}, "callback"),
    ],
)
def test_wrong_arguments_are_refused(tiny, photo, faces, options, word):
    with pytest.raises(ValueError, match=word):
        tiny(photo, faces=faces, **options)
    for known in (faces, [faces], {"faces": faces}):
        with pytest.raises(ValueError, match="each of the 2 pictures"):
            tiny([photo, photo], faces=known)
    with pytest.raises(ValueError, match="generator"):
        tiny([photo, photo], generator=[torch.Generator()])


def test_missing_parts_are_said(tiny, photo, faces):
    with pytest.raises(ConfigurationError, match="faces"):
        tiny(photo)
    components = tiny.components | {"lds": None}
    with pytest.raises(ConfigurationError, match="identity"):
        DiffDeIDPipeline(**components)(photo, faces=faces)
    somebody = SOMEBODY.embedding, SOMEBODY.shape
    with pytest.raises(ConfigurationError, match="identity"):  # also where it is missing for one picture of a list
        DiffDeIDPipeline(**components)([photo, photo], faces=[faces, faces], identity=[somebody, None])
    with pytest.raises(ConfigurationError, match="faces"):
        tiny([photo, photo])
    with pytest.raises(TypeError, match="unet"):
        DiffDeIDPipeline(**tiny.components | {"unet": tiny.texture_encoder})


def test_saving_and_loading_changes_nothing(tiny, run, tmp_path):
    """Apart from rounding: sums of small convolutions depend on where in memory the weights lie."""
    tiny.save_pretrained(tmp_path)
    loaded, again = (DiffDeIDPipeline.from_pretrained(tmp_path, use_safetensors=True) for _ in range(2))
    for pipe in (loaded, again):
        pipe.set_progress_bar_config(disable=True)
    assert (run(loaded)[0] == run(again)[0]).all()
    assert np.abs(run(loaded)[0].astype(int) - run()[0]).max() <= 1
    assert loaded.face_analyser is None and loaded.config.identity_limit == -1


def test_the_index_of_the_weights_is_frozen():
    """Moving or renaming a component breaks every published checkpoint."""
    index = json.loads((ROOT / "weights/diffdeid/model_index.json").read_text())
    assert {name: tuple(entry) for name, entry in index.items() if isinstance(entry, list)} == {
        "unet": ("diffdeid.models.unet", "DiffDeIDUNet2DModel"),
        "texture_encoder": ("diffdeid.models.texture_encoder", "TextureEncoderModel"),
        "scheduler": ("diffusers", "DPMSolverMultistepScheduler"),
        "morphable_model": ("diffdeid.models.morphable_model", "MorphableModel"),
        "face_recognition": ("diffdeid.models.face_recognition", "FaceRecognitionModel"),
        "face_analyser": ("diffdeid.models.face_analyser", "FaceAnalyserModel"),
        "reconstructor": ("diffdeid.models.face_reconstructor", "FaceReconstructorModel"),
        "lds": ("diffdeid.models.lds", "LDSModel"),
        "lds_scheduler": ("diffusers", "DPMSolverMultistepScheduler"),
        "context_encoder": ("diffdeid.models.context_encoder", "ContextEncoderModel"),
        "face_parser": ("diffdeid.models.face_parser", "FaceParserModel"),
        "hand_finder": ("diffdeid.models.hand_finder", "HandFinderModel"),
        "refiner": ("diffdeid.models.refiner", "RefinerModel"),
    }


def test_the_demo_photo_is_de_identified_with_the_shipped_weights(pipeline, photo):
    output = pipeline(photo, generator=torch.Generator().manual_seed(0), output_type="np")
    (report,) = output.faces[0]
    assert report.method == "diffusion" and report.identity_distance >= pipeline.config.identity_limit
    assert 0 < report.straying <= 1
    again = pipeline.face_analyser(output.images[0])
    assert len(again) == 1 and again[0].landmarks is not None
    moved = np.linalg.norm(again[0].landmarks[:, :2] - report.landmarks[:, :2], axis=1).mean()
    assert moved < 0.08 * (report.box[2] - report.box[0])  # pose and expression stay


def test_faces_turned_by_quarters_are_de_identified(pipeline, photo):
    for quarters in (1, 2, 3):
        picture = np.rot90(photo, quarters).copy()
        output = pipeline(picture, num_inference_steps=2, generator=torch.Generator().manual_seed(0), output_type="np")
        (report,) = output.faces[0]
        assert (
            box_pixels(output.images[0], Face(np.array(report.box))) != box_pixels(picture, Face(np.array(report.box)))
        ).mean() > 0.4


@torch.no_grad()
def test_faces_beyond_the_range_of_pictures_are_cut_to_it(pipeline, photo, faces):
    """Schedulers need not clip, and the seam takes logarithms."""
    engine, options = replace(pipeline.engine, face_analyser=None), DeidentifyOptions(num_inference_steps=1)
    source = engine.reconstruct([FaceJob(photo, faces[0])], options)
    texture, latents = engine.encode_texture(source.images, source.masks), engine.prepare_latents([torch.Generator()])
    (painted,) = engine.paint(source, NewIdentity(-source.embedding, source.coefficients.shape, 7), texture, latents, options)
    made = []
    for shift in (-1.3, 1.3):
        (attempt,) = engine.finish([replace(painted, face=painted.face + shift)], [source.embedding])
        assert attempt.identity_distance is not None
        made.append(attempt.patch.mean())
    assert made[0] < 40 < 215 < made[1]
