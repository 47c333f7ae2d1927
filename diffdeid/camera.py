"""The camera of this computer, de-identified as it runs, in a window."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np

from diffdeid.errors import VideoError

WINDOW = "DiffDeID (q quits)"


def show_camera(pipe: Any, **options: Any) -> None:
    """Show the first camera until `q` is pressed or the window closed; `options` are those of `DiffDeIDVideoPipeline.start`.

    Raises:
        VideoError: there is no camera, or no display.
    """
    camera = cv2.VideoCapture(0)
    try:
        if not camera.isOpened():
            raise VideoError("No camera was found. Connect one, and let this program use it.")
        try:
            cv2.namedWindow(WINDOW)
        except cv2.error as error:
            raise VideoError("There is no display to show the camera on.") from error
        for picture in pipe.stream(_pictures(camera), lookahead=0, **options):
            cv2.imshow(WINDOW, cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
            if cv2.waitKey(1) & 0xFF == ord("q") or cv2.getWindowProperty(WINDOW, cv2.WND_PROP_VISIBLE) < 1:
                cv2.destroyAllWindows()
                return
    finally:
        camera.release()


def _pictures(camera: cv2.VideoCapture) -> Iterator[np.ndarray]:
    while True:
        read, picture = camera.read()
        if not read:
            return
        yield cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
