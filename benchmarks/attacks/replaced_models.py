"""Replacing a finished model, killed before each file-system call: it is the old or the new one."""

import functools
import random
import shutil
from pathlib import Path

from attacks import Attack, crashing
from attacks.small import SMALL, scratch
from attacks.trained import SECONDS
from magicedit.files import sha256_of
from magicedit.models import create_patch_pipeline, load_pipeline
from magicedit.train.finished import finish, replaced_whole

TITLE = "Crash points of replacing a finished model"


def attacks(seed: int, short: bool) -> list[Attack]:
    calls = range(1, _calls() + 1)
    points = sorted(random.Random(seed).sample(calls, 4)) if short else list(calls)
    return [Attack(f"killed before call {k}", functools.partial(_check, k), SECONDS) for k in points]


@functools.cache
def _model(seed: int) -> Path:
    """A folder that a finished model of other weights was written into."""
    folder = scratch() / f"model-{seed}"
    with replaced_whole(folder) as aside:
        create_patch_pipeline(SMALL, seed=seed).save_pretrained(aside)
    return folder


def _replace(folder: Path) -> None:
    """What the end of a run does: it first completes what an earlier one left."""
    finish(folder)
    with replaced_whole(folder) as aside:
        shutil.copytree(_model(1), aside, dirs_exist_ok=True)


@functools.cache
def _calls() -> int:
    folder = scratch() / "replaced"
    shutil.copytree(_model(0), folder)
    _model(1)
    return crashing.count(lambda: _replace(folder), folder)


def _check(call: int, folder: Path) -> str | None:
    output = folder / "model"
    shutil.copytree(_model(0), output)
    killed = crashing.run(lambda: _replace(output), output, call)
    if killed.code != -9:
        return f"it was not killed but ended with {killed.code}: {killed.output[-300:]}"
    loaded = load_pipeline(output, device="cpu")
    old, new = (load_pipeline(_model(seed), device="cpu") for seed in (0, 1))
    if not any(_same(loaded, whole) for whole in (old, new)):
        return "a mixture of the old and the new model was loaded"
    _replace(output)
    files = {path.relative_to(output) for path in output.rglob("*") if path.is_file()}
    expected = {path.relative_to(_model(1)) for path in _model(1).rglob("*") if path.is_file()}
    if files != expected:
        return f"other files than the new model's: {sorted(map(str, files ^ expected))[:3]}"
    different = [file for file in files if sha256_of(output / file) != sha256_of(_model(1) / file)]
    return f"{different[0]} is not the new model's" if different else None


def _same(first, second) -> bool:
    return all(
        (a == b).all()
        for part in ("unet", "reference_unet")
        for a, b in zip(
            getattr(first, part).state_dict().values(),
            getattr(second, part).state_dict().values(),
            strict=True,
        )
    )
