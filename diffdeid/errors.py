"""Everything this package raises on purpose.

    DiffDeIDError
    ├── NoFaceFoundError      a picture in which nobody was found
    ├── NoIdentityFoundError  every identity that was drawn is too near to the source
    ├── ImageError            a file that cannot be read or written as a picture
    ├── VideoError            a file that cannot be read or written as a video
    ├── VerificationError     a file that was written and must not be published
    ├── AssetNotFoundError    a weight or model file that is not where it should be
    └── ConfigurationError    weights, configs or components that do not fit together

Wrong argument values are plain `ValueError` or `TypeError`.
"""


class DiffDeIDError(Exception):
    """Base of all errors of this package."""


class NoFaceFoundError(DiffDeIDError):
    """No face was found, so nobody can tell whether the picture is de-identified."""


class NoIdentityFoundError(DiffDeIDError):
    """Every identity that the sampler drew is too near to the source, or to other people from whom it must differ."""


class ImageError(DiffDeIDError):
    """A file is not a picture, is damaged, or cannot be represented faithfully."""


class VideoError(DiffDeIDError):
    """A file is not a video, is damaged, or cannot be written."""


class VerificationError(DiffDeIDError):
    """A file that was written shows a face of the source, holds more than it should, or differs from what was checked."""


class AssetNotFoundError(DiffDeIDError):
    """A weight or model file is missing."""


class ConfigurationError(DiffDeIDError):
    """Weights, configs or components do not fit together."""
