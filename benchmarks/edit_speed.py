"""What people wait for when they edit: CPU seconds of this checkout, beside an earlier one.

    python benchmarks/edit_speed.py --before CHECKOUT                    # every line of edit_speed.json
    python benchmarks/edit_speed.py --before CHECKOUT --only warm_live_4000 cold_edit

Each line is measured in processes of their own, old and new checkout in turn, with the old one a second
time as the control (`pairs.py`). A line whose control does not come out at 1 is not written, and the exit
status is 3. Seconds are user and system time of one thread, with the processes that a command starts, so
that other work on the machine does not count. Without --before only this checkout is measured. Photographs
are scikit-image's astronaut (512 px, public domain), enlarged, with the grain of a sensor, and put side by
side for several faces. Loading takes random weights of the published size: 8 GB of memory, 22 GB of disk.
"""

import argparse
import contextlib
import json
import os
import pty
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import psutil
from skimage import data

CHECKOUT = Path(__file__).resolve().parents[1]
SIDE = 1024  # px
EDIT = {"AU12": -3.0}
GRAIN = 1.5  # standard deviation, levels of 255
DISCARDED = 3  # exit status
Figures = dict[str, float]  # "seconds" of CPU, and what else was measured


def enlarged(tile: PIL.Image.Image, size: tuple[int, int], seed: int = 0) -> PIL.Image.Image:
    """A photograph at a size, (width, height) px, with grain, which enlarging leaves out."""
    pixels = np.asarray(tile.resize(size, PIL.Image.Resampling.BICUBIC), dtype=np.float32)
    grain = np.random.default_rng(seed).normal(0, GRAIN, pixels.shape).astype(np.float32)
    return PIL.Image.fromarray(np.clip(np.rint(pixels + grain), 0, 255).astype(np.uint8))


def photograph(side: int = SIDE) -> PIL.Image.Image:
    """The astronaut, a square of `side` px."""
    return enlarged(PIL.Image.fromarray(data.astronaut()), (side, side))


