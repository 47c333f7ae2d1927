"""Names the class for `DiffusionPipeline.from_pretrained(…, custom_pipeline="pipeline", trust_remote_code=True)`."""

from diffdeid.pipelines.pipeline_lds import LDSPipeline  # noqa: F401
