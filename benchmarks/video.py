"""Videos: frames a second, CPU time, memory, flicker and resuming, measured on this machine.

    python benchmarks/video.py [-o benchmarks/video.json]

The videos are synthetic: a public-domain photograph (scikit-image's astronaut) that moves, grows and turns
slowly before a background, with expressions by the muscles' warp and with a sensor's noise.
"""

import argparse
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from skimage import data

from magicedit.action_units import NAMES
from magicedit.faces import load_backend
from magicedit.warping import displacement_fields, warp_photo

RATE = 25  # frames a second
FACE_SCALE = 2.2  # of the photograph's 512 px: the face is about 250 px high
NOISE = 2.5  # levels of 255, standard deviation: a camera's in a lit room
SOUND_HZ = 44_100


class MovingPhotograph:
    """Frames of a person who moves slowly.

    width, height: px. motion: how much, 1: up to 50 px a second and 4 degrees; 0: none but the noise.
    expression: seconds -> variations of action units; None: none.
    """

    def __init__(
        self,
        width: int = 1280,
        height: int = 720,
        motion: float = 1.0,
        expression: Callable[[float], dict[str, float]] | None = None,
        noise: float = NOISE,
    ):
        self.width, self.height, self.motion, self.noise = width, height, motion, noise
        self.photo = data.astronaut()
        (face,) = load_backend().detect(self.photo)[:1]
        self.landmarks, self.expression = face.landmarks, expression
        self.fields = displacement_fields(face.landmarks, len(self.photo)) if expression else None
        rng = np.random.default_rng(0)
        self.backdrop = cv2.resize(
            rng.integers(60, 160, (9, 16, 3), np.uint8), (width, height), interpolation=cv2.INTER_CUBIC
        )

    def frame(self, seconds: float) -> np.ndarray:
        """(height, width, 3) uint8 RGB."""
        photo = self.photo
        if self.expression:
            asked = self.expression(seconds)
            vector = np.array([asked.get(name, 0.0) for name in NAMES], np.float32)
            photo = warp_photo(photo, self.fields, vector, self.landmarks)
        x, y = self.landmarks.mean(0)
        scale = FACE_SCALE * self.height / 720 * (1 + 0.05 * self.motion * np.sin(0.9 * seconds))
        matrix = cv2.getRotationMatrix2D((x, y), 4 * self.motion * np.sin(1.1 * seconds), scale)
        matrix[:, 2] += (
            self.width * (0.5 + 0.03 * self.motion * np.sin(1.3 * seconds)) - x,
            self.height * (0.45 + 0.02 * self.motion * np.cos(0.8 * seconds)) - y,
        )
        picture = self.backdrop.copy()
        cv2.warpAffine(
            photo, matrix, (self.width, self.height), dst=picture, flags=cv2.INTER_CUBIC,
            borderMode=cv2.BORDER_TRANSPARENT,
        )  # fmt: skip
        rng = np.random.default_rng(round(1000 * seconds))
        noisy = picture + self.noise * rng.standard_normal(picture.shape, np.float32)
        return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)

    def save(self, path: Path, frames: int) -> Path:
        """Writes a film of that many frames, with a tone, nearly without loss."""
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=RATE)
            stream.width, stream.height, stream.pix_fmt = self.width, self.height, "yuv420p"
            stream.options = {"crf": "12", "preset": "veryfast"}
            sound = container.add_stream("aac", rate=SOUND_HZ, layout="mono")
            for index in range(frames):
                picture = av.VideoFrame.from_ndarray(self.frame(index / RATE), "rgb24")
                container.mux(stream.encode(picture))
                samples = np.arange(index * SOUND_HZ // RATE, (index + 1) * SOUND_HZ // RATE)
                tone = (8000 * np.sin(2 * np.pi * 440 / SOUND_HZ * samples)).astype(np.int16)
                piece = av.AudioFrame.from_ndarray(tone[None], "s16", "mono")
                piece.sample_rate, piece.pts = SOUND_HZ, int(samples[0])
                piece.time_base = Fraction(1, SOUND_HZ)
                container.mux(sound.encode(piece))
            container.mux(stream.encode())
            container.mux(sound.encode())
        return path


def talking(seconds: float) -> dict[str, float]:
    """Smile down and up, brows, and a jaw that opens four times a second and a half."""
    return {
        "AU12": -2 + 2 * np.sin(1.5 * seconds),
        "AU1": 1.5 + 1.5 * np.sin(0.9 * seconds),
        "AU4": max(0.0, 2 * np.sin(0.6 * seconds)),
        "AU26": 1 + 1 * np.sin(2 * np.pi * 2.5 * seconds),
    }
