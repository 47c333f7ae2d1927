"""Whom the sampler draws, and for whom."""

import pytest
import torch

from diffdeid.errors import NoIdentityFoundError
from diffdeid.models.lds import LDSModel, LDSOutput
from diffdeid.stages.identity import AVERAGED, DRAWS, ROUNDS, Casting, IdentitySampler, face_generators, least_distance, spread
from tests.tiny import perturb, tiny_lds_pipeline


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def sampler():
    return tiny_lds_pipeline().sampler


def draw(sampler, source, level, limit, conditions=None, num_inference_steps=3, generator=None, **options):
    generator = generator or seeded()
    (asked,) = sampler.expect([conditions], [generator], num_inference_steps)
    return Casting(sampler, asked, generator, num_inference_steps).draw(source, level, limit, **options)


def test_heads_that_nobody_has_are_not_drawn(sampler):
    _, shapes = sampler.sample(sampler.prepare_latents(16, seeded()), None, 3)
    sampler.lds.shape_limit.copy_(shapes.square().mean(1).sqrt().median())
    chosen = draw(sampler, unit(1, 128, seed=7), 1, 0.5)
    assert sampler.lds.is_usual(chosen.shape).all() and not sampler.lds.is_usual(shapes).all()


def test_a_perfect_predictor_returns_the_clean_vector(sampler):
    target = torch.randn(2, 208, generator=seeded(1))
    alphas = sampler.scheduler.alphas_cumprod

    def perfect(sample, timestep):
        alpha = alphas[timestep]
        return LDSOutput(sample=(sample - alpha.sqrt() * target) / (1 - alpha).sqrt())

    sampler.lds.forward = perfect
    latents = torch.randn(2, 208, generator=seeded())
    torch.testing.assert_close(sampler.denoise(latents, 50), target, atol=1e-3, rtol=0)


def test_a_person_is_the_same_alone_and_among_others(sampler):
    perturb(sampler.lds)
    latents, conditions = sampler.prepare_latents(4, seeded()), sampler.lds.conditions(torch.ones(1, 128))
    together, _ = sampler.sample(latents, conditions, 3)
    torch.testing.assert_close(together, torch.cat([sampler.sample(one, conditions, 3)[0] for one in latents.split(1)]))


def test_of_those_who_fit_the_average_attributes_are_asked_for(sampler):
    """Nothing else of K is asked for. Conditions that are attributes or `None` stay as they are."""
    perturb(sampler.lds)
    conditions = sampler.lds.conditions(torch.ones(1, 128))
    (asked,) = sampler.expect([conditions], [seeded()], 3)
    fitting, _ = sampler.sample(sampler.prepare_latents(AVERAGED, seeded()), conditions, 3)
    attributes = sampler.lds.attributes(fitting)  # sex and age
    female = attributes[:, 0] > 0
    assert AVERAGED / 2 < female.sum() < AVERAGED
    torch.testing.assert_close(asked[0, -2:], attributes[female].mean(0))
    assert asked[:, :-2].isnan().all()
    told = sampler.lds.conditions(attributes=torch.zeros(1, 2))
    known, nothing, again = sampler.expect([told, None, conditions], [seeded(1), seeded(2), seeded()], 3)
    assert known is told and nothing is None
    torch.testing.assert_close(again, asked, equal_nan=True)  # the same alone and among others


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
def test_the_majority_decides_on_sex_and_childhood(sampler, monkeypatch, female, child, kept):
    lds = LDSModel(hidden_dim=16, num_layers=1, attribute_names=("child", "female"))
    lds.attribute_directions[0, 0] = lds.attribute_directions[1, 1] = 1
    people = torch.zeros(4, 128)
    people[:, 0], people[:, 1] = torch.tensor(child), torch.tensor(female)
    sampler.lds = lds
    monkeypatch.setattr(IdentitySampler, "sample", lambda self, *arguments: (people, None))
    (asked,) = sampler.expect([lds.conditions(torch.zeros(1, 128))], [seeded()])
    torch.testing.assert_close(asked[0, -2:], people[kept, :2].mean(0))


