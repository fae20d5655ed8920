"""Dense displacement fields: the face's muscles, optical flow, and applying them."""

from magicedit.warping.change import Change, carry_change, estimate_change, join_sides, no_change
from magicedit.warping.correspondence import Correspondence, correspond
from magicedit.warping.mouth import Donor
from magicedit.warping.muscles import MUSCLES, Muscle, displacement_fields
from magicedit.warping.warp import backward_flow, warp_landmarks, warp_photo

__all__ = [
    "MUSCLES",
    "Change",
    "Correspondence",
    "Donor",
    "Muscle",
    "backward_flow",
    "carry_change",
    "correspond",
    "displacement_fields",
    "estimate_change",
    "join_sides",
    "no_change",
    "warp_landmarks",
    "warp_photo",
]
