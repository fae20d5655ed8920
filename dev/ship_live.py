"""Puts a model that was distilled from the embedded one into the package as `mini-live`, with its card.

    python dev/ship_live.py RUN

RUN: output folder of `train/train.py --config mini-distill`. Only the denoiser is kept: everything else is
`mini`'s. The card carries the figures of benchmarks/qualities.json; measure after the first run of this
script (`benchmarks/qualities.py PHOTOGRAPHS --distilled mini-live`) and run it again. `mini`'s graphs must
serve it: a denoiser of other settings is refused.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

from ship_mini import ROOT, configured

from magicedit.models.face_model import load_face_model
from magicedit.train.config import TrainConfig
from magicedit.train.publish import command_of

sys.path.insert(0, str(ROOT / "benchmarks"))
from qualities import table_of

LIVE = ROOT / "magicedit" / "pretrained" / "mini-live"
RESULTS = ROOT / "benchmarks" / "qualities.json"

CARD = """\
---
license: apache-2.0
tags:
- magicedit
- facial-expression
- action-units
---

# mini-live

The denoiser of `mini`, distilled to {steps} step: `--model mini-live`, or
`ExpressionEditor.from_pretrained("mini-live")`. Without guidance it does in one evaluation what `mini` does
in {teacher_steps} (progressive distillation, Salimans & Ho 2022,
[arXiv:2202.00512](https://arxiv.org/abs/2202.00512)). This folder holds the denoiser alone; the ID encoder is
that of `mini` beside it, and so are data, licences, identities seen and held out, and all that it is not for:
see its card.

## Trained by

```sh
{command}
```

## Measured

On held-out identities, {date}, by `{measured_by}`. `live` is `mini` itself in one step.

{table}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    args = parser.parse_args()
    settings = json.loads((args.run / "train_config.json").read_text())
    for name in ("unet", "scheduler"):
        shutil.copytree(args.run / name, LIVE / name, dirs_exist_ok=True)
    shutil.copyfile(args.run / "model_index.json", LIVE / "model_index.json")
    load_face_model("mini-live")
    configuration = configured(settings | {"pretrained_model_name_or_path": None})
    configuration["pretrained_model_name_or_path"] = settings["pretrained_model_name_or_path"]
    measured = json.loads(RESULTS.read_text())
    shown = ("exact", "balanced", "live", f"distilled in {settings['distill_steps']}")
    card = CARD.format(
        steps=settings["distill_steps"],
        teacher_steps=settings["distill_teacher_steps"],
        command=command_of(TrainConfig(**configuration)),
        date=measured["date"],
        measured_by=measured["command"],
        table=table_of(measured, tuple(name for name in shown if name in measured["summary"])),
    )
    (LIVE / "README.md").write_text(card)
    size = sum(file.stat().st_size for file in LIVE.rglob("*") if file.is_file())
    print(f"{LIVE.relative_to(ROOT)}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
