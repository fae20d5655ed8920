"""What the faster ways of sampling lose: error, identity and difference to the 50-step result.

    python benchmarks/qualities.py PHOTOGRAPHS [-o benchmarks/qualities.json] [--model mini] [--distilled RUN]

PHOTOGRAPHS has one folder per identity, such as the Face Research Lab London Set; those that nothing was
trained on are edited. Every setting edits the same faces by the same requests with the same seed. Scorers are
those of `magicedit evaluate`. How long each quality takes is measured apart, by `speed.py mini`; here stands
how often the denoiser looks at a face. The difference is the mean over the face's box of the absolute
difference of the pictures to the same request at 50 steps of the same guidance, in levels of 255.
"""

import argparse
import json
import statistics
from dataclasses import dataclass, replace
from pathlib import Path

import diffusers
import numpy as np
from machine import circumstances
from mini_quality import VALIDATION

from magicedit.action_units import NAMES, parse_deltas
from magicedit.editor import ExpressionEditor
from magicedit.errors import MagicEditError
from magicedit.evaluation.metrics.intervals import bootstrap
from magicedit.evaluation.scoring import SCORERS, Original, Scoring
from magicedit.evaluation.subjects import read_subjects
from magicedit.models import load_pipeline
from magicedit.pipelines.pipeline_magicedit import MagicEditPipeline, Sampling

REQUESTS = ("AU12=+3", "AU1=+3", "AU26=+3", "AU6=+3,AU12=+3", "AU9=+3,AU15=+3,AU17=+3")
STRONG = 3.0  # the guidance of the rows that show what a part of it, or reused features, lose
COLUMNS = ("au_mse", "achieved")  # by scorer


@dataclass(frozen=True)
class Setting:
    """A way to sample. compared: the name of the one whose 50-step pictures it is held against. sampler: a
    scheduler class of diffusers in place of the model's own. distilled: by the distilled model."""

    name: str
    sampling: Sampling
    compared: str
    sampler: str | None = None
    distilled: bool = False

    @property
    def evaluations(self) -> int:
        """How often the denoiser looks at a face, both halves of guidance counted."""
        steps = self.sampling.steps
        return sum(2 if self.sampling.guides(step, steps) else 1 for step in range(steps))


def settings(pipeline: MagicEditPipeline, distilled: MagicEditPipeline | None) -> list[Setting]:
    """The 50-step ones come first: the others are held against their pictures."""
    exact = pipeline.sampling("exact")
    strong = replace(exact, guidance_scale=STRONG)
    ten = replace(strong, steps=10)
    found = [Setting("exact", exact, "exact"), Setting("exact, strong", strong, "exact, strong")]
    found += [Setting(name, pipeline.sampling(name), "exact") for name in ("balanced", "fast", "live")]
    for sampler, short in (("DPMSolverMultistepScheduler", "DPM++"), ("UniPCMultistepScheduler", "UniPC")):
        for steps in (4, 2):
            found.append(Setting(f"{steps} steps, {short}", replace(exact, steps=steps), "exact", sampler))
    for name, sampling in (
        ("10 steps, strong", ten),
        ("10 steps, strong on the first half", replace(ten, guidance_interval=(0.0, 0.5))),
        ("10 steps, strong in the middle", replace(ten, guidance_interval=(0.25, 0.75))),
        ("10 steps, strong on the last half", replace(ten, guidance_interval=(0.5, 1.0))),
        ("10 steps, strong, deep levels every 2nd", replace(ten, feature_cache_interval=2)),
        ("10 steps, strong, deep levels every 5th", replace(ten, feature_cache_interval=5)),
        ("4 steps, strong", replace(ten, steps=4)),
        ("1 step, strong", replace(ten, steps=1)),
    ):
        found.append(Setting(name, sampling, "exact, strong"))
    if distilled is not None:
        for steps in range(1, distilled.config.distilled_steps + 1):
            sampling = replace(distilled.sampling(), steps=steps)
            found.append(Setting(f"distilled in {steps}", sampling, "exact", distilled=True))
    return found


def edit_all(
    setting: Setting, pipeline: MagicEditPipeline, originals: dict[str, Original], scoring: Scoring
) -> tuple[list[dict], dict[tuple[str, str], np.ndarray]]:
    """Rows of every person and request, and the edited photographs."""
    editor = ExpressionEditor(pipeline, scoring.backend)
    pipeline.sampling = lambda quality=None: setting.sampling  # stands in for the model's own
    scheduler = pipeline.scheduler
    if setting.sampler is not None:
        pipeline.scheduler = getattr(diffusers, setting.sampler).from_config(scheduler.config)
    rows, pictures = [], {}
    try:
        for person, original in originals.items():
            for request in REQUESTS:
                asked = parse_deltas(request, NAMES)
                edited = editor.edit(original.photo, add=asked, face="largest", measure=False)
                pixels = np.asarray(edited.image.convert("RGB"))
                pictures[person, request] = pixels
                row = {"setting": setting.name, "person": person, "request": request}
                try:
                    scored, _ = scoring.score(original, pixels, asked)
                except MagicEditError as error:  # a face that is not found again is a row, not the end
                    rows.append(row | {"failed": str(error)})
                    continue
                row |= {name: scored[name] for name in COLUMNS}
                rows.append(row | {"identity_distance": scored["identity_distance"]})
    finally:
        del pipeline.sampling
        pipeline.scheduler = scheduler
    return rows, pictures


