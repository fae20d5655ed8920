"""How far the head turned."""

import numpy as np
from scipy.spatial.transform import Rotation

from magicedit.faces import Pose


def rotation_matrix(pose: Pose) -> np.ndarray:
    """(3, 3): turn (yaw), then nod (pitch), then tilt (roll) in the head's own frame, as poses are read."""
    return Rotation.from_euler("YXZ", [pose.yaw, -pose.pitch, -pose.roll], degrees=True).as_matrix()


def pose_rmse_degrees(before: Pose, after: Pose) -> float:
    """Root mean square of the differences of yaw, pitch and roll, degrees; 0: the head did not move."""
    angles = [getattr(after, axis) - getattr(before, axis) for axis in ("yaw", "pitch", "roll")]
    wrapped = (np.array(angles) + 180) % 360 - 180
    return float(np.sqrt((wrapped**2).mean()))


def pose_rmse_matrix(before: Pose, after: Pose) -> float:
    """Root mean square of the nine differences of the rotation matrices, 0 to 0.94; 0: did not move.

    Which representation the published tables use is not stated; this one has their order of magnitude.
    """
    return float(np.sqrt(((rotation_matrix(after) - rotation_matrix(before)) ** 2).mean()))
