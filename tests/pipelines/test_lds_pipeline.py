import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from diffdeid.errors import ConfigurationError, NoIdentityFoundError
from diffdeid.pipelines.pipeline_lds import LDSPipeline
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


def test_heads_that_nobody_has_are_sampled_again(pipeline):
    before = pipeline(16, generator=seeded(), **STEPS).shape
    pipeline.lds.shape_limit.copy_(before.square().mean(1).sqrt().median())
    after = pipeline(16, generator=seeded(), **STEPS)
    assert len(after.shape) == 16 and pipeline.lds.is_usual(after.shape).all() and not pipeline.lds.is_usual(before).all()


def test_people_who_would_leave_ghosts_are_sampled_again(pipeline):
    pipeline.lds.ghost_directions[1, 0] = 1  # half of all people, then
    before = pipeline(16, generator=seeded(), **STEPS).identity
    pipeline.lds.ghost_limits[1] = before[:, 0].median()
    after = pipeline(16, generator=seeded(), **STEPS).identity
    assert len(after) == 16 and not pipeline.lds.leaves_ghosts(after).any()
    torch.testing.assert_close(after[:4], before[~pipeline.lds.leaves_ghosts(before)][:4])


def test_impossible_distances_end_in_an_error(pipeline):
    with pytest.raises(NoIdentityFoundError, match="Only 0 of 2"):
        pipeline(2, away_from=torch.eye(128)[:1], min_distance=2.0, generator=seeded(), **STEPS)


def test_identities_follow_the_conditions(pipeline):
    perturb(pipeline.lds)
    told = [pipeline.lds.conditions(context) for context in (torch.ones(1, 128), -torch.ones(1, 128))]
    anybody, one, other = (
        pipeline(3, conditions=conditions, generator=seeded(), **STEPS).identity for conditions in (None, *told)
    )
    assert not any(torch.allclose(x, y) for x, y in ((anybody, one), (one, other), (anybody, other)))


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
