import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from diffdeid.errors import ConfigurationError, NoIdentityFoundError
from diffdeid.models.lds import LDSModel, LDSOutput
from diffdeid.pipelines.pipeline_lds import AVERAGED, DRAWS, LDSPipeline, least_distance, spread
from tests.tiny import perturb, tiny_lds, tiny_lds_pipeline, tiny_unet

STEPS = {"num_inference_steps": 3}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def pipeline():
    return tiny_lds_pipeline()


def test_identities_are_unit_vectors_with_a_shape(pipeline):
    identity, shape = pipeline(4, generator=seeded(), return_dict=False, **STEPS)
    assert identity.shape == (4, 128)
    assert shape.shape == (4, 80)
    torch.testing.assert_close(identity.norm(dim=1), torch.ones(4))


def test_the_same_generator_gives_the_same_identities(pipeline):
    first, again, other = (pipeline(3, generator=seeded(seed), **STEPS) for seed in (0, 0, 1))
    assert torch.equal(first.identity, again.identity)
    assert torch.equal(first.shape, again.shape)
    assert not torch.allclose(first.identity, other.identity)


def test_statistics_are_undone(pipeline):
    plain = pipeline(2, generator=seeded(), **STEPS)
    pipeline.lds.std.fill_(2.0)
    pipeline.lds.mean[128:] = 5.0
    scaled = pipeline(2, generator=seeded(), **STEPS)
    torch.testing.assert_close(scaled.shape, plain.shape * 2 + 5)
    torch.testing.assert_close(scaled.identity, plain.identity)


def test_near_identities_are_refused_and_sampled_again(pipeline):
    refused = pipeline(4, generator=seeded(), **STEPS).identity[:2]
    identity = pipeline(4, away_from=refused, min_distance=0.7, generator=seeded(), **STEPS).identity
    assert identity.shape == (4, 128)
    assert (1 - identity @ refused.T).min() >= 0.7


def test_people_who_would_leave_ghosts_are_sampled_again(pipeline):
    pipeline.lds.ghost_directions[1, 0] = 1  # half of all people, then
    before = pipeline(16, generator=seeded(), **STEPS).identity
    pipeline.lds.ghost_limits[1] = before[:, 0].median()
    after = pipeline(16, generator=seeded(), **STEPS).identity
    assert len(after) == 16 and not pipeline.lds.leaves_ghosts(after).any()
    torch.testing.assert_close(after[:4], before[~pipeline.lds.leaves_ghosts(before)][:4])


def test_heads_that_nobody_has_are_sampled_again(pipeline):
    before = pipeline(16, generator=seeded(), **STEPS).shape
    pipeline.lds.shape_limit.copy_(before.square().mean(1).sqrt().median())
    after = pipeline(16, generator=seeded(), **STEPS)
    assert len(after.shape) == 16 and pipeline.lds.is_usual(after.shape).all() and not pipeline.lds.is_usual(before).all()
    chosen = pipeline.draw(unit(1, 128, seed=7), 1, 0.5, num_inference_steps=3, generator=seeded())
    assert pipeline.lds.is_usual(chosen.shape).all()


def test_impossible_distances_end_in_an_error(pipeline):
    with pytest.raises(NoIdentityFoundError, match="Only 0 of 2"):
        pipeline(2, away_from=torch.eye(128)[:1], min_distance=2.0, generator=seeded(), **STEPS)


def test_a_perfect_predictor_returns_the_clean_vector(pipeline):
    target = torch.randn(2, 208, generator=seeded(1))
    alphas = pipeline.scheduler.alphas_cumprod

    def perfect(sample, timestep):
        alpha = alphas[timestep]
        return LDSOutput(sample=(sample - alpha.sqrt() * target) / (1 - alpha).sqrt())

    pipeline.lds.forward = perfect
    latents = torch.randn(2, 208, generator=seeded())
    torch.testing.assert_close(pipeline.denoise(latents, 50), target, atol=1e-3, rtol=0)


