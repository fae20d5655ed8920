"""The mouth as a layer of its own: lips that part are two sheets, and between them a real mouth shows.

A network of this size cannot invent teeth, and its flow smears where two lips that touch come apart. So a
change's flow says where the lips go, and what lies between them is composed at the photograph's resolution:

    lips    the photograph's own pixels, each lip moved by the flow in its flesh, up to its edge
    teeth   fixed to the skull: the person's own, or a donor's
    floor   tongue and lower teeth, on the lower lip

Crop px are pixels of the aligned crop, in which a face stands upright; iod are interocular distances.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from magicedit.change import Change
from magicedit.faces.alignment import Alignment
from magicedit.faces.frame import face_frame
from magicedit.faces.regions import smooth
from magicedit.warping.change import carry_change, in_channels, replace_where
from magicedit.warping.inside import Opening, Parting, like_photograph, read_curve, render_inside
from magicedit.warping.muscles import LOWER_LIP_EDGE, NOSE_BASE, UPPER_LIP_EDGE
from magicedit.warping.seam import LOWER_LIP_OUTLINE, UPPER_LIP_OUTLINE, snap_seam
from magicedit.warping.teeth import Mouth, blur_of

CHIN = (152, 148, 377)

GATE = (0.030, 0.055)  # iod that lips part beyond what the photograph shows: no layer below, all of it above
_TOUCHING = 0.012  # iod between lips that are closed
_CORNERS = 0.6  # of the way from the landmarks of the opening's corners to those of the lips'
FLESH = 0.55  # of the way from a lip's inner edge to its outline: where its movement is read
# Of the way from a lip's outline to the nose's base or the chin: elsewhere to read it
_BESIDE = (0.0, 0.35, 0.7)
# Of the widest opening, between an upper lip and the lower one: more where it does not go with it
_HELD = 0.5
_CHIN_DENT = 200  # landmark below the lower lip
_LIP_ALONE = 0.060  # iod that the lower lip drops without the jaw, about
# How near to an ellipse a jaw brings an opening, 0..1, and iod that it drops from the first sign to that
_OVAL, _JAW_ROUNDS = 0.8, (0.05, 0.15)
_SAME = 0.02  # crop px: movements that differ by less are the same
_MOVES = 0.15  # crop px beyond that, from which on a column takes all of the layer
# iod above and below a lip's edge in which its sheet turns into the flow of the skin: in the middle, and what
# is added at the corners
_LIP_REACH = (0.06, 0.30)
_THICKER = 2.0  # at most, of a lip down a column beside a steep edge
_CORNER_FADE = 0.28  # iod beyond the corners of the mouth over which the two sheets become one


def part_lips(flow: np.ndarray, landmarks: np.ndarray, parts: bool = True) -> Parting:
    """What a flow (size, size, 2) does to the lips of landmarks (478, 2), both in crop px.

    Each lip's movement is read along a line in its flesh. A flow that parts lips folds where they part, and a
    model may fold it beside a lip instead of between the two, so that one lip goes with the other. So where
    lips are to part (`parts`) the skin beside each lip is read too, and the line counts that goes farthest
    away from the other lip: natural differences between these lines are small beside a fold.
    """
    landmarks = np.asarray(landmarks, np.float64)
    interocular = face_frame(landmarks).interocular
    edges = [landmarks[list(ids)] for ids in (UPPER_LIP_EDGE, LOWER_LIP_EDGE)]
    outlines = [landmarks[list(ids)] for ids in (UPPER_LIP_OUTLINE, LOWER_LIP_OUTLINE)]
    for edge, outline in zip(edges, outlines, strict=True):  # lips touch, and part, farther out
        edge[[0, -1]] += _CORNERS * (outline[[0, -1]] - edge[[0, -1]])
    seam = (edges[0] + edges[1]) / 2
    closed = (edges[1] - edges[0])[:, 1] < _TOUCHING * interocular
    closed[[0, -1]] = True
    edges = [np.where(closed[:, None], seam, edge) for edge in edges]

    # 1. The flesh of each lip, forwards; the corners hang together
    along = np.linspace(-1, 1, len(seam))
    bow = (1 - along**2)[:, None]
    lines, moves = [], []  # by lip: the line in its flesh first, then those beside it; (lines, 11, 2)
    for lip, beside in enumerate(landmarks[[NOSE_BASE, _CHIN_DENT]]):
        edge, outline = edges[lip], outlines[lip]
        lines.append([edge + FLESH * (outline - edge)])
        if parts:
            away = np.array([0.0, beside[1] - outline[5, 1]])
            lines[lip] += [outline + share * bow * away for share in _BESIDE]
        moves.append(
            np.stack([forward_places(flow, line, from_below=lip == 1) - line for line in lines[lip]])
        )
    columns = np.arange(len(seam))
    highest, lowest = moves[0][..., 1].argmin(0), moves[1][..., 1].argmax(0)  # (11,) numbers of lines
    widest = moves[1][lowest, columns, 1] - moves[0][highest, columns, 1]
    held = moves[1][lowest, columns, 1] - moves[0][0, :, 1] > _HELD * widest
    highest[held] = 0  # the skin below the nose may rise farther by itself, as in a wrinkled nose
    chosen = highest, lowest
    flesh = [np.stack(lines[lip])[chosen[lip], columns] for lip in (0, 1)]
    shifts = [moves[lip][chosen[lip], columns] for lip in (0, 1)]
    for end in (0, -1):
        joined = (shifts[0][end] + shifts[1][end]) / 2
        lowest = (shifts[0][5, 1] + shifts[1][5, 1]) / 2  # a corner hangs half-way of the gap at most
        shifts[0][end] = shifts[1][end] = joined[0], min(joined[1], max(lowest, shifts[0][end][1]))
    shifts = [_even(along, shift) for shift in shifts]

    # 2. The jaw: the chin's drop, or as much of the lower lip's as the lip alone cannot do
    chin = landmarks[list(CHIN)]
    drop = np.median((forward_places(flow, chin, from_below=True) - chin)[:, 1])
    jaw = max(drop, shifts[1][4:7, 1].mean() - _LIP_ALONE * interocular, 0) / interocular
    oval = _OVAL * _jaw_rounds(jaw)
    shifts = [_round(edge, shift, oval) for edge, shift in zip(edges, shifts, strict=True)]
    upper, lower = (edge + shift for edge, shift in zip(edges, shifts, strict=True))
    crossed = np.maximum(upper[:, 1] - lower[:, 1], 0) / 2  # lips that would pass through each other meet
    upper[:, 1] -= crossed
    lower[:, 1] += crossed
    holds = [line + shift for line, shift in zip(flesh, shifts, strict=True)]
    return Parting(*edges, upper, lower, *holds, float(jaw), float(interocular))


def _jaw_rounds(jaw: float) -> float:
    """0..1: how far a jaw that drops by `jaw` iod rounds the mouth."""
    return float(smooth((jaw - _JAW_ROUNDS[0]) / np.ptp(_JAW_ROUNDS)))


def forward_places(flow: np.ndarray, points: np.ndarray, from_below: bool) -> np.ndarray:
    """Where points (n, 2) of the photograph lie after the change.

    In each column the first place that reads them, from above or from below: a flow that parts lips reads
    about one row all over the gap, and has no other inverse. Between rows it is interpolated, so that a
    rounding of the flow moves no lip by a whole step.
    """
    rows = np.arange(0, len(flow) - 1, 0.125, np.float32)
    columns = points[:, 0].astype(np.float32)
    numbers = np.arange(len(points))
    for _ in range(4):
        x = np.repeat(columns[:, None], len(rows), 1)
        y = np.repeat(rows[None], len(points), 0)
        found = cv2.remap(flow, x, y, cv2.INTER_LINEAR)  # (n, rows, 2)
        beyond = rows + found[..., 1] - points[:, 1:2]  # px; from 0 on the row reads the point or more
        read = beyond >= 0
        at = len(rows) - (~read[:, ::-1]).argmax(1) if from_below else read.argmax(1)
        at = at.clip(1, len(rows) - 1)
        before, after = beyond[numbers, at - 1], beyond[numbers, at]
        share = np.clip(before / np.minimum(before - after, -1e-6), 0, 1)  # of the way to row `at`
        sideways = found[numbers, at - 1, 0] * (1 - share) + found[numbers, at, 0] * share
        columns = (points[:, 0] - sideways).astype(np.float32)
    return np.stack([columns, rows[at - 1] + share * (rows[1] - rows[0])], 1).astype(np.float64)


def _even(along: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Shifts (n, 2) at places `along` -1..1 of a lip as the nearest even curve with the same ends.

    Ripples of a flow that was learned on a small crop would show as a ragged lip.
    """
    base = shift[0] + (shift[-1] - shift[0]) * ((along + 1) / 2)[:, None]
    bow = 1 - along**2
    bows = np.stack([np.sqrt(bow), bow, bow * along, bow * along**2], 1)
    ridge = np.diag([0.01, 0.03, 0.05, 0.05])
    return base + bows @ np.linalg.solve(bows.T @ bows + ridge, bows.T @ (shift - base))


