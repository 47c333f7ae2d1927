"""Planted leaks are found, noise is not."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from diffdeid.engine.faces import Engine
from diffdeid.engine.pictures import draw_seeds
from diffdeid.evaluation import attacks
from diffdeid.io.images import read_image
from diffdeid.models.face_analyser import FaceAnalyserModel
from diffdeid.options import DeidentifyOptions
from diffdeid.pipelines.pipeline_diffdeid import DiffDeIDPipeline
from diffdeid.stages.identity import Casting, face_generators
from diffdeid.structures import FaceJob, NewIdentity
from tests.conftest import ROOT
from tests.tiny import perturb, tiny_pipeline

SIZE = 32


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def noise(rng, *shape):
    """Unit vectors `(*shape, SIZE)`."""
    return unit(rng.normal(size=(*shape, SIZE)))


@pytest.fixture(params=[0, 1])
def rng(request):
    return np.random.default_rng(request.param)


def names(count):
    return [f"{number:03}" for number in range(count)]


def alarms(metrics):
    return [metric.alarm for metric in metrics]


@pytest.mark.parametrize("leak", [0.0, 0.6])
def test_the_parrot_learns_what_stays_of_a_person_and_nothing_from_noise(rng, leak):
    people, kept = names(40), noise(rng, 40)
    train = unit(noise(rng, 40, 4) + leak * kept[:, None]).reshape(-1, SIZE)
    test = unit(noise(rng, 40) + leak * kept)
    metrics = attacks.parrot(train, np.repeat(people, 4), test, people, "x")
    assert alarms(metrics) == [leak > 0] * 2 and [m.name for m in metrics] == ["parrot rank-1 [x]", "parrot AUC [x]"]
    assert metrics[0].chance == pytest.approx(1 / 40, abs=0.01) and metrics[1].chance == pytest.approx(0.5, abs=0.02)


def test_the_parrot_leaves_out_people_whom_it_was_not_trained_on(rng):
    kept = noise(rng, 10)
    metrics = attacks.parrot(kept[:6], names(6), kept, names(10), "x")
    assert metrics[0].value == 1


@pytest.mark.parametrize("leak", [0.0, 1.5])
def test_pictures_of_one_person_are_linked_by_what_they_share(rng, leak):
    kept = noise(rng, 40)
    metrics = attacks.linkability(*(unit(noise(rng, 40) + leak * kept) for _ in range(2)), names(40), "x")
    assert alarms(metrics) == [leak > 0] * 2
    low, high = metrics[0].interval
    assert low <= metrics[0].value <= high


def test_alarms_are_false_in_few_of_the_cases_where_nothing_leaks():
    """Photos of one person may share something that other photos of the person do not have: no reason for an alarm."""
    raised = []
    for rng in map(np.random.default_rng, range(15)):
        first = unit(noise(rng, 30) + np.tile(noise(rng, 15), (2, 1)))
        raised += alarms(attacks.linkability(first, noise(rng, 30), names(15) * 2, "x"))
    assert np.mean(raised) < 0.1


@pytest.mark.parametrize("sign", [-1, 1])
def test_averaging_finds_who_is_near_and_who_is_avoided(rng, sign):
    gallery = noise(rng, 40)
    candidates = unit(noise(rng, 40, 20) + sign * 0.4 * gallery[:, None])
    one, many = (attacks.averaging(candidates[:, :m], names(40), gallery, names(40), "x") for m in (1, 20))
    assert alarms(many) == [True, True] and many[0].value > 0.9 > 0.7 > one[0].value


def test_averaging_finds_who_is_always_equally_far(rng):
    """The mean of the versions tells nothing, their distances do."""
    gallery, candidates = noise(rng, 40), noise(rng, 40, 20)
    candidates = unit(candidates - (candidates @ gallery[:, :, None]) * gallery[:, None])
    metrics = attacks.averaging(candidates, names(40), gallery, names(40), "x")
    assert metrics[0].value > 0.9 and alarms(metrics) == [True, True]


def test_averaging_of_noise_is_chance_though_the_best_of_three_counts(rng):
    metrics = attacks.averaging(noise(rng, 40, 5), names(40), noise(rng, 60), names(60), "x")
    assert alarms(metrics) == [False, False] and 0.5 < metrics[1].chance < 0.6


def first_beyond(bound, drawn, source):
    """The pipeline's choice: the first identity of `(n, d)` beyond a bound."""
    return drawn[(1 - drawn @ source >= bound).argmax()]


