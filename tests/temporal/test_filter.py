"""Which faces of a track are shown, depending on which pass their checks."""

import pytest

from diffdeid.temporal.filter import TemporalFilter


def shown(judgements: str, rate: float = 10) -> str:
    """A letter a frame: `p` passed, `f` failed, `.` not judged -> `S` where the face is shown, else `.`."""
    temporal_filter = TemporalFilter(rate)
    return "".join(
        "S" if letter != "." and temporal_filter.shows(frame, letter == "p") else "." for frame, letter in enumerate(judgements)
    )


@pytest.mark.parametrize(
    ("judgements", "expected"),
    [
        ("ppfppp", "SS.SSS"),
        ("pppfpfpfppppp", "SSS.S.....SSS"),  # two frames are 0.2 s
        ("pppfppfpppp", "SSS.SS...SS"),
        ("pppfpppfpppp", "SSS.SSS.SSSS"),
        ("pp.p.ppppp", "SS.S...SSS"),  # covered without having been painted
        ("pfpfppppppppfpp", "S.S...SSSSSS.SS"),  # and all is well again
        ("fpppp", ".SSSS"),
    ],
)
def test_faces_do_not_flash_up_between_covers(judgements, expected):
    assert shown(judgements) == expected


@pytest.mark.parametrize(("rate", "hidden"), [(1, 1), (25, 5), (60, 12)])
def test_the_while_is_a_fifth_of_a_second(rate, hidden):
    assert shown("pfpf" + "p" * 20, rate) == "S.S." + "." * hidden + "S" * (20 - hidden)
