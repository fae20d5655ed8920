"""Two writers of one output: the second is told that another one is at work, and where."""

import contextlib
import functools
import os
import select
import signal
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

import magicedit.batch.run as batch_module
from attacks import Attack, crashing, evaluate_crashes, prepare_crashes, trained
from magicedit.batch import EditRequest, edit_folder
from magicedit.data import prepare_dataset
from magicedit.editor import ExpressionEditor
from magicedit.errors import MagicEditError
from magicedit.evaluation import Entrant, evaluate
from magicedit.files import locked
from magicedit.video import edit_video
from magicedit.video.partial import Partial

TITLE = "Two writers on one output"
PATIENCE = 120  # seconds until the first writer must have begun
REFUSED = 2

Wait = Callable[..., None]


def attacks(seed: int, short: bool) -> list[Attack]:
    return [
        Attack(name, functools.partial(_check, first, second, place), seconds=60)
        for name, (first, second, place) in WRITERS.items()
    ]


def _check(
    first: Callable[[Path, Wait], None], second: Callable[[Path], int | None], place: str, folder: Path
) -> str | None:
    with _begun(functools.partial(first, folder)) as has_begun:
        if not has_begun:
            return "the first writer did not begin"
        ended = crashing.run(functools.partial(_refused, second, folder), folder)
    if ended.code != REFUSED:
        return f"the second writer ended with {ended.code}: {ended.output[-300:]}"
    if "another run is writing" not in ended.output or place not in ended.output:
        return f"it says {ended.output[-300:]!r}"
    return None


def _refused(second: Callable[[Path], int | None], folder: Path) -> int:
    try:
        return second(folder) or 0
    except MagicEditError as error:
        print(error)
        return REFUSED


@contextlib.contextmanager
def _begun(job: Callable[[Wait], None]) -> Iterator[bool]:
    """Runs a job in a process of its own until it waits; whether it came so far."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.setsid()
            job(lambda *_: (os.write(writing, b"."), signal.pause()))
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    os.close(writing)
    try:
        there, _, _ = select.select([reading], [], [], PATIENCE)
        yield bool(there) and os.read(reading, 1) == b"."
    finally:
        os.close(reading)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _photographs(folder: Path) -> None:
    (folder / "photographs").mkdir()
    pixels = np.full((64, 64, 3), 120, np.uint8)
    Image.fromarray(pixels).save(folder / "photographs" / "a.png")


class Waiting(prepare_crashes.Still):
    """A face backend that waits at its first photograph."""

    def __init__(self, wait: Wait):
        self.detect = wait


def _first_prepare(folder: Path, wait: Wait) -> None:
    _photographs(folder)
    prepare_dataset(folder / "photographs", folder / "dataset", backend=Waiting(wait), progress=False)


def _second_prepare(folder: Path) -> None:
    backend = prepare_crashes.Still()
    prepare_dataset(folder / "photographs", folder / "dataset", backend=backend, progress=False)


def _first_evaluate(folder: Path, wait: Wait) -> None:
    evaluate_crashes.people(folder)
    evaluate_crashes.without_networks()
    arguments = folder / "brief.yaml", folder / "people", folder / "report"
    evaluate([Entrant("first", lambda: wait)], *arguments, cold_start=False)


def _second_evaluate(folder: Path) -> None:
    evaluate_crashes.run(folder, "first")


def _first_batch(folder: Path, wait: Wait) -> None:
    _photographs(folder)
    batch_module.edit_rows = wait  # in this process: where the first photograph would be edited
    edit_folder(folder / "photographs", folder / "edited", EditRequest(add="AU12=1"))


def _second_batch(folder: Path) -> None:
    edit_folder(folder / "photographs", folder / "edited", EditRequest(add="AU12=1"))


def _first_train(folder: Path, wait: Wait) -> None:
    with locked(folder / "output"):
        wait()


def _second_train(folder: Path) -> int:
    flags = ["--train_data_dir", str(trained.dataset()), "--output_dir", str(folder / "output")]
    return trained.train([*trained.FLAGS, "--max_train_steps=1", *flags])


def _first_video(folder: Path, wait: Wait) -> None:
    with Partial(folder / "film.mp4", {}):
        wait()


def _second_video(folder: Path) -> None:
    import av

    with av.open(str(folder / "in.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width = stream.height = 64
        for _ in range(3):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 120, np.uint8))
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    editor = ExpressionEditor.from_pretrained("mini", device="cpu")
    edit_video(editor, folder / "in.mp4", folder / "film.mp4", add="AU12=1")


# What begins, what comes second, and the name that it must say
WRITERS = {
    "prepare": (_first_prepare, _second_prepare, "dataset"),
    "evaluate": (_first_evaluate, _second_evaluate, "report"),
    "batch": (_first_batch, _second_batch, "edited"),
    "train": (_first_train, _second_train, "output"),
    "video": (_first_video, _second_video, "film.mp4"),
}