def group(columns: int, rows: int, size: tuple[int, int]) -> PIL.Image.Image:
    """A photograph of `columns` x `rows` astronauts, (width, height) px, each brighter than the last."""
    width, height = size[0] // columns, size[1] // rows
    whole = PIL.Image.fromarray(data.astronaut())
    cut = min(512, 512 * width // height)
    tile = whole.crop((0, 0, cut, round(cut * height / width)))  # her face is on the left
    sheet = PIL.Image.new("RGB", size)
    for number in range(columns * rows):
        part = enlarged(tile, (width, height), number).point(
            [min(255, v + 2 * number) for v in range(256)] * 3
        )
        sheet.paste(part, (number % columns * width, number // columns * height))
    return sheet


PHOTOGRAPHS: dict[str, Callable[[], PIL.Image.Image]] = {
    "one_1024.png": photograph,
    "one_4000.png": partial(photograph, 4000),
    "nine_1536.png": partial(group, 3, 3, (1536, 1536)),
    "eight_6000.jpg": partial(group, 4, 2, (6000, 4000)),
}


MODELS = ("mini", "sd15", "magicface", "pipeline")  # in the order that they are made in


# --- Commands, each in a process of its own -----------------------------------------------------------------


def importable(checkout: Path, folder: Path) -> Path:
    """Links a checkout's package into a folder, with pipelines/ and train/ beneath it as installing places
    them, and returns the folder."""
    package = folder / "magicedit"
    package.mkdir(parents=True)
    for entry in (*(checkout / "magicedit").iterdir(), checkout / "pipelines", checkout / "train"):
        if not (package / entry.name).exists():
            (package / entry.name).symlink_to(entry)
    return folder


def environment(checkout: Path) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}


def magicedit(*words: str) -> list[str]:
    return [sys.executable, "-m", "magicedit.cli", *words]


def edit_command(photo: Path, output: Path, *options: str) -> list[str]:
    request = ",".join(f"{name}={delta}" for name, delta in EDIT.items())
    return magicedit("edit", str(photo), "-o", str(output), "--au", request, *options)


# A process of its own, because the peak that the kernel reports of a process is at least its parent's
_RUN = """
import json, os, subprocess, sys, time
started = time.perf_counter()
process = subprocess.Popen(sys.argv[1:], stdout=sys.stderr)
_, status, usage = os.wait4(process.pid, 0)
wall = time.perf_counter() - started
process.returncode = os.waitstatus_to_exitcode(status)
figures = {"seconds": usage.ru_utime + usage.ru_stime, "wall_seconds": wall}
print(json.dumps(figures | {"peak_mb": usage.ru_maxrss * 1024 / 1e6}))
sys.exit(process.returncode)
"""


def run_command(command: list[str], checkout: Path, folder: Path) -> Figures:
    """CPU seconds of a command and of the processes that it started and waited for, its wall seconds, and the
    peak resident 10^6 bytes of the largest of them, mapped files included."""
    done = subprocess.run(
        [sys.executable, "-S", "-c", _RUN, *command],
        cwd=folder,
        env=environment(checkout),
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"`{' '.join(command)}` failed in {checkout}:\n{done.stderr}")
    return json.loads(done.stdout)


def run_edit(checkout: Path, folder: Path, photo: str, model: str | None = None) -> Figures:
    options = () if model is None else ("--model", str(folder / model))
    output = folder / f"edited{Path(photo).suffix}"
    return run_command(edit_command(folder / photo, output, "--overwrite", *options), checkout, folder)


def first_word(checkout: Path, folder: Path) -> Figures:
    """CPU seconds until `magicedit edit` prints on its terminal, by the system's clock of 10 ms."""
    terminal, theirs = pty.openpty()
    command = edit_command(folder / "one_1024.png", folder / "edited.png", "--overwrite")
    started = time.perf_counter()
    process = psutil.Popen(
        command, cwd=folder, env=environment(checkout), stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.read(terminal, 1)
    wall = time.perf_counter() - started
    spent = [one.cpu_times() for one in (process, *process.children(recursive=True))]
    process.terminate()
    process.wait()
    os.close(theirs)
    os.close(terminal)
    return {"seconds": sum(times.user + times.system for times in spent), "wall_seconds": wall}


# --- Loading models of Stable Diffusion's size, each in a process of its own --------------------------------


def load_published(folder: Path) -> Any:
    from magicedit.models.base import open_base
    from magicedit.models.folder import Base

    return open_base(Base(str(folder / "magicface"), base_model=str(folder / "sd15")))


def load_stable_diffusion(folder: Path) -> Any:
    from magicedit.models.base import open_base
    from magicedit.models.folder import Base

    return open_base(Base(str(folder / "sd15")))


def load_folder(folder: Path) -> Any:
    from magicedit.models import load_pipeline

    return load_pipeline(folder / "pipeline", "cpu")


def convert_published(folder: Path) -> Any:
    from magicedit.models import convert

    with tempfile.TemporaryDirectory(dir=folder) as output:
        return convert(folder / "magicface", base=folder / "sd15", output=output)


LOADS = {
    call.__name__: call for call in (load_published, convert_published, load_folder, load_stable_diffusion)
}


def anonymous_mb() -> float:
    """Resident memory of this process that is no mapped file, 10^6 bytes."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"RssAnon:\s+(\d+) kB", status)[1]) * 1024 / 1e6


def load(how: str, folder: Path) -> None:
    """Loads a model, reads every weight, since a mapped file is read on first use, and writes load.json: size
    of the weights, and the most memory that was no mapped file."""
    import torch

    most, done = 0.0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.005):
            most = max(most, anonymous_mb())

    watcher = threading.Thread(target=watch)
    watcher.start()
    pipeline = LOADS[how](folder)
    modules = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
    weights = [parameter.detach() for module in modules for parameter in module.parameters()]
    assert all(weight.sum().isfinite() for weight in weights)
    done.set()
    watcher.join()
    size = sum(weight.nbytes for weight in weights) / 1e6
    (folder / "load.json").write_text(json.dumps({"weights_mb": size, "anonymous_mb": most}))


def run_load(checkout: Path, folder: Path, how: str) -> Figures:
    figures = run_command([sys.executable, __file__, "--load", how, str(folder)], checkout, folder)
    return figures | json.loads((folder / "load.json").read_text())


# --- Further edits, in a process that has loaded the model --------------------------------------------------


def further_edits(
    folder: Path, photo: str, quality: str, repeat: int, measure: bool = False
) -> Callable[[int], Figures]:
    """Edits of a photograph that the editor has seen, `repeat` in a call, each with another request."""
    from magicedit.editor import ExpressionEditor
    from magicedit.imaging import open_photo

    editor = ExpressionEditor.from_pretrained("mini")
    opened = open_photo(folder / photo)

    def edit(call: int) -> Figures:
        for number in range(repeat):
            delta = -1 - (call * repeat + number) % 400 / 200  # AU12 -1 to -3: no two edits are the same
            editor.edit(opened, add={"AU12": delta}, quality=quality, measure=measure)
        return {"parts": repeat}

    return edit


def save_png(folder: Path) -> Callable[[int], Figures]:
    """Writes an edited photograph of 4000 px as PNG."""
    from magicedit.editor import ExpressionEditor
    from magicedit.imaging import open_photo, save_image

    editor = ExpressionEditor.from_pretrained("mini")
    result = editor.edit(open_photo(folder / "one_4000.png"), add=EDIT, quality="live", measure=False)
    output = folder / f"saved-{os.getpid()}.png"

    def save(call: int) -> Figures:
        save_image(result.image, output, overwrite=True)
        return {"megabytes": output.stat().st_size / 1e6}

    return save


def serve(line: "Line", folder: Path) -> None:
    """Does the line's work once for each number read, and writes the figures of that."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print does not mix with figures
    work = line.work(folder)
    work(0)
    for request in sys.stdin:
        started = time.process_time()
        figures = work(int(request))
        seconds = (time.process_time() - started) / figures.pop("parts", 1)
        print(json.dumps({"seconds": seconds, **figures}), file=out, flush=True)


class Server:
    """A process that has loaded a checkout and does a line's work on request."""

    def __init__(self, name: str, checkout: Path, folder: Path):
        command = [sys.executable, __file__, "--serve", name, str(folder)]
        self.process = subprocess.Popen(
            command, cwd=folder, env=environment(checkout), stdin=-1, stdout=-1, text=True
        )
        self.calls = 0

    def __call__(self) -> Figures:
        self.calls += 1
        with contextlib.suppress(BrokenPipeError):  # then there is no answer either
            self.process.stdin.write(f"{self.calls}\n")
            self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit(f"{' '.join(self.process.args)} ended with {self.process.wait()}")
        return json.loads(answer)

    def close(self) -> None:
        self.process.communicate()


# --- The lines ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """A line of the table.

    needs: of `PHOTOGRAPHS` and `MODELS`. command: runs in `(checkout, folder)` and returns figures. work: for
    a process that stays: prepares in `folder` and returns what is timed. must_reach: the most, by figure.
    passes: 0 for one run each, without a control, where only memory counts.
    """

    what: str
    must_reach: Figures
    needs: tuple[str, ...]
    command: Callable[[Path, Path], Figures] | None = None
    work: Callable[[Path], Callable[[int], Figures]] | None = None
    passes: int = 6


def cold(what: str, seconds: float, *needs: str, **options: str) -> Line:
    return Line(
        what,
        {"seconds": seconds},
        ("one_1024.png", *needs),
        partial(run_edit, photo="one_1024.png", **options),
    )


def further(what: str, seconds: float, photo: str, quality: str, repeat: int, **options: bool) -> Line:
    work = partial(further_edits, photo=photo, quality=quality, repeat=repeat, **options)
    return Line(what, {"seconds": seconds}, (photo,), work=work, passes=10)


def loading(what: str, how: str, *needs: str) -> Line:
    command = partial(run_load, how=how)
    return Line(f"loading {what}, float32", {"peak_mb": 8500.0}, needs, command, passes=0)


LINES = {
    "cold_edit": cold("cold `magicedit edit`, 1024 px", 2.0),
    "cold_edit_torch": cold(
        "the same in PyTorch: a model's folder without graphs", 5.0, "mini", model="mini"
    ),
    "first_word": Line(
        "until the first word on the terminal", {"seconds": 0.5}, ("one_1024.png",), first_word
    ),
    "warm_live_1024": further("further edit, `live`, 1024 px", 0.06, "one_1024.png", "live", 6),
    "warm_live_4000": further("further edit, `live`, 4000 px", 0.2, "one_4000.png", "live", 2),
    "warm_balanced_measured": further(
        "further edit, `balanced`, 1024 px, measured", 0.28, "one_1024.png", "balanced", 2, measure=True
    ),
    "nine_faces": further("further edit of nine faces, 1536 px", 1.2, "nine_1536.png", "balanced", 1),
    "eight_faces_6000": Line(
        "cold `magicedit edit` of eight faces, 6000 x 4000 px, measured",
        {"seconds": 6.0, "peak_mb": 700.0},
        ("eight_6000.jpg",),
        partial(run_edit, photo="eight_6000.jpg"),
        passes=4,
    ),
    "png_4000": Line("writing a PNG of 4000 px", {}, ("one_4000.png",), work=save_png),
    "load_published": loading("the published checkpoint", "load_published", "magicface", "sd15"),
    "convert_published": loading("and converting it", "convert_published", "magicface", "sd15"),
    "load_folder": loading("the converted folder", "load_folder", "pipeline", "magicface", "sd15"),
    "load_stable_diffusion": loading("Stable Diffusion to train from", "load_stable_diffusion", "sd15"),
}


@dataclass
class Arm:
    """Does a line's work in a checkout and returns CPU seconds; other figures are kept."""

    run: Callable[[], Figures]
    others: list[Figures] = field(default_factory=list)

    def __call__(self) -> float:
        figures = self.run()
        self.others.append({name: value for name, value in figures.items() if name != "seconds"})
        return figures["seconds"]

    def most(self) -> Figures:
        return {name: round(max(run[name] for run in self.others), 3) for name in self.others[0]}


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def measure(name: str, checkouts: dict[str, Path], folder: Path, passes: int | None) -> dict[str, object]:
    """Raises `pairs.DiscardedRun` where the control does not come out at 1."""
    import pairs

    line = LINES[name]
    servers = []
    arms = {}
    for when, checkout in checkouts.items():
        if line.work is None:
            arms[when] = Arm(partial(line.command, checkout, folder))
        else:
            servers.append(Server(name, checkout, folder))
            arms[when] = Arm(servers[-1])
    try:
        if line.passes:
            seconds = pairs.interleave(
                arms,
                passes or line.passes,
                warmup=0 if line.work is None else 1,  # a command keeps nothing from one run to the next
                fewest=1,
                note=note,
            )
            compared = pairs.compare(seconds, next(iter(arms)))
        else:
            compared = {"seconds": {when: {"median": round(arm(), 2)} for when, arm in arms.items()}}
    finally:
        for server in servers:
            server.close()
    return {
        "what": line.what,
        "must_reach": line.must_reach,
        **compared,
        "most": {when: arm.most() for when, arm in arms.items()},
    }


def write_model(name: str, folder: Path) -> None:
    """A model that lines need: `mini` in a folder like anybody's, or random weights of the published size."""
    if name == "mini":
        from magicedit.embedded import embedded_folder

        # As training writes it: without graphs
        shutil.copytree(embedded_folder("mini"), folder / name, ignore=shutil.ignore_patterns("onnx"))
    elif name == "pipeline":
        from magicedit.models import convert

        convert(folder / "magicface", base=folder / "sd15", output=folder / name)
    else:
        script = CHECKOUT / "dev" / "random_stable_diffusion.py"
        subprocess.run([sys.executable, str(script), str(folder / name), "--family", name], check=True)


def prepare(names: list[str], folder: Path) -> None:
    """Writes photographs and models that lines need into the folder, each once."""
    needed = {need for name in names for need in LINES[name].needs}
    for need in sorted(needed, key=[*PHOTOGRAPHS, *MODELS].index):
        if need in PHOTOGRAPHS:
            PHOTOGRAPHS[need]().save(folder / need, quality=92)
        elif not (folder / need).is_dir():
            write_model(need, folder)


def main() -> None:
    if sys.argv[1:2] == ["--serve"]:
        serve(LINES[sys.argv[2]], Path(sys.argv[3]))
        return
    if sys.argv[1:2] == ["--load"]:
        load(sys.argv[2], Path(sys.argv[3]))
        return
    import pairs
    from machine import circumstances, merge

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", type=Path, metavar="CHECKOUT", help="an earlier checkout to compare with")
    parser.add_argument("--only", nargs="+", choices=list(LINES), default=list(LINES), help="of the lines")
    parser.add_argument("--passes", type=int, help="of each line, instead of its own number")
    parser.add_argument(
        "--work", type=Path, help="folder for photographs and models, kept; default: temporary"
    )
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    checkouts = {"before": args.before.resolve()} if args.before else {}
    checkouts["after"] = CHECKOUT
    discarded = []
    with tempfile.TemporaryDirectory() as temporary:
        checkouts = {
            when: importable(checkout, Path(temporary) / when) for when, checkout in checkouts.items()
        }
        folder = args.work.resolve() if args.work else Path(temporary)
        prepare(args.only, folder)
        for line in args.only:
            try:
                row = {**measure(line, checkouts, folder, args.passes), **circumstances()}
            except pairs.DiscardedRun as error:
                note(f"{line}: {error}")
                discarded.append(line)
                continue
            merge(args.output, line, row)
            medians = {when: row["seconds"][when]["median"] for when in checkouts}
            print(json.dumps({line: medians | {"most": row["most"]}}), flush=True)
    if discarded:
        sys.exit(DISCARDED)


if __name__ == "__main__":
    main()