def test_people_are_drawn_by_the_average_of_those_who_fit(sampler):
    perturb(sampler.lds)
    conditions, generator = sampler.lds.conditions(torch.ones(1, 128)), seeded()
    (asked,) = sampler.expect([conditions], [generator], 3)
    first = sampler.sample(sampler.prepare_latents(DRAWS, generator), asked, 3)[0][:1]
    chosen = draw(sampler, -first, 1, 0.0, conditions, num_inference_steps=3, generator=seeded())
    torch.testing.assert_close(chosen.embedding, first)


def unit(*shape, seed=0):
    return torch.nn.functional.normalize(torch.randn(*shape, generator=seeded(seed)), dim=-1)


def test_bounds_rise_from_the_limit():
    bounds = [least_distance(level, 0.4) for level in range(1, 11)]
    assert bounds[0] == 0.4 and bounds == sorted(set(bounds))
    for level in (0, 11):
        with pytest.raises(ValueError, match="between 1 and 10"):
            least_distance(level, 0.4)


def test_the_first_draw_beyond_the_bound_is_taken(sampler):
    source, limit = unit(1, 128, seed=7), 0.9
    drawn, _ = sampler.sample(sampler.prepare_latents(DRAWS, seeded()), None, 3)
    distances = (1 - drawn @ source.T)[:, 0]
    for level in (1, 3, 4):
        bound = least_distance(level, limit)
        chosen = draw(sampler, source, level, limit, num_inference_steps=3, generator=seeded())
        assert chosen.level == level
        torch.testing.assert_close(chosen.embedding[0], drawn[distances >= bound][0])


def test_whom_the_source_does_not_refuse_it_does_not_change(sampler):
    """The choice is blind: all sources that are far from the first person drawn get the same person."""
    first = sampler.sample(sampler.prepare_latents(DRAWS, seeded()), None, 3)[0][:1]
    sources = [source for source in unit(50, 1, 128) if 1 - source @ first.T > 0.9]
    chosen = [draw(sampler, source, 1, 0.9, num_inference_steps=3, generator=seeded()).embedding for source in sources]
    assert len(sources) > 10 and all(torch.allclose(embedding, first, atol=1e-5) for embedding in chosen)


def test_distances_rise_with_the_level(sampler):
    source = unit(1, 128, seed=7)
    chosen = [draw(sampler, source, level, 0.8, num_inference_steps=3, generator=seeded()) for level in range(1, 11)]
    distances = [1 - (identity.embedding @ source.T).item() for identity in chosen]
    assert distances == sorted(distances) and distances[-1] > distances[0]
    assert all(distance >= least_distance(identity.level, 0.8) for distance, identity in zip(distances, chosen, strict=True))


def test_a_bound_that_nobody_meets_is_lowered_and_says_so(sampler):
    source = unit(1, 128, seed=7)
    chosen = draw(sampler, source, 10, 1.0, num_inference_steps=3, generator=seeded())
    assert 1 <= chosen.level < 10
    assert 1 - chosen.embedding @ source.T >= least_distance(chosen.level, 1.0)


def test_a_margin_counts_also_where_the_bound_is_lowered(sampler):
    source = unit(1, 128, seed=7)
    drawn, _ = sampler.sample(sampler.prepare_latents(DRAWS, seeded()), None, 3)
    distances = (1 - drawn @ source.T)[:, 0]
    limit = distances.sort().values[3].item() - 0.1
    without = draw(sampler, source, 1, limit, num_inference_steps=3, generator=seeded())
    beyond = draw(sampler, source, 1, limit, num_inference_steps=3, generator=seeded(), margin=0.1)
    torch.testing.assert_close(without.embedding[0], drawn[distances >= limit][0])
    torch.testing.assert_close(beyond.embedding[0], drawn[distances >= limit + 0.1 - 1e-6][0])


