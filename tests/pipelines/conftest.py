"""The video pipeline on the released weights."""

import pytest

from diffdeid import DiffDeIDVideoPipeline


@pytest.fixture(scope="module")
def video_pipeline(pipeline):
    video_pipeline = DiffDeIDVideoPipeline.sharing(pipeline)
    video_pipeline.set_progress_bar_config(disable=True)
    return video_pipeline
