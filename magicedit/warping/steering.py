"""Corrects where a model's flow takes the face.

The muscles' table knows how far each landmark goes; a network's flow is smoothed, falls short of it where
skin moves most, as at the lids, and drags along what should rest. So what the flow lacks is added. Above the
mouth that is all of it, but for the nose: a jury takes one that is lifted for somebody else's. At the mouth's
corners, where two lips that move apart meet, it is all of it while the lips stay closed; of lips that part, a
jury finds more than the following stretched: the height alone. The upper lip is held where AU25 parts the
lips, because mouths that bare their teeth are taken for fakes.

In smiles the lips go where photographs of smiles take them. The mesh's smile raises the whole mouth towards
the nose, its corners half as far again, and its lips stay as thick as they are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np

from magicedit.faces.frame import face_frame
from magicedit.faces.regions import smooth
from magicedit.warping.mouth import CHIN, FLESH, LOWER_LIP_OUTLINE, UPPER_LIP_OUTLINE, forward_places
from magicedit.warping.muscles import (
    LOWER_LIP_EDGE,
    MOUTH_CORNERS,
    NOSE_BASE,
    SHAPES,
    UPPER_LIP_EDGE,
    landmark_displacements,
    skin_above_mouth,
    smile_displacements,
)
from magicedit.warping.own_smile import FaceShape, OwnSmile
from magicedit.warping.splines import gaussian_field

_LIPS = (UPPER_LIP_EDGE, UPPER_LIP_OUTLINE), (LOWER_LIP_EDGE, LOWER_LIP_OUTLINE)
_LOWER_LIP, _UPPER_LIP = 14, 13
_HANG = 0.09  # of the drop of the lower lip by AU26: corners go further down than in the table
_RAISED = 0.1  # of the table: lips that are not drawn up part by the lower one, and show few teeth
_BELOW_LIP = 0.06  # iod below the upper lip, over which its correction ends
_PARTED = 0.5  # of the height where AU25 parts the lips
_REACH = (0.17, 0.20)  # iod: standard deviations of the correction outwards, and up and down
# Above the mouth: iod, the standard deviation of a landmark's correction; px of the crop between places at
# which it is computed; steps and damping of the search for where a landmark lies
_SPREAD, _STRIDE = 0.06, 2
_SEARCH, _DAMPING = 12, 0.6
_SHARES = {"AU9": 0.65}  # of the table: with all of it an identity network takes some people for others
_SMILING = {"AU12": 0.85}  # the same for smiles: cheeks rise less in photographs
# Smiles: iod between the lips that raise the upper one, at most; iod, the standard deviation of a landmark's
# correction
_SMILE_GAP, _SMILE_SPREAD = 0.10, 0.045
_SMOOTH = 0.8  # of the largest correction of a lip, that this is at least: skin beside it would fold


def steer(
    flow: np.ndarray, landmarks: np.ndarray, request: Mapping[str, float], smiling: FaceShape | None = None
) -> np.ndarray:
    """Returns a flow (size, size, 2) px that takes the face where the muscles' table does.

    landmarks: (478, 2) px of the same crop. request: AU name -> variation; the flow is returned as it is
    where it holds a control that the table lacks. Corrected are the skin above the mouth, its corners, the
    upper lip, and both lips of smiles. smiling: the same person's smile, which lips then follow.
    """
    asked = {name: value for name, value in request.items() if value}
    if not asked or not SHAPES.keys() >= asked.keys():
        return flow
    landmarks = np.asarray(landmarks, np.float64)
    own = OwnSmile.of(landmarks, smiling) if smiling is not None else None
    target = _Target(landmarks, asked, own)
    for part in (_steer_above_mouth, _steer_corners, _steer_upper_lip, _steer_smile):
        flow = part(flow, target)
    return flow


@dataclass(frozen=True, eq=False)
class _Target:
    """What a request asks of landmarks (478, 2) px; asked: AU name -> variation, none of them 0. own: the
    person's smile, where it is known."""

    landmarks: np.ndarray
    asked: Mapping[str, float]
    own: OwnSmile | None

    @cached_property
    def interocular(self) -> float:
        return face_frame(self.landmarks).interocular

    @cached_property
    def _units(self) -> np.ndarray:
        """(478, aus, 2) px a step."""
        return landmark_displacements(self.landmarks, [*self.asked]) / 5

    @cached_property
    def smile_units(self) -> np.ndarray:
        """(478, 3, 2) px, see `smile_displacements`."""
        return smile_displacements(self.landmarks)

    @cached_property
    def smiles(self) -> float:
        """0..1: how far the lips go where photographs of smiles take them; jaws drop otherwise."""
        smile, jaw = (smooth(self.asked.get(name, 0) / 2) for name in ("AU12", "AU26"))
        return float(smile * (1 - jaw))

    def moves(self, ids: Sequence[int] | np.ndarray, **shares: float) -> np.ndarray:
        """(n, 2) px that the table moves landmarks `ids`; shares: AU name -> of its movement, else all."""
        steps = np.array([value * shares.get(name, 1.0) for name, value in self.asked.items()])
        return np.einsum("nac,a->nc", self._units[list(ids)], steps)


