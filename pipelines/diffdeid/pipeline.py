"""For `DiffusionPipeline.from_pretrained(…, custom_pipeline="pipeline", trust_remote_code=True)`: names our class."""

from diffdeid.pipelines.pipeline_diffdeid import DiffDeIDPipeline  # noqa: F401
