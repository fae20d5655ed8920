"""How well a model edits faces it has not seen: what was asked, what two scorers see, and what it costs.

    python benchmarks/mini_quality.py PHOTOGRAPHS [-o benchmarks/mini_quality.json] [--model RUN]

PHOTOGRAPHS has one folder per identity with `neutral.jpg` and `smiling.jpg`, such as the Face Research Lab
London Set. All edits have the model's default steps and guidance and seed 0. Scorers: MediaPipe's
blendshapes, which also labelled the real training pairs, and the movement of landmarks
(magicedit/faces/geometry.py), which did not. Identity is the L2 distance of dlib's face descriptors
(five-point alignment). Every edit is a row of the result; the tables that are printed follow from the rows.
"""

import argparse
import copy
import functools
import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import cv2
import numpy as np
from machine import circumstances
from scipy.stats import spearmanr

from magicedit.action_units import BILATERAL, EMOTIONS, NAMES
from magicedit.baselines import WarpEditor
from magicedit.editor import ExpressionEditor
from magicedit.faces import (
    Face,
    align,
    crop_face,
    geometric_change,
    identity_distance,
)
from magicedit.faces.regions import polygon_mask, reachable_region, region_polygon
from magicedit.imaging import Photo, open_photo
from magicedit.models.face_model import PipelineModel

VALIDATION = [
    "001",
    "011",
    "024",
    "036",
    "062",
    "083",
    "101",
    "115",
    "126",
    "138",
]  # of the London set, never trained on
LEVELS = (1.0, 2.0, 3.0, 4.0, 5.0)
SCORERS = ("blendshapes", "landmarks")
CALIBRATION = Path(__file__).with_name("muscle_calibration.json")
MODEL_SIZE = 96  # px: the smallest crop of a model that is measured here
CROP = 256  # px a side of the crops in which mouths are compared
SMILES = 2.0  # a photograph with more AU12 smiles
SEEN = 0.1  # intensity steps: a smaller change is no direction
TEETH = (0.45, 0.35)  # least value and most saturation (HSV, 0..1) of a pixel that may be a tooth
SHOWN = 0.1  # a mouth shows teeth if this share of it is such pixels


class Subject:
    """One identity: photographs and faces by "neutral" and "smiling"."""

    def __init__(self, editor: ExpressionEditor, folder: Path):
        self.name = folder.name
        self.editor = editor
        self.photos: dict[str, Photo] = {}
        self.faces: dict[str, Face] = {}
        for expression in ("neutral", "smiling"):
            self.photos[expression] = open_photo(folder / f"{expression}.jpg")
            self.faces[expression] = editor.measure(self.photos[expression])[0]

    def row(self, kind: str, request: str, pixels: np.ndarray, *, of: str = "neutral", **more) -> dict:
        """What an edited photograph, (height, width, 3) uint8, changed."""
        photo, before = self.photos[of].pixels, self.faces[of]
        found = self.editor.backend.detect(np.ascontiguousarray(pixels))
        row = {"identity": self.name, "kind": kind, "request": request, "photograph": of, **more}
        if not found:
            return row | {"lost": True}
        after = found[0]
        turned = [
            abs(getattr(after.pose, axis) - getattr(before.pose, axis)) for axis in ("yaw", "pitch", "roll")
        ]
        distance = identity_distance(photo, before, pixels, after)
        blendshapes = {n: after.action_units[n] - v for n, v in before.action_units.items()}
        sides = {n: after.sides[n] - v for n, v in before.sides.items()}
        return row | {
            "blendshapes": _rounded(blendshapes | sides),
            "landmarks": _rounded(geometric_change(before.landmarks, after.landmarks)),
            "identity_distance": distance and round(distance, 4),
            "turned_degrees": round(max(turned), 2),
            "pixels_changed_outside": int((pixels != photo)[_outside(before, photo.shape)].any(-1).sum()),
        }

    def crop(self, pixels: np.ndarray, of: str) -> tuple[np.ndarray, np.ndarray]:
        """Rigidly aligned crop of a photograph, by the face of `of`, and that face's landmarks."""
        alignment = align(self.faces[of], CROP)
        return crop_face(pixels, alignment), alignment.apply(self.faces[of].landmarks)

    def smile(self) -> dict[str, float]:
        """The measured difference of the two photographs."""
        neutral, smiling = (self.faces[of].action_units for of in ("neutral", "smiling"))
        return {name: smiling[name] - neutral[name] for name in NAMES}


