"""Dense displacement fields: the face's muscles, optical flow, and applying them."""

from magicedit.warping.muscles import MUSCLES, Muscle, displacement_fields
from magicedit.warping.warp import backward_flow, warp_landmarks, warp_photo

__all__ = ["MUSCLES", "Muscle", "backward_flow", "displacement_fields", "warp_landmarks", "warp_photo"]
