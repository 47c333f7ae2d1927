import shutil

import numpy as np
import pytest

from diffdeid.evaluation import adversary
from diffdeid.evaluation.run import evaluate_methods
from diffdeid.options import DeidentifyOptions

ATTACKS = ("no attack", "parrot", "linkability", "averaging", "reconstruction", "inversion", "replay")


@pytest.fixture(scope="module")
def attacked(people, pipeline, panel, tmp_path_factory):
    """All attacks on three people, at toy size, and where their pictures are."""
    folder, work = tmp_path_factory.mktemp("four"), tmp_path_factory.mktemp("work")
    for number in range(4):
        for photo in "ab":
            shutil.copy(people / f"{number}_{photo}.png", folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adversary, "SUSPECTS", 3)
        patch.setattr(adversary, "VERSIONS", 2)
        patch.setattr(adversary, "STEPS", 2)
        (evaluation,) = evaluate_methods(
            ["diffdeid"],
            folder,
            pipeline,
            panel,
            "names",
            work=work,
            attacks=True,
            options=DeidentifyOptions(num_inference_steps=1),
        )
    return evaluation, work / "diffdeid"


def test_every_attack_is_run_by_every_recogniser_it_is_meant_for(attacked):
    metrics = [metric for metric in attacked[0].metrics if metric.block == "attacks"]
    for attack in ATTACKS:
        names = [metric.name for metric in metrics if metric.name.startswith(attack)]
        assert any("rank-1" in name for name in names), attack
        assert attack == "replay" or all(any(judge in name for name in names) for judge in ("faceplugin", "faceres"))
    assert all(np.isfinite(metric.value) and 0 <= metric.value <= 1 for metric in metrics)


def test_what_the_choice_of_identities_gives_away_is_measured_without_pictures(attacked):
    names = [metric.name for metric in attacked[0].metrics if metric.name.endswith("[identities themselves]")]
    assert names == ["averaging rank-1 [identities themselves]", "averaging AUC [identities themselves]"]
    surroundings = [metric for metric in attacked[0].metrics if "solid covers" in metric.name]
    assert len(surroundings) == 4


def test_candidates_of_a_photo_are_diverse(attacked):
    spread = [metric.value for metric in attacked[0].metrics if metric.name.startswith("diversity between candidates")]
    assert len(spread) == 2 and all(0 < value < 2 for value in spread)


def test_one_identity_per_person_links_by_design(attacked):
    linked = {metric.name: metric.value for metric in attacked[0].metrics if "one identity per person" in metric.name}
    assert all(value > 0.5 for name, value in linked.items() if "faceplugin" in name)


def test_the_adversary_makes_his_pictures_once(attacked):
    folder = attacked[1] / "attacks"
    assert {path.name for path in folder.iterdir()} == {
        "known-0", "known-1", "version-0", "version-1", "linked-0", "linked-1", "others",
    }  # fmt: skip
    assert {path.name for path in (folder / "known-0").glob("*.png")} == {"0_a.png", "1_a.png", "2_a.png"}
    assert {path.name for path in (folder / "others").glob("*.png")} == {"3_a.png"}


def test_his_versions_differ_from_what_was_published(attacked):
    published = (attacked[1] / "0_b.png").read_bytes()
    versions = [(attacked[1] / "attacks" / f"version-{number}" / "0_b.png").read_bytes() for number in range(2)]
    assert len({published, *versions}) == 3
