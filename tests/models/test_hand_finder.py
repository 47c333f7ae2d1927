import cv2
import numpy as np
import pytest

from diffdeid.errors import AssetNotFoundError
from diffdeid.geometry.hand import hand_silhouette
from diffdeid.io.images import read_image
from diffdeid.models.hand_finder import HandFinderModel
from tests.conftest import ROOT

SIZE = 384
TIPS, WRIST = [4, 8, 12, 16, 20], 0


@pytest.fixture(scope="module")
def finder() -> HandFinderModel:
    return HandFinderModel.from_pretrained(ROOT / "weights/diffdeid", subfolder="hand_finder")


@pytest.fixture(scope="module")
def picture() -> tuple[np.ndarray, np.ndarray]:
    """A hand, fingers down, in front of grey, `(SIZE, SIZE, 3)` uint8, and its alpha, 0 or 1."""
    hand = cv2.cvtColor(cv2.imread(str(ROOT / "tests/assets/hand.png"), cv2.IMREAD_UNCHANGED), cv2.COLOR_BGRA2RGBA)
    rows, columns = (slice((SIZE - side) // 2, (SIZE - side) // 2 + side) for side in hand.shape[:2])
    canvas = np.zeros((SIZE, SIZE, 4), np.uint8)
    canvas[rows, columns] = hand
    shown = canvas[..., 3:] / 255
    return np.uint8(canvas[..., :3] * shown + 150 * (1 - shown)), (canvas[..., 3] > 127).astype(np.uint8)


def turned(image: np.ndarray, degrees: float, background: int) -> tuple[np.ndarray, np.ndarray]:
    matrix = cv2.getRotationMatrix2D((SIZE / 2, SIZE / 2), degrees, 1.0)
    return cv2.warpAffine(image, matrix, (SIZE, SIZE), borderValue=(background,) * 3), matrix


@pytest.mark.parametrize("degrees", range(0, 360, 45))
def test_a_hand_is_found_however_it_is_turned(finder, picture, degrees):
    image, alpha = picture
    image, matrix = turned(image, degrees, 150)
    alpha, _ = turned(alpha, degrees, 0)
    ((hand,),) = finder([image])
    seen = hand_silhouette(hand, SIZE)
    assert (seen & alpha).sum() / (seen | alpha).sum() > 0.55
    down = matrix[:, :2] @ [0, 1]
    assert ((hand[TIPS] - hand[WRIST]) @ down > 40).all()


def test_the_other_hand_is_found_as_well(finder, picture):
    image, alpha = picture
    ((hand,),) = finder([np.ascontiguousarray(image[:, ::-1])])
    seen = hand_silhouette(hand, SIZE)
    assert (seen & alpha[:, ::-1]).sum() / (seen | alpha[:, ::-1]).sum() > 0.55


def test_pictures_are_looked_at_one_by_one(finder, picture, astronaut):
    face = cv2.resize(np.asarray(read_image(astronaut).image), (SIZE, SIZE), interpolation=cv2.INTER_AREA)
    together = finder([face, picture[0], np.zeros((SIZE, SIZE, 3), np.uint8)])
    assert [len(hands) for hands in together] == [0, 1, 0]
    np.testing.assert_array_equal(together[1][0], finder([picture[0]])[0][0])
    assert finder([]) == []


def test_sizes_of_pictures_do_not_matter(finder, picture):
    ((hand,),) = finder([picture[0]])
    ((larger,),) = finder([cv2.resize(picture[0], (2 * SIZE, 2 * SIZE), interpolation=cv2.INTER_CUBIC)])
    assert np.abs(larger / 2 - hand).max() < 6


def test_a_hand_at_the_border_and_a_grey_one_are_found(finder, picture):
    image, alpha = picture
    rows = np.flatnonzero(alpha.any(axis=1))
    cut = np.zeros_like(image)
    cut[: SIZE - rows[30]] = image[rows[30] :]  # its wrist is outside
    assert len(finder([cut])[0]) == 1
    grey = np.repeat(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2)
    assert len(finder([grey])[0]) == 1


def test_saved_and_loaded_it_finds_the_same_and_misses_what_is_missing(finder, picture, tmp_path):
    finder.save_pretrained(tmp_path)
    again = HandFinderModel.from_pretrained(tmp_path)
    np.testing.assert_array_equal(again([picture[0]])[0][0], finder([picture[0]])[0][0])
    (tmp_path / "hand_landmarks.onnx").unlink()
    with pytest.raises(AssetNotFoundError, match="hand_landmarks.onnx"):
        HandFinderModel.from_pretrained(tmp_path)
