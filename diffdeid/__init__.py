"""DiffDeID: de-identify faces in pictures with diffusion models. Names load on first use, so importing this is free."""

from importlib import import_module
from pathlib import Path

__version__ = "0.1.0"

# The weights that come with DiffDeID lie inside an installed package, and beside the package in a clone.
WEIGHTS = Path(__file__).parent / "weights"
if not WEIGHTS.is_dir():
    WEIGHTS = Path(__file__).parents[1] / "weights" / "diffdeid"

_HOMES = {
    "AssetNotFoundError": "errors",
    "ConfigurationError": "errors",
    "Consent": "engine.consent",
    "DeidentifyOptions": "options",
    "DiffDeIDError": "errors",
    "DiffDeIDPipeline": "pipelines.pipeline_diffdeid",
    "DiffDeIDPipelineOutput": "pipelines.pipeline_output",
    "DiffDeIDVideoPipeline": "pipelines.pipeline_video",
    "DiffDeIDVideoPipelineOutput": "pipelines.pipeline_output",
    "Face": "structures",
    "FaceCrop": "structures",
    "FaceReport": "engine.reports",
    "FileOptions": "options",
    "ImageError": "errors",
    "LDSPipeline": "pipelines.pipeline_lds",
    "LDSPipelineOutput": "pipelines.pipeline_output",
    "MorphableCoefficients": "structures",
    "NewIdentity": "structures",
    "NoFaceFoundError": "errors",
    "NoIdentityFoundError": "errors",
    "PersonReport": "engine.reports",
    "Picture": "io.images",
    "PictureReview": "engine.review",
    "VerificationError": "errors",
    "VideoError": "errors",
    "VideoOptions": "options",
    "VideoReader": "io.video_reader",
    "VideoWriter": "io.video_writer",
    "read_face_list": "face_lists",
    "read_image": "io.images",
    "write_image": "io.images",
}

__all__ = [*_HOMES, "WEIGHTS", "__version__"]


def __getattr__(name):
    if name in _HOMES:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module `{__name__}` has no attribute `{name}`")


def __dir__():
    return sorted(__all__)
