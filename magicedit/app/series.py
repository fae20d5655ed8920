"""What a page edits besides its photograph: a video, or several photographs, all by one request."""

import contextlib
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from magicedit.app.picture_files import CLOSE_SIDE, Upload, open_upload, without_folder
from magicedit.app.session import OnStep, Series, Session
from magicedit.errors import ImageError, MagicEditError, NoFaceError
from magicedit.imaging import reduced, save_image
from magicedit.request import EditRequest

if TYPE_CHECKING:
    from magicedit.video import Curve, Video

MOST_PHOTOGRAPHS = 20
SHOWN_FRAMES = 3  # of a video, before it is made
SomeSeries = TypeVar("SomeSeries", bound=Series)
SHORTEST_SECONDS = 1.0  # what a video of unknown length is taken to have


class Preview(Series):
    """A few frames of a video."""


class Film(Series):
    """A video."""


class Photographs(Series):
    """Several photographs."""


def series_of(
    kind: type[SomeSeries],
    session: Session,
    paths: Sequence[str],
    text: str,
    curve: str | None,
    settings: EditRequest,
) -> SomeSeries:
    """Returns the series of uploaded files, which are kept as long as they are wanted, see `Session.want`.

    text: the request, such as "AU12=+3,AU4=-1". MagicEditError where there is no file, where there are too
    many, and where nothing is requested; ActionUnitError for other texts.
    """
    if not paths:
        raise MagicEditError("nothing is open here yet: drop a file first")
    if len(paths) > MOST_PHOTOGRAPHS:
        raise MagicEditError(f"at most {MOST_PHOTOGRAPHS} photographs at once, got {len(paths)}")
    request = session.editor.action_units.deltas(text) if text.strip() else {}
    if not request and curve is None:
        raise MagicEditError("nothing is requested: write variations such as AU12=+3, or give a curve")
    files = tuple(session.files.keep_upload(Path(path)) for path in paths)
    return kind(files, request, curve and session.files.keep_upload(Path(curve)), settings)


def preview_video(session: Session, series: Preview, on_step: OnStep | None = None) -> list[Path]:
    """Returns a few frames of a video, spread over it and edited in the quickest quality, as JPEG files.

    A frame without a face stays as it is. Errors as of `make_video`.
    """
    with _working(session, series, on_step) as listener:
        video, curve = _opened(series)
        length = video.info.seconds or SHORTEST_SECONDS
        pictures = []
        for share in (np.arange(SHOWN_FRAMES) + 0.5) / SHOWN_FRAMES:
            session.turns.pass_on()
            session.raise_if_cancelled()
            seconds = float(share * length)
            pixels = video.picture_at(seconds)
            added = curve.at(seconds) if curve else {}
            asked = session.editor.action_units.total([series.request, added])
            sampling = series.settings.sampling() | {"quality": "live", "steps": None}
            try:
                edit = session.editor.edit(
                    pixels, asked, face="largest", measure=False, on_step=listener, **sampling
                )
                pixels = np.asarray(edit.image)
            except NoFaceError:
                pass
            pictures.append(session.files.keep(reduced(pixels, CLOSE_SIDE), edited=True))
        return pictures


def make_video(session: Session, series: Film, report: Callable[[str, int, int | None], None]) -> Path:
    """Returns the edited video as an MP4 file. Others get turns of the model between its frames.

    report: gets what is done, frames done, and of how many. Raises VideoError, NoFaceError, ActionUnitError
    as `edit_video`, and Cancelled.
    """
    from magicedit.video import edit_video

    def progress(state: Any) -> None:
        session.turns.pass_on()
        session.raise_if_cancelled()
        report(state.stage, state.done, state.total)

    source = series.files[0]
    output = source.path.with_name(f"{Path(source.name).stem}-edited.mp4")
    with _working(session, series):
        _, curve = _opened(series)
        edit_video(
            session.editor,
            source.path,
            output,
            dict(series.request),
            curve=curve,
            progress=progress,
            **series.settings.sampling(),
        )
    return output


def edit_photographs(
    session: Session, series: Photographs, report: Callable[[int, int], None]
) -> tuple[Path, list[Path], list[str]]:
    """Returns a ZIP file of the edited photographs as PNG files, a small picture of each, and why others were
    not edited.

    The largest face of each is edited; others get turns of the model in between. Raises ImageError or
    NoFaceError where no photograph could be edited.
    """
    folder, request = series.files[0].path.parent, dict(series.request)
    output, shown, failed = folder / "edited.zip", [], []
    with _working(session, series) as listener, zipfile.ZipFile(output, "w") as archive:
        for number, upload in enumerate(series.files):
            report(number, len(series.files))
            session.turns.pass_on()
            try:
                image = session.editor.edit(
                    open_upload(upload),
                    request,
                    face="largest",
                    measure=False,
                    on_step=listener,
                    **series.settings.sampling(),
                ).image
            except (ImageError, NoFaceError) as error:
                failed.append(error)
                continue
            path = save_image(image, folder / f"{number + 1:02}-{Path(upload.name).stem}-edited.png")
            archive.write(path, path.name)
            path.unlink()
            shown.append(
                session.files.keep(reduced(np.asarray(image.convert("RGB")), CLOSE_SIDE), edited=True)
            )
        if not shown:
            raise failed[0]
    return output, shown, [without_folders(str(error), series.uploads) for error in failed]


def _opened(series: Series) -> "tuple[Video, Curve | None]":
    from magicedit.video import Curve, Video

    return Video(series.files[0].path), None if series.curve is None else Curve.from_csv(series.curve.path)


@contextlib.contextmanager
def _working(
    session: Session, series: Series, on_step: OnStep | None = None
) -> Iterator[Callable[[int], None]]:
    """Work that `cancel` stops, as `Session.watched`; its files are kept meanwhile, and errors have the names
    that users gave them."""
    with session.holding(series.folders), session.watched(on_step, series.settings) as listener:
        try:
            yield listener
        except MagicEditError as error:
            raise type(error)(without_folders(str(error), series.uploads)) from error


def without_folders(message: str, uploads: Sequence[Upload]) -> str:
    """Returns a message with the names that users gave these files."""
    for upload in uploads:
        message = without_folder(message, upload.path, upload.name)
    return message
