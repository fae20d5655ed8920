"""Fits the classifier of glasses, `magicedit/faces/glasses.safetensors`; figures: `benchmarks/glasses.json`.

    python dev/glasses.py INDEX PHOTOGRAPHS [PHOTOGRAPHS ...]

INDEX: a table of synthetic portraits with columns `file` (below the folder above INDEX), `split` and `tags`,
"glasses" among them. PHOTOGRAPHS: folders of people without glasses. Files of the split "validation" and
those whose path names a validation person are kept apart, and printed. Logistic regression with a ridge,
classes balanced, mirrored pictures added; five folds tell how well it does.
"""

import argparse
import csv
import json
from datetime import date
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from magicedit.errors import MagicEditError
from magicedit.faces import Face, align, crop_face, load_backend
from magicedit.faces.glasses import SURE, TABLE, UNSURE, eye_features
from magicedit.imaging import open_photo

FIGURES = Path(__file__).resolve().parents[1] / "benchmarks" / "glasses.json"
VALIDATION = {"001", "011", "024", "036", "062", "083", "101", "115", "126", "138"}
CROP = 128  # px, that of `mini`
RIDGE = 30.0
FOLDS = 5


def features_of(pixels: np.ndarray, face: Face) -> np.ndarray:
    alignment = align(face, CROP)
    return eye_features(crop_face(pixels, alignment), alignment.apply(face.landmarks), face.scheme)


def fit(features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(features + 1,) weights and bias, by Newton's method; the bias carries no ridge."""
    x = np.c_[features, np.ones(len(features))]
    ridge = np.diag(np.r_[np.full(features.shape[1], RIDGE), 1e-6])
    share = labels.mean()
    balance = np.where(labels > 0, 0.5 / share, 0.5 / (1 - share))
    weights = np.zeros(x.shape[1])
    for _ in range(15):
        odds = 1 / (1 + np.exp(-x @ weights))
        gradient = x.T @ (balance * (odds - labels)) + ridge @ weights
        curvature = (x * (balance * odds * (1 - odds) + 1e-6)[:, None]).T @ x + ridge
        weights -= np.linalg.solve(curvature, gradient)
    return weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("index", type=Path)
    parser.add_argument("photographs", type=Path, nargs="+")
    args = parser.parse_args()
    files = [
        (args.index.parent.parent / row["file"], "glasses" in row["tags"], row["split"] == "validation")
        for row in csv.DictReader(args.index.open())
    ]
    for folder in args.photographs:
        for path in sorted(folder.rglob("*.jpg")):
            files.append((path, False, bool(VALIDATION & set(path.parts))))

    backend = load_backend()
    features, mirrored, labels, held_out = [], [], [], []
    for path, wears, is_validation in files:
        try:
            pixels = open_photo(path).pixels
            face = backend.detect(pixels)[0]
        except (MagicEditError, IndexError):
            continue
        features.append(features_of(pixels, face))
        flipped = np.ascontiguousarray(pixels[:, ::-1])
        found = backend.detect(flipped)
        mirrored.append(features_of(flipped, found[0]) if found else features[-1])
        labels.append(float(wears))
        held_out.append(is_validation)
    x, flipped, y, apart = (np.array(values) for values in (features, mirrored, labels, held_out))
    mean, deviation = x[~apart].mean(0), x[~apart].std(0) + 1e-3
    x, flipped = (x - mean) / deviation, (flipped - mean) / deviation

    train = np.flatnonzero(~apart)
    folds = np.random.default_rng(0).integers(0, FOLDS, len(train))
    scores = np.zeros(len(y))
    for fold in range(FOLDS):
        kept, tested = train[folds != fold], train[folds == fold]
        weights = fit(np.r_[x[kept], flipped[kept]], np.r_[y[kept], y[kept]])
        scores[tested] = x[tested] @ weights[:-1] + weights[-1]
    weights = fit(np.r_[x[train], flipped[train]], np.r_[y[train], y[train]])
    scores[apart] = x[apart] @ weights[:-1] + weights[-1]
    figures = {"command": "python dev/glasses.py INDEX PHOTOGRAPHS ...", "date": f"{date.today()}"}
    for name, part in (("five_folds", ~apart), ("validation", apart)):
        with_them, without = np.sort(scores[part & (y > 0)]), np.sort(scores[part & (y == 0)])[::-1]
        figures[name] = {
            "with_glasses": len(with_them),
            "without": len(without),
            "auc": round(float((with_them[:, None] > without).mean()), 4),
            "held_of_those_with": int((with_them > SURE).sum()),
            "touched_of_those_without": int((without > UNSURE).sum()),
            "lowest_with": with_them[:6].round(2).tolist(),
            "highest_without": without[:4].round(2).tolist(),
        }
    FIGURES.write_text(json.dumps(figures, indent=1) + "\n")
    print(json.dumps(figures, indent=1))

    weight = weights[:-1] / deviation
    bias = weights[-1:] - mean @ weight
    save_file({"weight": weight.astype(np.float32), "bias": bias.astype(np.float32)}, TABLE)


if __name__ == "__main__":
    main()