def difference(pixels: np.ndarray, reference: np.ndarray, original: Original) -> float:
    """Mean absolute difference within the face's box, levels of 255."""
    x0, y0, x1, y1 = (round(edge) for edge in original.measured.face.box)
    part = np.s_[max(0, y0) : y1, max(0, x0) : x1]
    return float(np.abs(pixels[part].astype(int) - reference[part].astype(int)).mean())


def summarise(rows: list[dict], all_settings: list[Setting]) -> dict[str, dict]:
    """Means over people and requests, with 95 % intervals over people."""
    summary = {}
    for setting in all_settings:
        own = [row for row in rows if row["setting"] == setting.name]
        measured = [row for row in own if "failed" not in row]
        people = [row["person"] for row in measured]
        summary[setting.name] = {
            "steps": setting.sampling.steps,
            "evaluations": setting.evaluations,
            "failed": len(own) - len(measured),
            "difference": round(statistics.mean(row["difference"] for row in own), 3),
            "identity_distance": _estimate([row["identity_distance"] for row in measured], people),
        } | {
            f"{name}_{scorer}": _estimate([row[name][scorer] for row in measured], people)
            for name in COLUMNS
            for scorer in SCORERS
        }
    return summary


def _estimate(values: list[float], people: list[str]) -> list[float]:
    """[mean, low, high]; one person has no interval."""
    estimate = bootstrap(values, people)[:3]
    return [None if value is None else round(value, 3) for value in estimate]


def table_of(result: dict, names: tuple[str, ...]) -> str:
    """Markdown: a row for each of the named settings."""
    lines = [
        "| sampling | denoiser evaluations | AU MSE (blendshapes / landmarks) | achieved | identity | "
        "difference to 50 steps |",
        "|---|---|---|---|---|---|",
    ]
    for name in names:
        row = result["summary"][name]
        mse, achieved = (
            " / ".join(f"{row[f'{column}_{scorer}'][0]:.2f}" for scorer in SCORERS) for column in COLUMNS
        )
        lines.append(
            f"| {name} | {row['evaluations']} | {mse} | {achieved} | {row['identity_distance'][0]:.3f} | "
            f"{row['difference']:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photographs", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--model", default="mini")
    parser.add_argument("--distilled", help="a pipeline folder that the model was distilled to")
    parser.add_argument(
        "--identities", default=",".join(VALIDATION), help="those that nothing was trained on"
    )
    parser.add_argument(
        "--settings", help="names joined by commas, to measure anew; the output's other rows stay"
    )
    args = parser.parse_args()
    scoring = Scoring(NAMES)
    subjects = read_subjects(args.photographs, identities=args.identities.split(","))
    originals = {subject.name: scoring.original(subject) for subject in subjects}
    pipeline = load_pipeline(args.model)
    distilled = None if args.distilled is None else load_pipeline(args.distilled)
    rows, references = [], {}
    all_settings = settings(pipeline, distilled)
    wanted = {setting.name for setting in all_settings}
    if args.settings is not None:
        wanted = set(args.settings.split(","))
        wanted |= {setting.compared for setting in all_settings if setting.name in wanted}
        kept = json.loads(args.output.read_text())
        if kept["people"] != list(originals) or kept["requests"] != list(REQUESTS):
            raise SystemExit(f"{args.output} holds other people or requests; measure all settings anew")
        rows = [row for row in kept["rows"] if row["setting"] not in wanted]
    for setting in all_settings:
        if setting.name not in wanted:
            continue
        own, pictures = edit_all(setting, distilled if setting.distilled else pipeline, originals, scoring)
        if setting.name == setting.compared:
            references[setting.name] = pictures
        for row in own:
            key = row["person"], row["request"]
            reference = references[setting.compared][key]
            row["difference"] = round(difference(pictures[key], reference, originals[row["person"]]), 4)
        rows += own
        print(f"{setting.name}: {json.dumps(summarise(own, [setting])[setting.name])}", flush=True)
    measured = {row["setting"] for row in rows}
    result = {
        **circumstances(),
        "model": str(args.model),
        "people": list(originals),
        "requests": list(REQUESTS),
        "strong_guidance": STRONG,
        "summary": summarise(rows, [setting for setting in all_settings if setting.name in measured]),
        "rows": rows,
    }
    args.output.write_text(json.dumps(result, indent=1) + "\n")
    print(table_of(result, tuple(result["summary"])))


if __name__ == "__main__":
    main()