def _rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: round(float(value), 3) for name, value in values.items()}


def _outside(face: Face, shape: tuple[int, ...]) -> np.ndarray:
    """(height, width) bool: beyond the region in which the editor may change a face."""
    side = max(shape[:2])
    region = reachable_region(face.landmarks, side, face.scheme)[: shape[0], : shape[1]]
    margin = int(np.ceil(2 / align(face, MODEL_SIZE).scale))  # the model's pixels are this coarse
    return cv2.dilate(region.astype(np.uint8), np.ones((2 * margin + 1,) * 2, np.uint8)) == 0


# --- The edits ---


def rows_of(subject: Subject) -> Iterable[dict]:
    """All edits of one identity."""
    editor = subject.editor
    neutral, smiling = subject.photos["neutral"], subject.photos["smiling"]

    for name in NAMES:
        for level, result in zip(LEVELS, editor.sweep(neutral, name, 1, 5, 5, measure=False), strict=True):
            yield subject.row("level", f"{name}={level:+g}", np.asarray(result.image), au=name, level=level)
    for name in ("AU12", "AU25"):
        for level, result in zip(LEVELS, editor.sweep(smiling, name, -1, -5, 5, measure=False), strict=True):
            row = subject.row(
                "relax", f"{name}={-level:+g}", np.asarray(result.image), of="smiling", au=name, level=-level
            )
            yield row | {"intensity": round(subject.faces["smiling"].action_units[name], 3)}
    for name in BILATERAL:
        for side in "LR":
            result = editor.edit(neutral, add={name + side: 3}, measure=False)
            yield subject.row("side", f"{name}{side}=+3", np.asarray(result.image), au=name, side=side)
    for emotion in EMOTIONS:
        result = editor.edit(neutral, emotion=emotion, measure=False)
        yield subject.row("emotion", emotion, np.asarray(result.image))

    result = editor.edit(neutral, add={"AU12": 3}, seed=1, measure=False)
    yield subject.row("seed", "AU12=+3", np.asarray(result.image))
    result = without_au_layer(editor).edit(neutral, add={"AU12": 3}, measure=False)
    yield subject.row("zeroed", "AU12=+3", np.asarray(result.image))
    editor.edit(neutral, add={"AU12": 3})  # the face is known from here on
    for name in NAMES[:4]:
        started = time.perf_counter()
        editor.edit(neutral, add={name: 3})
        yield {"identity": subject.name, "kind": "speed", "seconds": round(time.perf_counter() - started, 3)}

    pixels = np.asarray(editor.edit(neutral, add={"AU12": 4, "AU25": 3}, measure=False).image)
    row = subject.row("teeth", "AU12=+4,AU25=+3", pixels)
    (found,) = editor.backend.detect(pixels)[:1] or [subject.faces["neutral"]]
    real = teeth_share(smiling.pixels, subject.faces["smiling"])
    yield row | {"teeth": round(teeth_share(pixels, found), 4), "real_teeth": round(real, 4)}
    yield mouth_row(subject)


def without_au_layer(editor: ExpressionEditor) -> ExpressionEditor:
    """The same editor, its denoiser's AU layer zero; nor do the muscles steer the mouth's corners."""
    pipeline = copy.deepcopy(editor.pipeline)
    for parameter in pipeline.unet.class_embedding.parameters():
        parameter.data.zero_()
    return ExpressionEditor(Unsteered(pipeline), editor.backend)


class Unsteered(PipelineModel):
    """A pipeline alone, whose edits the editor does not correct."""

    follows_muscles = False


