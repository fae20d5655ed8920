"""Damaged checkpoints are named and skipped; the run resumes from the newest whole one and ends the same."""

import functools
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

from attacks import Attack
from attacks.trained import LATEST, SECONDS, STEPS, differs, run, straight

TITLE = "Damaged checkpoints"

DEEP = "[" * 100_000


def _manifest(change: Callable[[dict], object]) -> Callable[[Path], None]:
    """Damage that changes a manifest; a result takes its place."""

    def damage(checkpoint: Path) -> None:
        path = checkpoint / "manifest.json"
        content = json.loads(path.read_text())
        changed = change(content)
        path.write_text(json.dumps(content if changed is None else changed))

    return damage


def _listed(**files: str) -> Callable[[Path], None]:
    """Damage that adds files to a manifest's table."""
    return _manifest(lambda content: content["sha256"].update(files))


def _unlisted(name: str) -> Callable[[Path], None]:
    return _manifest(lambda content: content["sha256"].pop(name) and None)


def _file(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def damage(checkpoint: Path) -> None:
        path = checkpoint / name
        path.write_bytes(change(path.read_bytes()))

    return damage


def _flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def _replaced_by(make: Callable[[Path], object], name: str = "manifest.json") -> Callable[[Path], None]:
    def damage(checkpoint: Path) -> None:
        (checkpoint / name).unlink()
        make(checkpoint / name)

    return damage


WEIGHTS = "model.safetensors"
DAMAGES: dict[str, Callable[[Path], None]] = {
    "weights truncated": _file(WEIGHTS, lambda content: content[:-1]),
    "weights emptied": _file(WEIGHTS, lambda content: b""),
    "one bit of the weights flipped": _file(WEIGHTS, _flipped),
    "weights missing": lambda checkpoint: (checkpoint / WEIGHTS).unlink(),
    "weights a folder": _replaced_by(Path.mkdir, WEIGHTS),
    "weights a pipe": _replaced_by(os.mkfifo, WEIGHTS),
    "weights a link to an endless device": _replaced_by(lambda path: path.symlink_to("/dev/zero"), WEIGHTS),
    "weights a link to nowhere": _replaced_by(lambda path: path.symlink_to("nowhere"), WEIGHTS),
    "one bit of the state flipped": _file("state.json", _flipped),
    "manifest missing": lambda checkpoint: (checkpoint / "manifest.json").unlink(),
    "manifest empty": _file("manifest.json", lambda content: b""),
    "manifest torn": _file("manifest.json", lambda content: content[:30]),
    "manifest no UTF-8": _file("manifest.json", lambda content: b"\xff\xfe" + content),
    "manifest nested too deep": _file("manifest.json", lambda content: DEEP.encode()),
    "manifest a number of 5,000 digits": _file("manifest.json", lambda content: b"9" * 5000),
    "manifest a folder": _replaced_by(Path.mkdir),
    "manifest a pipe": _replaced_by(os.mkfifo),
    "manifest a list": _manifest(lambda content: [content]),
    "manifest null": _file("manifest.json", lambda content: b"null"),
    "manifest without digests": _manifest(lambda content: {"step": 4}),
    "manifest with an empty table": _manifest(lambda content: content.update(sha256={})),
    "manifest with a list of digests": _manifest(lambda content: content.update(sha256=["a"])),
    "manifest with a text for digests": _manifest(lambda content: content.update(sha256="model")),
    "manifest with numbers for digests": _manifest(
        lambda content: content.update(sha256=dict.fromkeys(content["sha256"], 7))
    ),
    "manifest that leaves out the weights": _unlisted(WEIGHTS),
    "manifest that leaves out the state": _unlisted("state.json"),
    "manifest with an absolute name": _listed(**{"/etc/hostname": ""}),
    "manifest with a name above": _listed(**{"../parts.json": ""}),
    "manifest with a name that no file has": _listed(**{"a\0": ""}),
    "manifest with a name of 5,000 letters": _listed(**{"a" * 5000: ""}),
    "checkpoint an empty folder": lambda checkpoint: [file.unlink() for file in checkpoint.iterdir()],
    "checkpoint a file": lambda checkpoint: (shutil.rmtree(checkpoint), checkpoint.write_text("")),
}


def attacks(seed: int, short: bool) -> list[Attack]:
    straight()
    chosen = random.Random(seed).sample(sorted(DAMAGES), 3) if short else DAMAGES
    return [Attack(name, functools.partial(_check, DAMAGES[name]), SECONDS) for name in chosen]


def _check(damage: Callable[[Path], None], folder: Path) -> str | None:
    output = folder / "output"
    shutil.copytree(straight(), output)
    damage(output / f"checkpoint-{STEPS}")
    named = run(output, f"--resume_from_checkpoint=checkpoint-{STEPS}")
    if named.code != 2 or "Traceback" in named.output:
        return f"resuming it by name ended with {named.code}: {named.output[-300:]}"
    resumed = run(output, LATEST)
    if resumed.code:
        return f"resuming ended with {resumed.code}: {resumed.output[-300:]}"
    if f"checkpoint-{STEPS} is damaged and skipped" not in resumed.output:
        return "the damaged checkpoint was not named"
    if "checkpoint-2" not in resumed.output:
        return "it did not resume from checkpoint-2"
    return differs(output)
