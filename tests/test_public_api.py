import pytest

import diffdeid

NAMES = {
    "AssetNotFoundError", "ConfigurationError", "Consent", "DeidentifyOptions", "DiffDeIDError", "DiffDeIDPipeline",
    "DiffDeIDPipelineOutput", "FileOptions", "VideoOptions",
    "DiffDeIDVideoPipeline", "DiffDeIDVideoPipelineOutput", "Face", "FaceCrop", "FaceReport", "ImageError", "LDSPipeline",
    "LDSPipelineOutput", "MorphableCoefficients", "NewIdentity", "NoFaceFoundError", "NoIdentityFoundError", "PersonReport",
    "Picture", "PictureReview", "VerificationError", "VideoError", "VideoReader", "VideoWriter", "WEIGHTS", "__version__",
    "read_face_list", "read_image", "write_image",
}  # fmt: skip


def test_the_public_names_are_these():
    assert set(diffdeid.__all__) == NAMES


@pytest.mark.parametrize("name", sorted(NAMES))
def test_every_public_name_can_be_reached(name):
    assert getattr(diffdeid, name) is not None


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nonsense"):
        diffdeid.nonsense  # noqa: B018