def teeth_share(pixels: np.ndarray, face: Face) -> float:
    """Share of the polygon between the lips that is bright and unsaturated; 0 for closed lips."""
    alignment = align(face, 2 * CROP)
    crop = crop_face(pixels, alignment)
    inside = polygon_mask(region_polygon(alignment.apply(face.landmarks), face.scheme, "mouth"), 2 * CROP)
    if inside.sum() < 60:  # px: closed
        return 0.0
    hsv = cv2.cvtColor(crop, cv2.COLOR_RGB2HSV)[inside] / (180, 255, 255)
    value, saturation = TEETH
    return float(((hsv[:, 2] >= value) & (hsv[:, 1] <= saturation)).mean())


def mouth_row(subject: Subject) -> dict:
    """Model and warp, both given the measured smile, against the real one inside its mouth region."""
    smile = {name: float(np.clip(value, -10, 10)) for name, value in subject.smile().items()}
    neutral = subject.photos["neutral"]
    edited = {
        "model": np.asarray(subject.editor.edit(neutral, add=smile, measure=False).image),
        "warp": WarpEditor(subject.editor.backend)(neutral, smile),
        "unedited": neutral.pixels,
    }
    real, landmarks = subject.crop(subject.photos["smiling"].pixels, "smiling")
    mouth = polygon_mask(region_polygon(landmarks, "mediapipe478", "lips"), CROP)
    row = {"identity": subject.name, "kind": "mouth", "request": _rounded(smile)}
    for name, pixels in edited.items():
        crop, _ = subject.crop(pixels, "neutral")
        difference = (crop.astype(float) - real)[mouth]
        row[name] = {
            "rmse": round(float(np.sqrt((difference**2).mean())), 2),  # of 255
            "sobel_error": round(abs(float(sobel(crop)[mouth].mean() - sobel(real)[mouth].mean())), 3),
        }
    return row


def sobel(pixels: np.ndarray) -> np.ndarray:
    """Magnitude of the grey picture's gradient."""
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY).astype(np.float32)
    return np.hypot(cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1))


# --- What follows from them ---


def seen_by(calibration: dict) -> dict[str, list[str]]:
    """By AU the scorers that respond to the muscles themselves: by a step or more at five commanded."""
    curves = calibration["median_change"]
    seen = {name: [s for s in SCORERS if curves[name][s][-1] >= 1.0] for name in NAMES}
    return seen | {"AU25": ["landmarks"]}  # its intensity is a gap of landmarks too, see faces/measure.py