def _added(flow: np.ndarray, moves: np.ndarray) -> np.ndarray:
    """A flow whose picture is moved once more, by (size, size, 2) px at the places where skin arrives."""
    at = np.arange(len(flow), dtype=np.float32)
    before = at - moves[..., 0], at[:, None] - moves[..., 1]
    return cv2.remap(flow, *before, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE) - moves


def _steer_above_mouth(flow: np.ndarray, target: _Target) -> np.ndarray:
    ids, size = skin_above_mouth(), len(flow)
    at_rest = target.landmarks[ids].astype(np.float32)
    shares = _SHARES | (_SMILING if target.asked.get("AU12", 0) > 0 else {})
    wanted = at_rest + target.moves(ids, **shares).astype(np.float32)

    # 1. Where the landmarks arrive: a flow without folds has an inverse
    reached = at_rest.copy()
    for _ in range(_SEARCH):
        read = cv2.remap(
            flow, reached[None, :, 0], reached[None, :, 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )
        reached += _DAMPING * (at_rest - read[0] - reached)
    missing = wanted - reached

    # 2. What is missing, as a smooth field
    spread = _SPREAD * target.interocular
    at = np.arange(0, size, _STRIDE, dtype=np.float32) + (_STRIDE - 1) / 2
    field = gaussian_field(wanted, missing, at, at, spread)
    return _added(flow, cv2.resize(field, (size, size), interpolation=cv2.INTER_LINEAR))


def _steer_corners(flow: np.ndarray, target: _Target) -> np.ndarray:
    """The correction is 0 in the middle of the lips."""
    # 1. Where the corners go, and where they should
    asked, interocular = target.asked, target.interocular
    at_rest = target.landmarks[list(MOUTH_CORNERS)]
    drops = {name: float(name == "AU26" and value > 0) for name, value in asked.items()}
    drop = np.linalg.norm(target.moves([_LOWER_LIP], **drops))  # px
    wanted = at_rest + target.moves(MOUTH_CORNERS) + (0, _HANG * drop)
    reached = np.mean([forward_places(flow, at_rest, from_below=below) for below in (False, True)], 0)
    lips, jaw = (smooth(asked.get(name, 0) / 2) for name in ("AU25", "AU26"))
    missing = (wanted - reached) * (1 - max(lips, jaw), 1 - (1 - _PARTED) * lips)
    if target.smiles:
        smiling = at_rest + _smile_moves(target, MOUTH_CORNERS, _smile_factors(flow, target)[0])
        missing += target.smiles * (smiling - reached - missing)

    # 2. What is missing, around each corner
    at = np.arange(len(flow), dtype=np.float32)
    middle = target.landmarks[_UPPER_LIP, 0] + target.moves([_UPPER_LIP])[0, 0]
    added = np.zeros_like(flow)
    for (x, y), move in zip(reached + missing, missing, strict=True):
        inside = np.clip((at - middle) / (x - middle), 0, 1)  # 0 in the middle of the lips
        beyond = np.maximum((at - x) * np.sign(x - middle), 0) / (_REACH[0] * interocular)
        above = (at - y) / (_REACH[1] * interocular)
        weight = np.outer(np.exp(-(above**2) / 2), inside**2 * np.exp(-(beyond**2) / 2))
        added += (weight[..., None] * move).astype(np.float32)
    return _added(flow, added)


def _steer_upper_lip(flow: np.ndarray, target: _Target) -> np.ndarray:
    """Lips that part do so by the lower one: AU25 raises the upper lip by _RAISED of the table alone."""
    parts = smooth(target.asked.get("AU25", 0) / 2)
    if not parts:
        return flow
    # 1. How far the lip should lie below where the flow takes its flesh
    landmarks, interocular = target.landmarks, target.interocular
    lip = landmarks[list(UPPER_LIP_EDGE)]
    wanted = (lip + target.moves(UPPER_LIP_EDGE, AU25=_RAISED))[:, 1]
    flesh = (lip + landmarks[list(UPPER_LIP_OUTLINE)]) / 2
    reached = forward_places(flow, flesh, from_below=False) + lip - flesh
    missing = np.maximum(wanted - reached[:, 1], 0) * parts  # px
    missing *= 1 - np.linspace(-1, 1, len(lip)) ** 4  # the corners are steered already

    # 2. That, from the base of the nose to the lip's edge
    at = np.arange(len(flow), dtype=np.float32)
    columns = np.maximum.accumulate(reached[:, 0])
    down = cv2.GaussianBlur(np.interp(at, columns, missing)[None], (0, 0), 0.05 * interocular)[0]
    edge, nose = np.interp(at, columns, reached[:, 1] + missing), landmarks[NOSE_BASE, 1]
    above = smooth((at[:, None] - nose) / np.maximum(edge - nose, 1e-3))
    below = 1 - smooth((at[:, None] - edge) / (_BELOW_LIP * interocular))
    moves = np.zeros_like(flow)
    moves[..., 1] = above * below * down
    return _added(flow, moves)


def _lip_lines(landmarks: np.ndarray) -> list[np.ndarray]:
    """By lip, the line in its flesh by which the mouth's layer moves it, (11, 2) px."""
    rows = ((landmarks[list(edge)], landmarks[list(outline)]) for edge, outline in _LIPS)
    return [edge + FLESH * (outline - edge) for edge, outline in rows]


def _smile_factors(flow: np.ndarray, target: _Target) -> np.ndarray:
    """(2, 3) factors of `smile_displacements`, for the upper and the lower lip.

    AU12 by 5, iod that the lips part, and iod that the flow drops the chin. Closed lips part at least as far
    as AU25 takes them in the table, the upper one being held: smiles that hardly show teeth are not taken for
    happy ones. The lower lip alone parts them farther than _SMILE_GAP.
    """
    landmarks = target.landmarks
    upper, lower = (line[5:6] for line in _lip_lines(landmarks))
    chin = landmarks[list(CHIN)]
    rise, drop, jaw = (
        np.median((forward_places(flow, points, from_below=below) - points)[:, 1]) / target.interocular
        for points, below in ((upper, False), (lower, True), (chin, True))
    )
    parting = dict.fromkeys(target.asked, 0.0) | {"AU25": 1.0}
    raised, dropped = target.moves((_UPPER_LIP, _LOWER_LIP), **parting)[:, 1]
    at_rest = max(landmarks[_LOWER_LIP, 1] - landmarks[_UPPER_LIP, 1], 0)
    asked = (dropped - _RAISED * raised - at_rest) / target.interocular
    smile, gap = target.asked["AU12"] / 5, max(drop - rise, asked, 0)
    return np.array([(smile, min(gap, _SMILE_GAP), max(jaw, 0)), (smile, gap, max(jaw, 0))])


def _smile_moves(target: _Target, ids: Sequence[int], factors: np.ndarray) -> np.ndarray:
    """(n, 2) px that landmarks `ids` move in a smile: AU12, AU25 and AU26 by factors (3,), others by the
    table."""
    others = {"AU12": 0.0, "AU25": 0.0, "AU26": 0.0}
    if target.own is None:
        moves = np.einsum("nkc,k->nc", target.smile_units[list(ids)], factors)
    else:
        smile, gap, _ = factors
        parts = smooth(target.asked.get("AU25", 0) / 2)
        moves = target.own.lip_moves(5 * smile, gap * target.interocular, parts)[list(ids)]
        others["AU15"] = float(target.asked.get("AU15", 0) > 0)  # corners no longer hang in a smile
    return moves + target.moves(ids, **others)


def _steer_smile(flow: np.ndarray, target: _Target) -> np.ndarray:
    """Both lips, each by the line in its flesh and its outline, as two sheets."""
    if not target.smiles:
        return flow
    landmarks, spread = target.landmarks, _SMILE_SPREAD * target.interocular
    at = np.arange(len(flow), dtype=np.float32)
    factors = _smile_factors(flow, target)
    fields, seams = [], []
    for lip, ((edge, outline), line) in enumerate(zip(_LIPS, _lip_lines(landmarks), strict=True)):
        at_rest = np.concatenate([line, landmarks[list(outline)]])
        moves = _smile_moves(target, edge + outline, factors[lip])
        wanted = at_rest + moves
        missing = target.smiles * (wanted - forward_places(flow, at_rest, from_below=lip == 1))
        most = np.linalg.norm(missing, axis=1).max()
        fields.append(gaussian_field(wanted, missing, at, at, max(spread, _SMOOTH * most)))
        seam = landmarks[list(edge)] + moves[: len(edge)]
        seams.append(np.interp(at, np.maximum.accumulate(seam[:, 0]), seam[:, 1]))
    below = smooth((at[:, None] - np.mean(seams, 0)) / 2 + 0.5)[..., None]
    upper, lower = fields
    return _added(flow, (upper + below * (lower - upper)).astype(np.float32))
