"""Choices are checked when they are made."""

import pytest

from diffdeid.options import DeidentifyOptions, FileOptions, VideoOptions


@pytest.mark.parametrize(
    ("kind", "wrong", "word"),
    [
        (DeidentifyOptions, {"level": 0}, "`level` must be between 1 and 10, got 0"),
        (DeidentifyOptions, {"num_inference_steps": 0}, "`num_inference_steps` must be between 1 and 1000, got 0"),
        (DeidentifyOptions, {"attributes": "own"}, "`attributes` must be 'context', 'any' or 'source', got 'own'"),
        (VideoOptions, {"on_miss": None}, "`on_miss` must be"),
        (FileOptions, {"crf": 64}, "`crf` must be between 0 and 63"),
        (FileOptions, {"start": -1}, "`start` must be at least 0"),
        (FileOptions, {"start": 2, "end": 1}, "`end` must be later than `start`"),
    ],
)
def test_what_is_no_choice_is_refused(kind, wrong, word):
    with pytest.raises(ValueError, match=word):
        kind(**wrong)


def test_options_are_frozen_and_travel_whole():
    options, rest = VideoOptions.split({"level": 3, "on_miss": "cover", "video": "a.mp4"})
    assert options.level == 3 and options.on_miss == "cover" and rest == {"video": "a.mp4"}
    assert options.as_kind(DeidentifyOptions) == DeidentifyOptions(level=3)
    with pytest.raises(AttributeError):
        options.level = 4