@pytest.mark.parametrize(("bound", "leaks"), [(0.0, False), (1.1, True)])
def test_a_bound_that_refuses_many_is_an_alarm_and_one_that_refuses_few_is_not(rng, bound, leaks):
    """Results show their identity perfectly; in 128 dimensions strangers are at distances of 1 ± 0.09."""
    gallery, drawn = noise(rng, 40), noise(rng, 40, 5, 60)
    candidates = np.stack(
        [[first_beyond(bound, row, source) for row in rows] for rows, source in zip(drawn, gallery, strict=True)]
    )
    assert alarms(attacks.averaging(candidates, names(40), gallery, names(40), "x")) == [leaks, leaks]


def smooth(count, seed):
    coarse = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    crops = torch.nn.functional.interpolate(coarse, size=(32, 32), mode="bicubic").clamp(0, 1)
    return (crops * 255).byte().permute(0, 2, 3, 1).numpy()


def error(crops, sources):
    return np.abs(crops.astype(float) - sources).mean()


@pytest.mark.parametrize(
    "hide", [lambda crops: 255 - crops, lambda crops: np.roll(crops, 4, axis=1)], ids=["inverted", "shifted"]
)
def test_what_can_be_undone_is_undone(hide):
    train, sources = smooth(64, 0), smooth(8, 1)
    undone = attacks.reconstruct(hide(train), train, hide(sources), steps=40)
    assert undone.dtype == np.uint8 and error(undone, sources) < 0.5 * error(hide(sources), sources)


def test_reconstruction_depends_on_the_seed_alone():
    train, results = smooth(8, 0), smooth(2, 1)
    torch.manual_seed(5)
    one = attacks.reconstruct(train, 255 - train, results, steps=3, seed=1)
    torch.manual_seed(6)
    assert (attacks.reconstruct(train, 255 - train, results, steps=3, seed=1) == one).all()
    assert (attacks.reconstruct(train, 255 - train, results, steps=3, seed=2) != one).any()


def test_black_gives_nothing_back():
    train, sources = smooth(40, 0), smooth(12, 1)

    def embed(crop):
        vector = crop[::8, ::8].ravel() - 127.5
        return vector / np.linalg.norm(vector)

    gallery = np.stack([embed(crop) for crop in sources])
    undone = attacks.reconstruct(np.zeros_like(train), train, np.zeros_like(sources), steps=10)
    metrics = attacks.reidentification(
        np.stack([embed(crop) for crop in undone]), names(12), gallery, names(12), "reconstruction", "x"
    )
    assert alarms(metrics) == [False, False] and metrics[0].value == pytest.approx(1 / 12) and metrics[1].value == 0.5
    metrics = attacks.reidentification(
        np.stack([embed(crop) for crop in sources]), names(12), gallery, names(12), "reconstruction", "x"
    )
    assert alarms(metrics) == [True, True] and metrics[0].name == "reconstruction rank-1 [x]"


@pytest.fixture(scope="module")
def source(astronaut):
    """A face as the pipeline sees it."""
    picture = np.asarray(read_image(astronaut).image)
    face = FaceAnalyserModel.from_pretrained(ROOT / "weights/diffdeid", subfolder="face_analyser")(picture)[0]
    with torch.no_grad():
        return tiny_pipeline().engine.reconstruct([FaceJob(picture, face)], DeidentifyOptions())


def drawn(pipe, sources, seeds, attempts, level, attributes):
    """z' of the last of the attempts, as the pipeline makes them of the first face of a picture."""
    chosen, engine = [], pipe.engine
    for source, seed, count in zip(sources, seeds, attempts, strict=True):
        (seed,) = draw_seeds(torch.Generator().manual_seed(seed), 1)
        people, noise = face_generators(seed)
        (casting,) = engine.castings(source, [people], DeidentifyOptions(attributes=attributes), [True])
        for attempt in range(1, count + 1):
            identity = casting.draw(source.embedding, level, engine.identity_limit, attempt=attempt)
            engine.prepare_latents([noise])
        chosen.append(identity.embedding[0].numpy())
    return np.stack(chosen)


