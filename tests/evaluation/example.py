"""A small REPORT folder whose summary is computed from its rows: what the report and the comparison read."""

import json
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

AUS = ("AU1", "AU4", "AU12", "AU25")
PEOPLE = {"001": "female", "002": "male", "003": "female"}
SCORERS = ("blendshapes", "landmarks68")
LEVELS = (-2.0, 1.0, 2.0, 3.0)
MINI = {"gain": 0.8, "settings": {"guidance": 2.0, "run": "mini", "steps": 6}}
WARP = {"gain": 0.5, "settings": {}}
METRICS = (
    "identity_distance",
    "background_rmse",
    "pose_degrees",
    "pose_matrix",
    "ssim",
    "pixels_changed",
    "seconds",
)


def _share(asked: dict, changed: dict) -> float:
    return sum(changed[au] * v for au, v in asked.items()) / sum(v**2 for v in asked.values())


def _rows(editor: str, gain: float, shift: float, seed: int) -> list[dict]:
    rng = np.random.default_rng([seed, zlib.crc32(editor.encode())])
    requests = [("level", {au: level}) for au in AUS for level in LEVELS]
    requests += [("combination", {"AU12": 2.0, "AU25": 1.0}), ("zero", {}), ("side", {"AU12L": 3.0})]
    rows = []
    for person, gender in PEOPLE.items():
        for kind, asked in requests:
            target = np.array([asked.get(au, asked.get(f"{au}L", 0.0)) for au in AUS])
            changed, errors = {}, {}
            for scorer in SCORERS:
                measured = gain * target + 0.1 * target.sum() + rng.normal(0, 0.3, len(AUS)) * bool(asked)
                changed[scorer] = dict(zip(AUS, measured.tolist(), strict=True))
                if kind == "side":
                    changed[scorer] |= {"AU12L": measured[2], "AU12R": 0.2 * measured[2]}
                errors[scorer] = measured - target
            request = ",".join(f"{au}={level:+g}" for au, level in asked.items()) or "none"
            rows.append(
                {"editor": editor, "identity": person, "person": person, "kind": kind}
                | {"photograph": "neutral.jpg", "photograph_sha256": f"{person}beef"}
                | {"request": request, "asked": asked, "seed": 0, "error": None, "seconds": 0.3}
                | {"before": {"blendshapes": dict.fromkeys(AUS, 0.5)}, "changed": changed}
                | {"au_mse": {s: float(np.mean(e**2)) for s, e in errors.items()}}
                | {"au_mae": {s: float(np.mean(abs(e))) for s, e in errors.items()}}
                | {
                    "au_mse_asked": {
                        s: float(np.mean(e[target != 0] ** 2)) for s, e in errors.items() if target.any()
                    }
                }
                | {"achieved": {s: _share(asked, change) for s, change in changed.items() if asked}}
                | {
                    "identity_distance": float(0.08 + 0.06 * gain * abs(target).sum() + rng.uniform(0, 0.05))
                    + shift
                }
                | {"background_rmse": 0.004, "pose_degrees": float(rng.uniform(0.5, 1)), "pose_matrix": 0.01}
                | {"ssim": float(rng.uniform(0.9, 0.95)), "arcface_cosine": None, "lpips": None}
                | {"pixels_changed": 1200 * bool(asked), "group": {"gender": gender}}
                | {
                    "picture": f"pictures/{editor}/{person}/{request}.jpg",
                    "original": f"pictures/original/{person}.jpg",
                }
            )
    rows.append(
        {
            "editor": editor,
            "identity": "003",
            "person": "003",
            "photograph": "neutral.jpg",
            "photograph_sha256": "003beef",
            "kind": "level",
            "request": "AU12=+9",
        }
        | {"asked": {"AU12": 9.0}, "seed": 0, "error": "no face found after the edit", "seconds": 0.3}
        | {"group": {"gender": "female"}}
    )
    return rows


def estimate(values: list, people: list) -> dict:
    """Mean and 95 % interval over people, without the code under test."""
    values, names = np.array(values, float), list(dict.fromkeys(people))
    member = np.array([[p == name for p in people] for name in names], float)  # (people, edits)
    drawn = np.random.default_rng(0).multinomial(len(names), [1 / len(names)] * len(names), size=300)
    draws = (drawn @ member @ values) / (drawn @ member).sum(axis=1)
    low, high = np.quantile(draws, [0.025, 0.975])
    return {"mean": float(values.mean()), "low": float(low), "high": float(high), "n": len(values)}


def _headline(rows: list[dict]) -> dict:
    people, found = [row["identity"] for row in rows], {}
    for name in ("au_mse", "au_mae"):
        for scorer in SCORERS:
            found[f"{name}/{scorer}"] = estimate([row[name][scorer] for row in rows], people)
    for scorer in SCORERS:
        edits = [row for row in rows if row["asked"]]
        shares = [row["achieved"][scorer] for row in edits]
        found[f"achieved/{scorer}"] = estimate(shares, [row["identity"] for row in edits])
    return found | {name: estimate([row[name] for row in rows], people) for name in METRICS}