def summary_of(rows: list[dict], calibration: dict) -> dict:
    faces = len({row["identity"] for row in rows})
    lost = [row for row in rows if row.get("lost")]  # count as not reached below
    rows = [row for row in rows if not row.get("lost")]
    kinds: dict[str, list[dict]] = {}
    for row in rows:
        kinds.setdefault(row["kind"], []).append(row)
    scorers = seen_by(calibration)
    by_au = {}
    for name in NAMES:
        at_3 = [row for row in kinds["level"] if row["au"] == name and row["level"] == 3.0]
        others = [abs(row["blendshapes"][other]) for row in at_3 for other in NAMES if other != name]
        distances = [row["identity_distance"] for row in at_3 if row["identity_distance"] is not None]
        by_au[name] = {
            "faces": faces,
            **{
                f"mean_change_by_{scorer}": _mean(row[scorer][name] for row in at_3) for scorer in SCORERS
            },
            **{
                f"right_direction_by_{scorer}": sum(row[scorer][name] > SEEN for row in at_3)
                for scorer in SCORERS
            },
            "seen_by": scorers[name],
            "spearman": {
                scorer: _within_face(kinds["level"], name, scorer) for scorer in scorers[name]
            },
            "mean_absolute_change_of_others": _mean(others),
            "mean_identity_distance": _mean(distances, 3),
            "max_identity_distance": max(distances, default=None),
            "max_turned_degrees": max(row["turned_degrees"] for row in at_3),
        }  # fmt: skip
    smile_3 = [r for r in kinds["level"] if r["au"] == "AU12" and r["level"] == 3.0]
    relaxed = [
        r for r in kinds["relax"] if r["au"] == "AU12" and r["level"] == -3.0 and r["intensity"] > SMILES
    ]
    toothed = [row for row in kinds["teeth"] if row["real_teeth"] >= SHOWN]
    mouths = kinds["mouth"]
    return {
        "by_au": by_au,
        "AU12_mean_change_by_request": {
            f"{level:g}": _mean(
                r["blendshapes"]["AU12"] for r in kinds["level"] if r["au"] == "AU12" and r["level"] == level
            )
            for level in LEVELS
        },
        "faces": faces,
        "edits_whose_face_was_lost": len(lost),
        "AU12_up": sum(r["blendshapes"]["AU12"] >= 1.5 for r in smile_3),
        "AU12_down": [sum(r["blendshapes"]["AU12"] <= -1.5 for r in relaxed), len(relaxed)],
        "relax_spearman": {
            name: _within_face([r for r in kinds["relax"] if r["intensity"] > SMILES], name, "blendshapes")
            for name in ("AU12", "AU25")
        },
        "AU4_blinks": _mean(
            abs(r["blendshapes"]["AU45"]) for r in kinds["level"] if r["au"] == "AU4" and r["level"] == 3.0
        ),
        "turned_degrees": {
            "mean": _mean(row["turned_degrees"] for row in kinds["level"] if row["level"] == 3.0),
            "max": max(row["turned_degrees"] for row in kinds["level"] if row["level"] == 3.0),
        },
        "pixels_changed_outside": sum(row.get("pixels_changed_outside", 0) for row in rows),
        "teeth": {
            "faces_at_half_of_the_real": sum(r["teeth"] >= r["real_teeth"] / 2 for r in toothed),
            "faces_whose_smile_shows_teeth": len(toothed),
            "mean_share": _mean((r["teeth"] for r in kinds["teeth"]), 3),
            "mean_real_share": _mean((r["real_teeth"] for r in kinds["teeth"]), 3),
        },
        "mouth_against_warp": {
            measure: {
                "nearer": sum(row["model"][measure] < row["warp"][measure] for row in mouths),
                "faces": len(mouths),
                **{
                    name: _mean(row[name][measure] for row in mouths)
                    for name in ("model", "warp", "unedited")
                },
            }
            for measure in ("rmse", "sobel_error")
        },
        "AU_layer_zeroed_mean_absolute_change": _mean(
            abs(value)
            for row in kinds["zeroed"]
            for name, value in row["blendshapes"].items()
            if name in NAMES
        ),
        "other_seed_mean_difference_of_AU12": _mean(
            abs(a["blendshapes"]["AU12"] - b["blendshapes"]["AU12"])
            for a in kinds.get("seed", [])
            for b in smile_3
            if a["identity"] == b["identity"]
        ),
        "sides": {name: _sides([r for r in kinds["side"] if r["au"] == name], name) for name in BILATERAL},
        "median_seconds": round(statistics.median(row["seconds"] for row in kinds["speed"]), 2),
    }


def _mean(values: Iterable[float], digits: int = 2) -> float | None:
    values = list(values)
    return round(statistics.mean(values), digits) if values else None


def _within_face(rows: list[dict], name: str, scorer: str) -> float | None:
    """Median over faces of the rank correlation of requests, 0 included, and measured changes."""
    by_face: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        if row["au"] == name:
            by_face.setdefault(row["identity"], [(0.0, 0.0)]).append((row["level"], row[scorer][name]))
    found = [spearmanr(*zip(*pairs, strict=True)).statistic for pairs in by_face.values()]
    return round(float(np.median(np.nan_to_num(found))), 3) if found else None


def _sides(rows: list[dict], name: str) -> dict:
    """Change of the side asked for and of the other, by each scorer, and how often it is the larger."""
    result = {}
    for scorer in SCORERS:
        pairs = [
            (row[scorer][name + row["side"]], row[scorer][name + {"L": "R", "R": "L"}[row["side"]]])
            for row in rows
        ]
        result[scorer] = {
            "asked": _mean(asked for asked, _ in pairs),
            "other": _mean(other for _, other in pairs),
            "asked_larger": sum(asked > other + SEEN for asked, other in pairs),
            "edits": len(pairs),
        }
    return result