@pytest.mark.parametrize("attributes", ["context", "source"])
def test_replaying_the_seed_finds_for_whom_an_identity_was_chosen(source, attributes):
    pipe, rng = tiny_pipeline(identity_limit=0.85), np.random.default_rng(0)  # refuses a lot
    perturb(pipe.lds)
    gallery = unit(rng.normal(size=(12, 128)))
    sources = [replace(source, embedding=torch.from_numpy(one).float()[None]) for one in gallery]
    seeds, attempts = range(12), [1] * 11 + [2]
    observed = unit(drawn(pipe, sources, seeds, attempts, 7, attributes) + 0.3 * unit(rng.normal(size=(12, 128))))
    options = DeidentifyOptions(attributes=attributes)
    arguments = observed, names(12), gallery, names(12), "x"
    right = attacks.replay(pipe, sources, seeds, attempts, options, *arguments)
    assert alarms(right)[1] and right[1].value > 0.7
    wrong = attacks.replay(pipe, sources, range(100, 112), [1] * 12, options, *arguments)
    assert wrong[1].value < right[1].value - 0.1


@torch.no_grad()
@pytest.mark.parametrize("attributes", ["context", "any", "source"])
@pytest.mark.parametrize("attempts", [1, 3])
def test_the_replay_draws_whom_the_pipeline_draws(astronaut, source, monkeypatch, attributes, attempts):
    """If other draws got in between, the attack would be void, and nobody would see it."""
    pipe, limit = tiny_pipeline(identity_limit=0.5), 0.5
    perturb(pipe.lds)
    taken = []
    finish = Engine.finish

    def failing(self, painted, against):
        (attempt,) = finish(self, painted, against)
        return [replace(attempt, problem=None if len(taken) == attempts else "too near")]

    draw = Casting.draw
    monkeypatch.setattr(Casting, "draw", lambda self, *given, **named: taken.append(draw(self, *given, **named)) or taken[-1])
    monkeypatch.setattr(Engine, "finish", failing)
    picture = np.asarray(read_image(astronaut).image)
    face = FaceAnalyserModel.from_pretrained(ROOT / "weights/diffdeid", subfolder="face_analyser")(picture)
    options = {"num_inference_steps": 1, "level": 1, "attributes": attributes}
    output = pipe(picture, faces=face, generator=torch.Generator().manual_seed(3), **options)
    assert output.faces[0][0].attempts == attempts == len(taken)
    replayed, usable = attacks._drawn(pipe.engine, source, DeidentifyOptions(attributes=attributes), 3, attempts)
    beyond = usable & (1 - replayed @ source.embedding[0] >= limit)
    np.testing.assert_allclose(replayed[beyond][0], taken[-1].embedding[0], atol=1e-5)


def test_inversion_gives_a_face_in_place_of_the_result(astronaut):
    tiny = tiny_pipeline()
    picture = np.asarray(read_image(astronaut).image)
    face = FaceAnalyserModel.from_pretrained(ROOT / "weights/diffdeid", subfolder="face_analyser")(picture)[0]
    one, two = (attacks.invert(tiny, picture, face, num_inference_steps=2) for _ in range(2))
    crop = tiny.engine.crop(picture, face).image
    assert one.shape == crop.shape and one.dtype == np.uint8 and (one == two).all()
    assert (one[16, 16] != crop[16, 16]).any() and (one[0] == crop[0]).all()


@torch.no_grad()
def test_inversion_finds_the_noise(astronaut):
    """Forwards as the same person, it gives the same person; otherwise the attack would be void, and nobody would see it."""
    pipe = DiffDeIDPipeline.from_pretrained(ROOT / "weights/diffdeid", reconstructor=None)
    pipe.set_progress_bar_config(disable=True)
    picture, options = np.asarray(read_image(astronaut).image), DeidentifyOptions(num_inference_steps=50, attributes="any")
    (face,) = pipe.detect_faces(picture)
    source = pipe.engine.reconstruct([FaceJob(picture, face)], options)
    himself = NewIdentity(source.embedding, source.coefficients.shape, options.level)
    again = attacks.there_and_back(pipe.engine, source, (himself, himself), options)
    assert again.isfinite().all()
    assert (pipe.engine.embed(again.clamp(-1, 1), source.landmarks) @ source.embedding.T).item() > 0.6
