"""Names the class for `DiffusionPipeline.from_pretrained(…, custom_pipeline="pipeline", trust_remote_code=True)`."""

from diffdeid.pipelines.pipeline_video import DiffDeIDVideoPipeline  # noqa: F401
