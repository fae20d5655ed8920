"""Identity preservation of the edited face. Read it only together with the achieved change: a copy keeps the
identity perfectly."""

import numpy as np


def descriptor_distance(before: np.ndarray, after: np.ndarray) -> float:
    """L2 distance of dlib's 128-d descriptors, each (128,): 0 equal, above 0.6 another person.

    The published tables' metric (the package face_recognition; D. King, dlib.net, 2017).
    """
    return float(np.linalg.norm(np.asarray(before, np.float64) - np.asarray(after, np.float64)))


def embedding_cosine(before: np.ndarray, after: np.ndarray) -> float:
    """Cosine of two identity embeddings, -1 to 1, 1 equal (ArcFace, Deng et al. 2019, arXiv:1801.07698)."""
    before, after = np.asarray(before, np.float64), np.asarray(after, np.float64)
    return float(before @ after / (np.linalg.norm(before) * np.linalg.norm(after)))
