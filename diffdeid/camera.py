"""A window that shows the camera of this computer, de-identified live."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import cv2
import numpy as np
import torch

from diffdeid.errors import VideoError
from diffdeid.options import VideoOptions

WINDOW = "DiffDeID (q quits)"
RATE = 25  # frames a second, assumed where a camera does not report its own


def show_camera(pipe: Any, options: VideoOptions, seed: int | None) -> None:
    """Show the first camera until `q` is pressed or the window is closed. Without a seed, each run draws other new people.

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
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        claimed = camera.get(cv2.CAP_PROP_FPS)
        rate = claimed if 1 <= claimed <= 240 else RATE  # drivers may report 0, -1 or nothing
        for picture in pipe.stream(_pictures(camera), lookahead=0, rate=rate, generator=generator, **asdict(options)):
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