def test_identities_follow_the_conditions(pipeline):
    perturb(pipeline.lds)
    told = [pipeline.lds.conditions(context) for context in (torch.ones(1, 128), -torch.ones(1, 128))]
    anybody, one, other = (
        pipeline(3, conditions=conditions, generator=seeded(), **STEPS).identity for conditions in (None, *told)
    )
    assert not any(torch.allclose(x, y) for x, y in ((anybody, one), (one, other), (anybody, other)))


def test_a_person_is_the_same_alone_and_among_others(pipeline):
    perturb(pipeline.lds)
    latents, conditions = pipeline.prepare_latents(4, seeded()), pipeline.lds.conditions(torch.ones(1, 128))
    together, _ = pipeline.sample(latents, conditions, 3)
    torch.testing.assert_close(together, torch.cat([pipeline.sample(one, conditions, 3)[0] for one in latents.split(1)]))


def test_of_those_who_fit_the_average_attributes_are_asked_for(pipeline):
    """And nothing else of K; who is told attributes or nothing keeps these."""
    perturb(pipeline.lds)
    conditions = pipeline.lds.conditions(torch.ones(1, 128))
    asked = pipeline.expect(conditions, seeded(), 3)
    fitting, _ = pipeline.sample(pipeline.prepare_latents(AVERAGED, seeded()), conditions, 3)
    attributes = pipeline.lds.attributes(fitting)  # sex and age
    female = attributes[:, 0] > 0
    assert AVERAGED / 2 < female.sum() < AVERAGED
    torch.testing.assert_close(asked[0, -2:], attributes[female].mean(0))
    assert asked[:, :-2].isnan().all()
    told = pipeline.lds.conditions(attributes=torch.zeros(1, 2))
    assert pipeline.expect(told, seeded(), 3) is told and pipeline.expect(None, seeded(), 3) is None


@pytest.mark.parametrize(
    ("female", "child", "kept"),
    [
        ([2, 1, 1, -3], [0, 0, 0, 0], [0, 1, 2]),  # most are women
        ([2, -1, -1, -3], [0, 0, 0, 0], [1, 2, 3]),  # most are men
        ([2, 1, -1, -3], [0, 0, 0, 0], [2, 3]),  # a tie is a no
        ([1, 1, 1, 1], [2.0, 1.5, 3.0, 0.9], [0, 1, 2]),  # most are children, who have more than 1
        ([1, 1, 1, 1], [0.9, 0.8, 3.0, 0.7], [0, 1, 3]),
    ],
)
def test_the_majority_decides_on_sex_and_childhood(pipeline, monkeypatch, female, child, kept):
    lds = LDSModel(hidden_dim=16, num_layers=1, attribute_names=("child", "female"))
    lds.attribute_directions[0, 0] = lds.attribute_directions[1, 1] = 1
    people = torch.zeros(4, 128)
    people[:, 0], people[:, 1] = torch.tensor(child), torch.tensor(female)
    pipeline.register_modules(lds=lds)
    monkeypatch.setattr(LDSPipeline, "sample", lambda self, *arguments: (people, None))
    asked = pipeline.expect(lds.conditions(torch.zeros(1, 128)), seeded())
    torch.testing.assert_close(asked[0, -2:], people[kept, :2].mean(0))


def test_people_are_drawn_by_the_average_of_those_who_fit(pipeline):
    perturb(pipeline.lds)
    conditions, generator = pipeline.lds.conditions(torch.ones(1, 128)), seeded()
    asked = pipeline.expect(conditions, generator, 3)
    first = pipeline.sample(pipeline.prepare_latents(DRAWS, generator), asked, 3)[0][:1]
    chosen = pipeline.draw(-first, 1, 0.0, conditions, num_inference_steps=3, generator=seeded())
    torch.testing.assert_close(chosen.embedding, first)


@pytest.mark.parametrize("conditions", [torch.zeros(3), torch.zeros(2, 230)])
def test_wrong_conditions_are_explained(pipeline, conditions):
    with pytest.raises(ValueError, match=r"`conditions` must be \(1, 230\)"):
        pipeline(conditions=conditions, **STEPS)


