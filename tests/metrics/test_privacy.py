import numpy as np
import pytest

from diffdeid.metrics import privacy


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


@pytest.fixture
def people() -> np.ndarray:
    """Forty people's unit embeddings."""
    return unit(np.random.default_rng(0).normal(size=(40, 64)))


NAMES = [f"person {number}" for number in range(40)]


def test_everybody_is_recognised_by_their_own_picture(people):
    scores, columns = privacy.person_scores(people, people, NAMES)
    own = np.arange(40)
    genuine, impostor = privacy.genuine_and_impostor(scores, own)
    assert columns == NAMES
    assert (privacy.ranks(scores, own) == 1).all()
    assert genuine == pytest.approx(1) and len(impostor) == 40 * 39
    assert privacy.equal_error_rate(genuine, impostor) == 0


def test_shuffled_identities_are_recognised_as_the_others(people):
    scores, _ = privacy.person_scores(people, people, NAMES)
    own = (np.arange(40) + 1) % 40
    assert (privacy.ranks(scores, own) > 1).all()
    assert (privacy.ranks(scores, (own - 1) % 40) == 1).all()


def test_a_person_is_as_near_as_the_nearest_of_their_pictures(people):
    scores, columns = privacy.person_scores(people[:1], people[[1, 0, 2]], ["a", "a", "b"])
    assert columns == ["a", "b"]
    assert scores[0, 0] == pytest.approx(1) and scores[0, 1] == pytest.approx(people[0] @ people[2])


def test_ranks_count_who_is_nearer():
    scores = np.array([[0.1, 0.5, 0.3], [0.9, 0.2, 0.2]])
    assert privacy.ranks(scores, np.array([0, 2])).tolist() == [3, 2]


def test_the_threshold_lets_its_share_of_impostors_in():
    impostor = np.random.default_rng(0).normal(size=100_000)
    assert (impostor > privacy.threshold_at(impostor, 1e-3)).mean() == pytest.approx(1e-3, rel=0.05)


@pytest.mark.parametrize("shift", [0, 1, 2])
def test_equal_error_rate_of_two_bells_is_the_tail_beyond_the_middle(shift):
    from scipy.stats import norm

    rng = np.random.default_rng(0)
    genuine, impostor = rng.normal(shift, 1, 20_000), rng.normal(0, 1, 20_000)
    assert privacy.equal_error_rate(genuine, impostor) == pytest.approx(norm.sf(shift / 2), abs=0.01)


def test_the_bootstrap_covers_the_mean_of_most_samples():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(60):
        values = rng.random(50) < 0.3
        low, high = privacy.bootstrap(lambda drawn, values=values: values[drawn].mean(), 50)
        covered += low <= 0.3 <= high
    assert covered >= 51


def test_chance_is_one_in_the_number_of_people(people):
    scores, _ = privacy.person_scores(unit(np.random.default_rng(1).normal(size=(40, 64))), people, NAMES)
    mean, low, high = privacy.chance(lambda said: (privacy.ranks(scores, said) == 1).mean(), np.arange(40))
    assert mean == pytest.approx(1 / 40, abs=0.003)
    assert low <= mean <= high <= 0.1


def test_two_runs_give_the_same_numbers():
    values = np.random.default_rng(0).random(30)
    first, second = (privacy.bootstrap(lambda drawn: values[drawn].mean(), 30) for _ in range(2))
    assert first == second