def _round(edge: np.ndarray, shift: np.ndarray, share: float) -> np.ndarray:
    """Shifts (n, 2) of a lip's edge (n, 2), by a share 0..1 nearer to half an ellipse.

    Its ends and its middle stay. A jaw opens the mouth as an oval; a flow that was learned on a small crop
    makes it a diamond.
    """
    columns = (edge + shift)[:, 0]
    along = 2 * (columns - columns[0]) / max(columns[-1] - columns[0], 1e-3) - 1
    bow, middle = np.sqrt(np.clip(1 - along**2, 0, 1)), len(edge) // 2
    ends = shift[0, 1] + (shift[-1, 1] - shift[0, 1]) * (along + 1) / 2
    oval = ends + bow / bow[middle] * (shift[middle, 1] - ends[middle])
    return np.stack([shift[:, 0], shift[:, 1] + share * (oval - shift[:, 1])], 1)


@dataclass(frozen=True, eq=False)
class _Curves:
    """Curves over the columns of a crop, read anywhere: heights in crop px."""

    parting: Parting
    size: int
    fine: int = 4  # places a crop px

    def through(self, points: np.ndarray) -> np.ndarray:
        """A polyline (n, 2), level beyond its ends, evened out."""
        columns = np.arange(self.size * self.fine, dtype=np.float32) / self.fine
        curve = np.interp(columns, np.maximum.accumulate(points[:, 0]), points[:, 1]).astype(np.float32)
        return self.even(curve)

    def even(self, curve: np.ndarray) -> np.ndarray:
        sigma = 0.02 * self.parting.interocular * self.fine
        return cv2.GaussianBlur(curve[None], (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)[0]

    def read(self, curve: np.ndarray, x: np.ndarray) -> np.ndarray:
        return read_curve(curve, x * self.fine)

    def edges(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Heights of the upper and of the lower lip's edge at columns x; the gap closes at the corners."""
        p = self.parting
        columns = np.arange(self.size * self.fine, dtype=np.float32) / self.fine
        upper, lower = self.even(_rounded(p.upper, columns)), self.even(_rounded(p.lower, columns))
        inside = np.minimum(columns - p.upper[0, 0], p.upper[-1, 0] - columns)
        taper = np.sqrt(np.clip(inside / (0.05 * p.interocular), 0, 1))
        gap, middle = np.maximum(lower - upper, 0) * taper, (upper + lower) / 2
        return self.read(middle - gap / 2, x), self.read(middle + gap / 2, x)


def _rounded(edge: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Heights of a lip's edge (points, 2) at columns: between points by the angle around its middle,
    so that an opening is round at its corners."""
    ends = edge[0, 0], max(edge[-1, 0], edge[0, 0] + 1e-3)

    def angle(x: np.ndarray) -> np.ndarray:
        return np.arccos(1 - 2 * np.clip((x - ends[0]) / (ends[1] - ends[0]), 0, 1))

    return np.interp(angle(columns), np.maximum.accumulate(angle(edge[:, 0])), edge[:, 1]).astype(np.float32)


def _lengthened(edge: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Lengths (h, w) of a curve of heights `edge` at columns x, by those of the columns."""
    return np.hypot(1, np.gradient(edge, axis=1) / np.maximum(np.abs(np.gradient(x, axis=1)), 1e-3))


def carry_mouth(
    pixels: np.ndarray,
    alignment: Alignment,
    change: Change,
    region: np.ndarray,
    landmarks: np.ndarray,
    mouth: Mouth | None,
    parts: bool = True,
    *,
    in_place: bool = False,
) -> np.ndarray:
    """`carry_change`, with the lips as two sheets and `mouth` between them.

    Args:
        pixels: the photograph, (height, width, 3) uint8 RGB.
        alignment, change, region: as of `carry_change`; what the change paints around the mouth is lost.
        landmarks: MediaPipe's (478, 2), photograph px.
        mouth: the teeth to show where the lips part; None: no teeth.
        parts: whether closed lips may part; if not, the layer serves mouths alone whose inside is seen.
        in_place: whether `pixels` itself is changed.

    Returns:
        a new photograph, or `pixels`; where the lips do not part by GATE it is `carry_change`'s.
    """
    layer = _layer(pixels, alignment, change, region, landmarks, mouth, parts)
    moved = carry_change(pixels, alignment, change, region, in_place=in_place)
    if layer is None:
        return moved
    (x0, y0, x1, y1), composed, share, used = layer
    view = moved[y0:y1, x0:x1]
    composed = view + in_channels(share) * (composed - view)
    replace_where(view, np.rint(composed).astype(np.uint8), used)
    return moved


def _layer(
    pixels: np.ndarray,
    alignment: Alignment,
    change: Change,
    region: np.ndarray,
    landmarks: np.ndarray,
    mouth: Mouth | None,
    parts: bool,
) -> tuple[tuple[int, int, int, int], np.ndarray, np.ndarray, np.ndarray] | None:
    """The lips and what lies between them, of the photograph before anything moves; arguments as in
    `carry_mouth`. None where the lips do not part.

    Returns its window x0, y0, x1, y1 of the photograph, (h, w, 3) colours 0..255, (h, w) how far they replace
    those of the photograph, 0..1, and (h, w) bool where.
    """
    if mouth is None or mouth.origin != "photograph":  # else teeth are seen between the lips
        landmarks = snap_seam(pixels, landmarks)
    in_crop = alignment.apply(landmarks).astype(np.float64)
    parting = part_lips(change.flow, in_crop, parts)
    shows = mouth is not None and mouth.origin == "photograph" and parting.shown > GATE[0]
    if not shows and not (parts and parting.opened > GATE[0]):
        return None

    # 1. The window of the photograph that the mouth crosses, and its crop px
    window = _window(parting, alignment, pixels.shape)
    if window is None:
        return None
    x0, y0, x1, y1 = window
    rows, columns = np.mgrid[y0:y1, x0:x1].astype(np.float32)
    m = alignment.matrix.astype(np.float32)
    x, y = (m[k, 0] * columns + m[k, 1] * rows + m[k, 2] for k in (0, 1))
    scale = 1 / alignment.scale  # photograph px a crop px
    curves = _Curves(parting, alignment.size)
    upper, lower = curves.edges(x)
    blur = blur_of(pixels, landmarks)

    # 2. The lips, each its own sheet, and how far they cover what lies behind
    sheets, covers, differs = _lips(
        pixels, alignment, change.flow, region, curves, (x, y), (upper, lower), blur
    )
    skin = sheets[0]
    cv2.copyTo(sheets[1], (y > (upper + lower) / 2).view(np.uint8), skin)
    across = (x > parting.upper[0, 0]) & (x < parting.upper[-1, 0])
    opened = np.where(across, 1 - np.maximum(*covers), 0).astype(np.float32)
    opened = cv2.GaussianBlur(opened, (0, 0), 0.8)  # steep edges would show steps
    if parting.shown < GATE[0]:
        opened *= smooth((parting.opened - GATE[0]) / (GATE[1] - GATE[0]))

    # 3. What lies behind, as soft and as grainy as the photograph
    opening = Opening(pixels, landmarks, in_crop, parting, alignment.size, scale, x, y, upper, lower, opened)
    inside = render_inside(opening, mouth)
    if mouth is not None and mouth.origin != "photograph":
        inside = like_photograph(inside, opening, mouth, blur)
    composed = np.clip(skin + in_channels(opened) * (inside - skin), 0, 255)
    share = _moving(change.flow * region[..., None], parting, x)
    return window, composed, share, (differs | (opened > 0)) & (share > 0)


def _moving(flow: np.ndarray, parting: Parting, x: np.ndarray) -> np.ndarray:
    """How much of the layer columns x (h, w) take, 0..1.

    None where nothing of the mouth moves, as on the side that a one-sided request leaves alone.
    """
    points = np.concatenate([parting.upper, parting.lower, parting.upper_hold, parting.lower_hold])
    top, bottom = (points[:, 1].min(), points[:, 1].max())
    rows = slice(max(int(top) - 1, 0), int(bottom) + 2)
    most = np.linalg.norm(flow[rows], axis=-1).max(0)  # (size,)
    return read_curve(smooth((most - _SAME) / _MOVES), x)


def _window(
    parting: Parting, alignment: Alignment, shape: tuple[int, ...]
) -> tuple[int, int, int, int] | None:
    """x0, y0, x1, y1 of the photograph around the moved mouth; None where that lies outside."""
    inverse = alignment.inverse()
    points = np.concatenate([parting.upper, parting.lower, parting.upper_hold, parting.lower_hold])
    points = points @ inverse[:, :2].T + inverse[:, 2]
    margin = np.array([_CORNER_FADE, sum(_LIP_REACH)]) + 0.02
    margin *= parting.interocular / alignment.scale
    x0, y0 = np.maximum(np.floor(points.min(0) - margin).astype(int), 0)
    x1, y1 = np.minimum(np.ceil(points.max(0) + margin).astype(int), (shape[1], shape[0]))
    return (int(x0), int(y0), int(x1), int(y1)) if x1 > x0 and y1 > y0 else None


def _lips(
    pixels: np.ndarray,
    alignment: Alignment,
    flow: np.ndarray,
    region: np.ndarray,
    curves: _Curves,
    at: tuple[np.ndarray, np.ndarray],
    edges: tuple[np.ndarray, np.ndarray],
    blur: float,
) -> tuple[list[np.ndarray], list[np.ndarray], np.ndarray]:
    """The photograph as moved by the upper and by the lower lip, (h, w, 3) each, their covers (h, w), and
    where either differs from what the flow alone does, (h, w) bool.

    Beyond the line in the lip's flesh a sheet goes on with the flow of that line, so that its edge reads the
    edge of the photograph's lip.
    """
    p, (x, y) = curves.parting, at
    inverse = alignment.inverse().astype(np.float32)
    weight = np.clip(cv2.remap(region, x, y, cv2.INTER_LINEAR), 0, 1)
    plain = cv2.split(cv2.remap(flow, x, y, cv2.INTER_CUBIC))
    outside = np.maximum(np.maximum(p.upper[0, 0] - x, x - p.upper[-1, 0]), 0)
    apart = 1 - smooth(outside / (_CORNER_FADE * p.interocular))
    # Photograph px over which an edge fades
    soft = max(1.0, 0.006 * p.interocular / alignment.scale, 2 * blur)
    corner = smooth(1 - np.minimum(x - p.upper[0, 0], p.upper[-1, 0] - x) / (0.12 * p.interocular))
    sheets, covers, differs, rounds = [], [], np.zeros(x.shape, bool), _jaw_rounds(p.jaw)
    lips = (
        (p.upper_hold, p.source_upper, p.upper, edges[0], 1),
        (p.lower_hold, p.source_lower, p.lower, edges[1], -1),
    )
    for hold, source, moved, edge, sign in lips:
        line = curves.read(curves.through(hold), x)
        own = cv2.remap(flow, x, np.minimum(y, line) if sign > 0 else np.maximum(y, line), cv2.INTER_CUBIC)
        sideways = curves.read(curves.through(np.stack([moved[:, 0], (source - moved)[:, 0]], 1)), x)
        read_at = curves.read(curves.through(source), x + sideways)
        down = read_at - edge  # with `sideways` it reads the photograph's edge at the moved one
        if rounds:  # a steep lip stays as thick
            steeper = _lengthened(edge, x) / _lengthened(read_at, x)
            thicker = 1 + rounds * (np.clip(steeper, 1, _THICKER) - 1)
            down += (y - edge) * (1 / thicker - 1)
        reach = _LIP_REACH[0] + _LIP_REACH[1] * corner
        reach = np.maximum(np.abs(line - edge), reach * p.interocular)
        near = 1 - smooth(np.abs(edge - y) / reach)
        near = np.where(sign * (y - edge) > 0, 1, near)
        sheet = [
            part + near * (at_edge - part)
            for part, at_edge in zip(cv2.split(own), (sideways, down), strict=True)
        ]
        beyond = [apart * (part - still) for part, still in zip(sheet, plain, strict=True)]  # the plain flow
        fx, fy = (at + (still + more) * weight for at, still, more in zip((x, y), plain, beyond, strict=True))
        moves = (np.abs(beyond[0]) > _SAME) | (np.abs(beyond[1]) > _SAME)
        differs |= moves & (sign * (y - (edges[0] + edges[1]) / 2) <= 0)
        # Read here, photograph px
        rx, ry = (inverse[k, 0] * fx + inverse[k, 1] * fy + inverse[k, 2] for k in (0, 1))
        read = rx.astype(np.float32), ry.astype(np.float32)
        picture = cv2.remap(pixels, *read, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101)
        sheets.append(picture.astype(np.float32))
        covers.append(np.clip(0.5 + sign * (edge - y) / alignment.scale / soft, 0, 1))
    return sheets, covers, differs
