"""Scales what each action unit is worth to a trained model, until movements have the size that was asked for.

    python dev/calibrate_units.py RUN DATASET OUT

RUN: a pipeline of patches that train/train.py wrote; DATASET: what it was trained on; OUT: where the
calibrated pipeline goes. A short training falls short of its targets evenly: the flow of a request has the
right shape and is too small. Of training photographs, by least squares over the face, the size of the model's
flow at +3 is compared with that of the muscles' warp, and the unit's column of the linear layer that reads
the AUs is divided by the ratio. The layer is linear and the answer nearly so; a few rounds settle it.
calibration.json in OUT says by how much.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from magicedit.action_units import NAMES, to_vector
from magicedit.data.pairs import PairDataset
from magicedit.faces import editing_region
from magicedit.imaging import to_pixels
from magicedit.models import load_pipeline
from magicedit.warping import backward_flow, displacement_fields

STEPS = 3.0  # intensity steps that the sizes are compared at
GOAL = 1.06  # share of the warp that sizes are brought to: on faces that it has never seen a model does less
GOALS = {"AU9": 0.74}  # of units that in full cost too much of the likeness (a distance of 0.49 by dlib)
LIMITS = (0.7, 1.5)  # of a column's factor, all rounds together: beyond, inputs leave those of training
STRIDE = 4


def sizes(pipeline, photographs: list[dict]) -> np.ndarray:
    """(photographs, aus) size of the model's flow as a share of the warp's."""
    size = pipeline.config.resolution
    vectors = np.stack([to_vector({name: STEPS}) for name in NAMES])
    found = []
    for photo in photographs:
        landmarks = photo["landmarks"]
        output = pipeline(
            photo["image"], photo["condition"], vectors, quality="live", output_type="np",
            generator=[torch.Generator().manual_seed(0) for _ in NAMES],
        )  # fmt: skip
        region = editing_region(landmarks, size, "mediapipe478")
        fields = displacement_fields(landmarks, size, stride=STRIDE)
        row = []
        for vector, flow in zip(vectors, output.change["flow"].numpy(), strict=True):
            wanted, opened = backward_flow(fields, vector, landmarks, size)
            weight = (region * (opened < 0.05))[..., None]
            row.append((weight * flow * wanted).sum() / (weight * wanted * wanted).sum())
        found.append(row)
    return np.array(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--photographs", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    pipeline = load_pipeline(args.run)
    pipeline.set_progress_bar_config(disable=True)
    pairs = PairDataset(args.dataset, resolution=pipeline.config.resolution, warped=1.0, augment=False)
    chosen = np.random.default_rng(0).choice(len(pairs.records), args.photographs, replace=False)
    photographs = []
    for index in chosen:
        image, condition = pairs.record_images(int(index))
        photographs.append(
            {
                "image": Image.fromarray(to_pixels(image)),
                "condition": Image.fromarray(to_pixels(condition)),
                "landmarks": pairs.landmarks(int(index)),
            }
        )
    columns = pipeline.unet.class_embedding.weight  # (width, aus): linear on the AU variation
    factors, log = np.ones(len(NAMES)), []
    goals = np.array([GOALS.get(name, GOAL) for name in NAMES])
    for _ in range(args.rounds + 1):
        share = np.median(sizes(pipeline, photographs), 0)
        log.append(dict(zip(NAMES, share.round(3).tolist(), strict=True)))
        print(" ".join(f"{name} {value:.2f}" for name, value in log[-1].items()), flush=True)
        if len(log) > args.rounds:
            break
        new = (factors * goals / np.maximum(share, 0.1)).clip(*LIMITS)
        with torch.no_grad():
            columns *= torch.from_numpy(new / factors).to(columns)
        factors = new
    saved = load_file(args.run / "unet" / "diffusion_pytorch_model.safetensors")
    pipeline.to(saved["class_embedding.weight"].dtype).save_pretrained(args.output)
    content = {"factors": dict(zip(NAMES, factors.round(4).tolist(), strict=True)), "share_of_the_warp": log}
    (args.output / "calibration.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