def test_pipeline_survives_saving(pipeline, tmp_path):
    perturb(pipeline.lds)
    pipeline.save_pretrained(tmp_path)
    loaded = LDSPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    expected = pipeline(generator=seeded(), **STEPS).identity
    torch.testing.assert_close(loaded(generator=seeded(), **STEPS).identity, expected)


def test_wrong_components_are_refused():
    scheduler = DDIMScheduler(clip_sample=False)
    with pytest.raises(TypeError, match="`lds` must be a `LDSModel`"):
        LDSPipeline(tiny_unet(), scheduler)
    with pytest.raises(TypeError, match="`scheduler`"):
        LDSPipeline(tiny_lds(), None)
    with pytest.raises(ConfigurationError, match="clip_sample"):
        LDSPipeline(tiny_lds(), DDIMScheduler())


def test_other_schedulers_work():
    pipeline = LDSPipeline(tiny_lds(), DDPMScheduler(clip_sample=False))
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline(**STEPS).identity.isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_identities": 0}, "`num_identities`"),
        ({"min_distance": 0.5}, "belong together"),
        ({"away_from": torch.zeros(128), "min_distance": 0.5}, "`away_from` must be"),
    ],
)
def test_wrong_arguments_are_explained(pipeline, arguments, message):
    with pytest.raises(ValueError, match=message):
        pipeline(**arguments)


def unit(*shape, seed=0):
    return torch.nn.functional.normalize(torch.randn(*shape, generator=seeded(seed)), dim=-1)


def test_bounds_rise_from_the_limit():
    bounds = [least_distance(level, 0.4) for level in range(1, 11)]
    assert bounds[0] == 0.4 and bounds == sorted(set(bounds))
    for level in (0, 11):
        with pytest.raises(ValueError, match="between 1 and 10"):
            least_distance(level, 0.4)


def test_the_first_draw_beyond_the_bound_is_taken(pipeline):
    source, limit = unit(1, 128, seed=7), 0.9
    drawn, _ = pipeline.sample(pipeline.prepare_latents(DRAWS, seeded()), None, 3)
    distances = (1 - drawn @ source.T)[:, 0]
    for level in (1, 3, 4):
        bound = least_distance(level, limit)
        chosen = pipeline.draw(source, level, limit, num_inference_steps=3, generator=seeded())
        assert chosen.level == level
        torch.testing.assert_close(chosen.embedding[0], drawn[distances >= bound][0])


def test_whom_the_source_does_not_refuse_it_does_not_change(pipeline):
    """The same person for all sources that are far from the first who is drawn: the choice is blind."""
    first = pipeline.sample(pipeline.prepare_latents(DRAWS, seeded()), None, 3)[0][:1]
    sources = [source for source in unit(50, 1, 128) if 1 - source @ first.T > 0.9]
    chosen = [pipeline.draw(source, 1, 0.9, num_inference_steps=3, generator=seeded()).embedding for source in sources]
    assert len(sources) > 10 and all(torch.allclose(embedding, first, atol=1e-5) for embedding in chosen)


def test_distances_rise_with_the_level(pipeline):
    source = unit(1, 128, seed=7)
    chosen = [pipeline.draw(source, level, 0.8, num_inference_steps=3, generator=seeded()) for level in range(1, 11)]
    distances = [1 - (identity.embedding @ source.T).item() for identity in chosen]
    assert distances == sorted(distances) and distances[-1] > distances[0]
    assert all(distance >= least_distance(identity.level, 0.8) for distance, identity in zip(distances, chosen, strict=True))


def test_a_bound_that_nobody_meets_is_lowered_and_says_so(pipeline):
    source = unit(1, 128, seed=7)
    chosen = pipeline.draw(source, 10, 1.0, num_inference_steps=3, generator=seeded())
    assert 1 <= chosen.level < 10
    assert 1 - chosen.embedding @ source.T >= least_distance(chosen.level, 1.0)