def checks_of(summary: dict) -> list[dict]:
    """The lines of what a good model must reach: what, wanted, got, reached."""
    by_au = summary["by_au"]
    lines: list[dict] = []

    def line(what: str, wanted: str, got: str, reached: bool) -> None:
        lines.append({"what": what, "wanted": wanted, "got": got, "reached": bool(reached)})

    faces, up, lost = summary["faces"], summary["AU12_up"], summary["edits_whose_face_was_lost"]
    line("edits after which the face was not found again", "0", f"{lost}", lost == 0)
    line("AU12 = +3 measures +1.5 or more", f"{faces - 1} of {faces}", f"{up}", up >= faces - 1)
    down, smiling = summary["AU12_down"]
    line("smiling faces, AU12 = -3: -1.5 or less", "8 of 10", f"{down} of {smiling}", down >= 0.8 * smiling)
    for name in NAMES:
        if name in ("AU6", "AU9"):
            allowed = ["landmarks"]
        else:
            allowed = by_au[name]["seen_by"]
        right = {scorer: by_au[name][f"right_direction_by_{scorer}"] for scorer in allowed}
        best = max(right.values(), default=0)
        got = ", ".join(f"{count} by {scorer}" for scorer, count in right.items())
        line(f"{name} = +3 goes up", f"{faces - 1} of {faces}", got or "no scorer", best >= faces - 1)
    for name in NAMES:
        for scorer, value in by_au[name]["spearman"].items():
            line(f"{name} 0 to 5, Spearman by {scorer}", "0.9", *_at_least(value, 0.9))
    for name, value in summary["relax_spearman"].items():
        line(f"{name} 0 to -5 of smiles, Spearman", "0.9", *_at_least(value, 0.9))
    others = _mean(row["mean_absolute_change_of_others"] for row in by_au.values())
    line("change of AUs not asked for, at +3", "0.3", f"{others:.2f}", others <= 0.3)
    blinks = summary["AU4_blinks"]
    line("AU4 = +3 changes AU45", "under 0.3", f"{blinks:.2f}", blinks < 0.3)
    measured = [row for row in by_au.values() if row["mean_identity_distance"] is not None]
    if measured:
        mean = _mean((row["mean_identity_distance"] for row in measured), 3)
        most = max(row["max_identity_distance"] for row in measured)
        line("identity distance at +3, mean over AUs", "0.26", f"{mean:.2f}", mean <= 0.26)
        line("identity distance at +3, every face", "under 0.40", f"{most:.2f}", most < 0.40)
    turned = summary["turned_degrees"]
    got = f"{turned['mean']:.2f} ({turned['max']:.1f})"
    line("head pose change at +3, mean (largest)", "under 1 degree", got, turned["mean"] < 1)
    outside = summary["pixels_changed_outside"]
    line("pixels changed outside the face, all edits", "0", f"{outside}", outside == 0)
    teeth = summary["teeth"]
    shown = teeth["faces_whose_smile_shows_teeth"]
    line("teeth at AU12 = +4, AU25 = +3: half of the real smile's", "8 of 10",
         f"{teeth['faces_at_half_of_the_real']} of {shown}",
         teeth["faces_at_half_of_the_real"] >= 0.8 * shown)  # fmt: skip
    for measure, row in summary["mouth_against_warp"].items():
        line(f"mouth nearer to the real smile than the warp, {measure}", "7 of 10",
             f"{row['nearer']} ({row['model']:.1f} against {row['warp']:.1f})",
             row["nearer"] >= 0.7 * row["faces"])  # fmt: skip
    zeroed = summary["AU_layer_zeroed_mean_absolute_change"]
    line("mean change with the AU layer zeroed", "0", f"{zeroed:.2f}", zeroed < 0.1)
    seed = summary["other_seed_mean_difference_of_AU12"]
    line("AU12 = +3, difference of another seed", "0", f"{seed:.2f}", seed < 0.2)
    line("an edit of a known face, measured before and after", "1.5 s", f"{summary['median_seconds']:.2f} s",
         summary["median_seconds"] < 1.5)  # fmt: skip
    return lines