def _control(rows: list[dict], scorer: str) -> dict:
    table = {}
    for au in AUS:
        found = [row for row in rows if row["kind"] == "level" and au in row["asked"]]
        asked, measured = (
            np.array(v)
            for v in zip(*((r["asked"][au], r["changed"][scorer][au]) for r in found), strict=True)
        )
        people = [row["identity"] for row in found]
        levels = [
            {"asked": level}
            | estimate(
                measured[asked == level].tolist(),
                [p for p, a in zip(people, asked, strict=True) if a == level],
            )
            for level in LEVELS
        ]
        pearson = float(np.corrcoef(asked, measured)[0, 1])
        slope = float(np.polyfit(asked, measured, 1)[0])
        table[au] = {"levels": levels, "pearson": pearson, "spearman": pearson, "slope": slope}
    return table


def _crosstalk(rows: list[dict], scorer: str) -> dict:
    change = [
        [
            float(
                np.mean(
                    [
                        r["changed"][scorer][of] / r["asked"][au]
                        for r in rows
                        if r["kind"] == "level" and au in r["asked"]
                    ]
                )
            )
            for of in AUS
        ]
        for au in AUS
    ]
    return {"asked": list(AUS), "changed": list(AUS), "change": change}


def _ran(rows: list[dict], settings: dict) -> dict:
    good = [row for row in rows if not row["error"]]
    groups = {
        gender: [row for row in good if row["group"]["gender"] == gender] for gender in ("female", "male")
    }
    side = [row["changed"]["blendshapes"] for row in good if row["kind"] == "side"]
    same, other = (float(np.mean([change[au] for change in side])) for au in ("AU12L", "AU12R"))
    return {
        "status": "ran",
        "settings": settings,
        "edits": len(rows),
        "failed": len(rows) - len(good),
        "headline": _headline(good),
        "control": {scorer: _control(good, scorer) for scorer in SCORERS},
        "crosstalk": {scorer: _crosstalk(good, scorer) for scorer in SCORERS},
        "sides": {"blendshapes": {"AU12": {"same": same, "other": other, "leak": other / same}}},
        "zero_drift": {"max_change": 0.0, "pixels_changed": 0},
        "seed_spread": {"blendshapes": 0.04},
        "groups": {
            "gender": {
                g: {"n": len(of), "people": len({r["identity"] for r in of}), "headline": _headline(of)}
                for g, of in groups.items()
            }
        },
        "cold_seconds": 1.25,
        "peak_memory_mb": None,
    }


def make_report(
    folder: Path, editors: dict[str, dict] | None = None, *, shift: float = 0.0, pictures: bool = True
) -> Path:
    """Writes rows.jsonl, summary.json and pictures; the same for the same arguments.

    `editors`: gain (share of the asked change that happens), settings and seed by name; mini and warp by
    default, and always magicface, which did not run. `shift` is added to every identity distance.
    """
    editors = {"mini": MINI, "warp": WARP} if editors is None else editors
    rows = {name: _rows(name, e["gain"], shift, e.get("seed", 0)) for name, e in editors.items()}
    summary = {
        "protocol": {
            "name": "example",
            "version": 1,
            "title": "Example",
            "description": "Four action units.",
            "aus": AUS,
        }
        | {"identities": 10, "edits_per_identity": 19},
        "people": len(PEOPLE),
        "scorers": {
            "blendshapes": {
                "title": "MediaPipe blendshapes",
                "relation": "it labelled the training photographs",
                "note": "It labelled the pairs.",
            },
            "landmarks68": {
                "title": "68 landmarks",
                "relation": "it labelled nothing",
                "note": "Change only.",
            },
        },
        "skipped": {"lpips": "the package lpips is not installed"},
        "circumstances": {
            "date": "2026-01-01",
            "hardware": {"cpu": "a processor", "cores": 2},
            "jobs": 2,
            "versions": {"numpy": "2.0"},
            "seed": 0,
        }
        | {"command": "magicedit evaluate --protocol example"},
        "editors": {name: _ran(rows[name], editor.get("settings", {})) for name, editor in editors.items()}
        | {"magicface": {"status": "not run", "settings": {"why": "weights are not here"}}},
        "published": {
            "table": "Table I",
            "source": "MagicFace, arXiv:2501.02260",
            "columns": ["au", "identity", "background", "pose"],
            "rows": [
                {"name": "GANmut", "values": [None, 0.495, 0.059, 0.032], "editor": None},
                {"name": "MagicFace", "values": [0.261, 0.473, 0.044, 0.032], "editor": "mini"},
            ],
        },
    }
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row) for found in rows.values() for row in found]
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    for index, row in enumerate(row for found in rows.values() for row in found):
        for place in (row.get("picture"), row.get("original")) if pictures else ():
            if place and not (folder / place).exists():
                (folder / place).parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (24, 24), (index * 7 % 256, 120, 90)).save(folder / place)
    return folder