def test_all_embeddings_of_the_source_and_other_people_count(sampler):
    near = sampler.sample(sampler.prepare_latents(DRAWS, seeded()), None, 3)[0][:2]
    for who in ({"source": near}, {"source": unit(1, 128, seed=7), "others": near}):
        chosen = draw(sampler, **who, level=1, limit=0.5)
        assert (1 - chosen.embedding @ near.T >= 0.5).all()


def test_where_all_who_fit_are_too_near_others_are_drawn_who_fit_less(sampler, monkeypatch):
    """But not just anybody: a child does not become an adult because children look alike."""
    sample, told, source = IdentitySampler.sample, [], unit(1, 128, seed=7)

    def crowded(self, latents, conditions, *arguments):
        embeddings, shapes = sample(self, latents, conditions, *arguments)
        if conditions is not None:
            told.append(conditions)
            if len(told) < 10:
                return source.expand(len(latents), -1), shapes
        return embeddings, shapes

    monkeypatch.setattr(IdentitySampler, "sample", crowded)
    conditions = sampler.lds.conditions(attributes=torch.tensor([[-30.0, 50.0]]))
    chosen = draw(sampler, source, 1, 0.5, conditions, num_inference_steps=3, generator=seeded())
    assert 1 - chosen.embedding @ source.T >= 0.5 and len(told) == 10


def test_later_rounds_vary_more(sampler, monkeypatch):
    """They vary by `spread`, in every attempt."""
    varied, vary = [], IdentitySampler.vary
    monkeypatch.setattr(IdentitySampler, "vary", lambda self, asked, by, *more: varied.append(by) or vary(self, asked, by, *more))
    conditions = sampler.lds.conditions(attributes=torch.zeros(1, 2))
    with pytest.raises(NoIdentityFoundError):
        draw(sampler, unit(1, 128), 1, 2.1, conditions, num_inference_steps=1, generator=seeded(), attempt=2)
    assert varied == [spread(2, number) for number in range(ROUNDS)]


def test_the_more_attributes_vary_the_more_they_are_anybodys(sampler):
    """But they stay in the usual range, because an unusual person has the same face whatever the noise."""
    perturb(sampler.lds)
    conditions = sampler.lds.conditions(attributes=torch.tensor([[3.0, -2.0]]))
    anybody, _ = sampler.sample(sampler.prepare_latents(1, seeded()), None, 3)
    others = sampler.lds.attributes(anybody)[0]
    for by in (0.1, 1.0, 50.0):
        varied = sampler.vary(conditions, by, seeded(), 3)
        expected = (conditions[0, -2:] + by * others) / (1 + by**2) ** 0.5
        torch.testing.assert_close(varied[0, -2:], expected)
        assert varied[0, :-2].isnan().all()
    torch.testing.assert_close(varied[0, -2:], others, atol=0.1, rtol=0)
    assert sampler.vary(conditions, 0.0, seeded(), 3) is conditions


def test_where_no_attributes_are_known_later_rounds_draw_anybody(sampler):
    conditions = sampler.lds.conditions(context=torch.ones(1, 128))
    assert sampler.vary(conditions, 0.0, seeded(), 3) is conditions
    assert sampler.vary(conditions, 0.1, seeded(), 3) is None and sampler.vary(None, 0.1, seeded(), 3) is None


def test_nobody_beyond_the_limit_is_an_error(sampler):
    with pytest.raises(NoIdentityFoundError, match="farther than 2.1"):
        draw(sampler, unit(1, 128), 1, 2.1, num_inference_steps=1)


def test_the_people_and_the_noise_of_a_face_are_its_own():
    """The same seed gives the same, and the next face gets others; people do not depend on how much noise was drawn."""
    first, again, other = (face_generators(seed) for seed in (5, 5, 6))
    torch.randn(100, generator=first[1])
    drawn = [torch.randn(3, generator=people) for people, _ in (first, again, other)]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    assert not torch.equal(*(torch.randn(3, generator=generator) for generator in face_generators(5)))