def _at_least(value: float | None, bound: float) -> tuple[str, bool]:
    return ("nothing to measure", False) if value is None else (f"{value:.2f}", value >= bound)


def table_of(summary: dict) -> str:
    """By AU at +3, in Markdown."""
    lines = [
        "| AU at +3 | by blendshapes | by landmarks | faces moved up, by the better scorer "
        "| change of other AUs | identity distance (max) |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in summary["by_au"].items():
        distance = "not measured"
        if row["mean_identity_distance"] is not None:
            distance = f"{row['mean_identity_distance']:.2f} ({row['max_identity_distance']:.2f})"
        moved = max(row[f"right_direction_by_{scorer}"] for scorer in row["seen_by"] or SCORERS)
        remark = {
            s: "" if s in row["seen_by"] else " (lip gap too)" if name == "AU25" else " (blind)"
            for s in SCORERS
        }
        changes = " | ".join(f"{row[f'mean_change_by_{s}']:+.2f}{remark[s]}" for s in SCORERS)
        others = row["mean_absolute_change_of_others"]
        lines.append(f"| {name} | {changes} | {moved} of {row['faces']} | {others:.2f} | {distance} |")
    return "\n".join(lines)


def sides_table_of(summary: dict) -> str:
    """One side at +3: its change and the other side's, in Markdown."""
    lines = [
        "| one side at +3 | its change by landmarks | the other side's | the larger one |",
        "|---|---|---|---|",
    ]
    for name, by_scorer in summary["sides"].items():
        row = by_scorer["landmarks"]
        asked_larger = f"{row['asked_larger']} of {row['edits']}"
        lines.append(f"| {name} | {row['asked']:+.2f} | {row['other']:+.2f} | {asked_larger} |")
    return "\n".join(lines)


def checks_table_of(checks: list[dict]) -> str:
    """What was wanted and what was reached, in Markdown."""
    lines = ["| | wanted | measured | |", "|---|---|---|---|"]
    lines += [
        f"| {c['what']} | {c['wanted']} | {c['got']} | {'reached' if c['reached'] else '**missed**'} |"
        for c in checks
    ]
    return "\n".join(lines)


@functools.cache
def _editor(model: str, settings: tuple) -> ExpressionEditor:
    """One for each process."""
    editor = ExpressionEditor.from_pretrained(model, device="cpu")
    editor.pipeline.register_to_config(**dict(settings))
    return editor


def rows_of_identity(photographs: Path, model: str, settings: dict, identity: str) -> list[dict]:
    subject = Subject(_editor(model, tuple(settings.items())), photographs / identity)
    rows = list(rows_of(subject))
    print(identity, file=sys.stderr, flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photographs", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--model", default="mini")
    parser.add_argument("--identities", nargs="+", default=VALIDATION)
    parser.add_argument("--jobs", type=int, default=1, help="processes; times are those of one among them")
    parser.add_argument("--guidance", type=float, help="instead of the model's default")
    parser.add_argument("--steps", type=int, help="instead of the model's default")
    args = parser.parse_args()
    settings = {"default_guidance_scale": args.guidance, "default_steps": args.steps}
    settings = {name: value for name, value in settings.items() if value is not None}
    work = functools.partial(rows_of_identity, args.photographs, args.model, settings)
    with ProcessPoolExecutor(args.jobs, multiprocessing.get_context("spawn")) as pool:
        rows = [row for found in pool.map(work, args.identities) for row in found]
    summary = summary_of(rows, json.loads(CALIBRATION.read_text()))
    checks = checks_of(summary)
    data = {**circumstances(), "checks": checks, "summary": summary}
    text = json.dumps(data, indent=1)
    lines = ",\n".join("  " + json.dumps(row) for row in rows)
    args.output.write_text(f'{text[:-2]},\n "rows": [\n{lines}\n ]\n}}\n')  # a line a row
    print(table_of(summary))
    print(checks_table_of(checks))


if __name__ == "__main__":
    main()
