"""Dense displacement fields: the face's muscles, optical flow, and applying them."""

from magicedit.change import Change, no_change
from magicedit.warping.change import carry_change, estimate_change, join_sides
from magicedit.warping.correspondence import LIPS_WEIGHT, Correspondence, correspond, near_lips
from magicedit.warping.eyeballs import resting_eyeballs
from magicedit.warping.eyes import move_eyes
from magicedit.warping.hanging import without_hanging
from magicedit.warping.head import turn_head
from magicedit.warping.mouth import carry_mouth
from magicedit.warping.muscle_flow import moved_by_muscles
from magicedit.warping.muscles import SHAPES, displacement_fields, parts_lips
from magicedit.warping.own_smile import FaceShape
from magicedit.warping.shading import SHADES, shade
from magicedit.warping.steering import steer
from magicedit.warping.teeth import Mouth, choose_mouth, embedded_mouths, own_mouth
from magicedit.warping.warp import backward_flow, warp_landmarks, warp_photo, warp_with_flow

__all__ = [
    "LIPS_WEIGHT",
    "SHADES",
    "SHAPES",
    "Change",
    "Correspondence",
    "FaceShape",
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
    "move_eyes",
    "moved_by_muscles",
    "near_lips",
    "no_change",
    "own_mouth",
    "parts_lips",
    "resting_eyeballs",
    "shade",
    "steer",
    "turn_head",
    "warp_landmarks",
    "warp_photo",
    "warp_with_flow",
    "without_hanging",
]