def test_a_margin_counts_also_where_the_bound_is_lowered(pipeline):
    source = unit(1, 128, seed=7)
    drawn, _ = pipeline.sample(pipeline.prepare_latents(DRAWS, seeded()), None, 3)
    distances = (1 - drawn @ source.T)[:, 0]
    limit = distances.sort().values[3].item() - 0.1
    without = pipeline.draw(source, 1, limit, num_inference_steps=3, generator=seeded())
    beyond = pipeline.draw(source, 1, limit, num_inference_steps=3, generator=seeded(), margin=0.1)
    torch.testing.assert_close(without.embedding[0], drawn[distances >= limit][0])
    torch.testing.assert_close(beyond.embedding[0], drawn[distances >= limit + 0.1 - 1e-6][0])


def test_all_embeddings_of_the_source_and_other_people_count(pipeline):
    near = pipeline.sample(pipeline.prepare_latents(DRAWS, seeded()), None, 3)[0][:2]
    for who in ({"source": near}, {"source": unit(1, 128, seed=7), "others": near}):
        chosen = pipeline.draw(**who, level=1, limit=0.5, num_inference_steps=3, generator=seeded())
        assert (1 - chosen.embedding @ near.T >= 0.5).all()


def test_where_all_who_fit_are_too_near_others_are_drawn_who_fit_less(pipeline, monkeypatch):
    """Not anybody: a child does not become an adult because children look alike."""
    sample, told, source = LDSPipeline.sample, [], unit(1, 128, seed=7)

    def crowded(self, latents, conditions, *arguments):
        embeddings, shapes = sample(self, latents, conditions, *arguments)
        if conditions is not None:
            told.append(conditions)
            if len(told) < 10:
                return source.expand(len(latents), -1), shapes
        return embeddings, shapes

    monkeypatch.setattr(LDSPipeline, "sample", crowded)
    conditions = pipeline.lds.conditions(attributes=torch.tensor([[-30.0, 50.0]]))
    chosen = pipeline.draw(source, 1, 0.5, conditions, num_inference_steps=3, generator=seeded())
    assert 1 - chosen.embedding @ source.T >= 0.5 and len(told) == 10


def test_later_rounds_vary_more(pipeline, monkeypatch):
    """By `spread`, whatever the attempt."""
    varied, vary = [], LDSPipeline.vary
    monkeypatch.setattr(LDSPipeline, "vary", lambda self, asked, by, *more: varied.append(by) or vary(self, asked, by, *more))
    conditions = pipeline.lds.conditions(attributes=torch.zeros(1, 2))
    with pytest.raises(NoIdentityFoundError):
        pipeline.draw(unit(1, 128), 1, 2.1, conditions, num_inference_steps=1, generator=seeded(), attempt=2)
    assert varied == [spread(2, number) for number in range(LDSPipeline.max_rounds)]


def test_the_more_attributes_vary_the_more_they_are_anybodys(pipeline):
    """But they stay usual: an unusual person has the same face whatever the noise."""
    perturb(pipeline.lds)
    conditions = pipeline.lds.conditions(attributes=torch.tensor([[3.0, -2.0]]))
    anybody, _ = pipeline.sample(pipeline.prepare_latents(1, seeded()), None, 3)
    others = pipeline.lds.attributes(anybody)[0]
    for by in (0.1, 1.0, 50.0):
        varied = pipeline.vary(conditions, by, seeded(), 3)
        expected = (conditions[0, -2:] + by * others) / (1 + by**2) ** 0.5
        torch.testing.assert_close(varied[0, -2:], expected)
        assert varied[0, :-2].isnan().all()
    torch.testing.assert_close(varied[0, -2:], others, atol=0.1, rtol=0)
    assert pipeline.vary(conditions, 0.0, seeded(), 3) is conditions


def test_where_no_attributes_are_known_later_rounds_draw_anybody(pipeline):
    conditions = pipeline.lds.conditions(context=torch.ones(1, 128))
    assert pipeline.vary(conditions, 0.0, seeded(), 3) is conditions
    assert pipeline.vary(conditions, 0.1, seeded(), 3) is None and pipeline.vary(None, 0.1, seeded(), 3) is None


def test_nobody_beyond_the_limit_is_an_error(pipeline):
    with pytest.raises(NoIdentityFoundError, match="farther than 2.1"):
        pipeline.draw(unit(1, 128), 1, 2.1, num_inference_steps=1)
