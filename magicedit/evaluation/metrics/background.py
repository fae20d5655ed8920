"""What changed outside the face."""

import numpy as np


def background_rmse(before: np.ndarray, after: np.ndarray, face: np.ndarray) -> float:
    """Root mean squared error of the pixels outside the face, 0 to 1; 0: untouched.

    Wei et al. 2025 (arXiv:2501.02260) measure it on the aligned crop, as the callers here do.

    Args:
        before, after: (height, width, 3) uint8.
        face: (height, width) bool, True where the face is. ValueError where it is everywhere.
    """
    if before.shape != after.shape or face.shape != before.shape[:2]:
        raise ValueError(f"shapes differ: {before.shape}, {after.shape}, face {face.shape}")
    if face.all():
        raise ValueError("the face covers the whole picture: there is no background to measure")
    difference = (after[~face].astype(np.float64) - before[~face]) / 255
    return float(np.sqrt((difference**2).mean()))
