"""Dense displacement fields: the face's muscles, optical flow, and applying them."""

from magicedit.change import Change, no_change
from magicedit.warping.change import carry_change, estimate_change, join_sides
from magicedit.warping.correspondence import LIPS_WEIGHT, Correspondence, correspond, near_lips
from magicedit.warping.mouth import carry_mouth
from magicedit.warping.muscles import SHAPES, displacement_fields, parts_lips
from magicedit.warping.shading import SHADES, shade
from magicedit.warping.steering import steer
from magicedit.warping.teeth import Mouth, choose_mouth, embedded_mouths, own_mouth
from magicedit.warping.warp import backward_flow, warp_landmarks, warp_photo

__all__ = [
    "LIPS_WEIGHT",
    "SHADES",
    "SHAPES",
    "Change",
    "Correspondence",
    "Mouth",
    "backward_flow",
    "carry_change",
    "carry_mouth",
    "choose_mouth",
    "correspond",
    "displacement_fields",
    "embedded_mouths",
    "estimate_change",
    "join_sides",
    "near_lips",
    "no_change",
    "own_mouth",
    "parts_lips",
    "shade",
    "steer",
    "warp_landmarks",
    "warp_photo",
]
