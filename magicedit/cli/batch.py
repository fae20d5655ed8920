"""`magicedit edit FOLDER`: one request for all its photographs, or a row of a manifest an edit."""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from magicedit.cli.common import (
    PIPE,
    add_engine_options,
    check_model,
    check_settings,
    edit_request,
    options,
    path_of,
    print_json,
    say,
    shows_bars,
    warn,
    warn_of_copies,
)
from magicedit.errors import MagicEditError, OutputError
from magicedit.files import counted, shown

if TYPE_CHECKING:
    from magicedit.batch import BatchReport

MOST_WARNINGS = 20  # printed; the journal has all
PARTLY_FAILED = 1


def add_folder_options(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--manifest",
        type=path_of,
        metavar="CSV",
        help="table with one edit per row, instead of one request for all",
    )
    parser.add_argument(
        "--format",
        choices=("png", "jpg", "webp", "tif"),
        help="format of the results (default: the photograph's own; for stdout png)",
    )
    parser.add_argument(
        "--workers", type=int, metavar="N", help="processes with a model each (default: as many as help here)"
    )
    add_engine_options(parser)


def refuse_folder_options(args: argparse.Namespace) -> None:
    """Raises MagicEditError where options for folders are given with a photograph."""
    given = options(args, "manifest", "workers") | {"format": None if args.output == PIPE else args.format}
    given |= {"engine": None if args.engine == "local" else args.engine, "address": args.address}
    if used := [f"--{name}" for name, value in given.items() if value is not None and value is not False]:
        raise MagicEditError(
            f"{', '.join(used)}: only for several photographs, or a folder of them, and "
            f"{shown(args.photo)} is one; leave the option out"
        )


def run_edit_folder(args: argparse.Namespace) -> int:
    from magicedit.batch import edit_folder, edit_manifest, edit_photographs
    from magicedit.imaging import WRITTEN_SUFFIXES

    folders = [photo for photo in args.photos if os.path.isdir(photo)]
    if PIPE in (*args.photos, args.output):
        raise MagicEditError("- is for one photograph; name the files, and a folder with -o")
    if len(args.photos) > 1 and (folders or args.manifest is not None):
        what = f"{shown(folders[0])} is a folder" if folders else "--manifest is for a folder"
        raise MagicEditError(f"{what}; give either one folder, or photographs")
    if Path(args.output).suffix.lower() in WRITTEN_SUFFIXES:
        given = (
            f"{shown(args.photo)} is a folder, not a file," if folders else "several photographs are given,"
        )
        raise OutputError(f"{given} so -o names a folder too; {shown(args.output)} looks like a file")
    request = edit_request(args)
    check_settings(args)
    check_model(args)
    settings = options(args, "model", "device", "dtype", "backend", "format", "workers")
    settings |= options(args, "engine", "address")
    settings |= {"force": args.overwrite, "optimize": args.fast, "progress": shows_bars(args), "say": say}
    settings |= options(args, "mark", "strip_private")
    if not folders:
        report = edit_photographs(args.photos, args.output, request, **settings)
    elif args.manifest is not None:
        report = edit_manifest(args.photo, args.manifest, args.output, request, **settings)
    else:
        report = edit_folder(args.photo, args.output, request, **settings)
    complain(report, numbered=args.manifest is not None)
    if args.json:
        print_json(report.to_json())
    else:
        print_summary(report)
    return PARTLY_FAILED if report.of_status("failed") else 0


def complain(report: "BatchReport", numbered: bool) -> None:
    """Prints warnings and failures for people; `numbered`: with the rows of their manifest."""
    from magicedit.batch import JOURNAL

    warn_of_copies(sum(r.row.request.is_empty for r in report.results), of=len(report.results))
    warnings = [f"{shown(r.row.photo)}: {text}" for r in report.of_status("done") for text in r.warnings]
    for line in warnings[:MOST_WARNINGS]:
        warn(f"warning: {line}")
    if len(warnings) > MOST_WARNINGS:
        journal = shown(report.output / JOURNAL)
        warn(f"warning: and {len(warnings) - MOST_WARNINGS} more; {journal} has them all")
    if failures := report.of_status("failed"):
        width = max(len(shown(result.row.photo)) for result in failures)
        warn("failed:")
        warn(f"  {'row':>5}  {'photo':<{width}}  reason" if numbered else f"  {'photo':<{width}}  reason")
        for result in failures:
            number = f"{result.row.number:>5}  " if numbered else ""
            warn(f"  {number}{shown(result.row.photo):<{width}}  {result.reason}")


def print_summary(report: "BatchReport") -> None:
    done, skipped, failed = (report.of_status(status) for status in ("done", "skipped", "failed"))
    print(f"edited    {len(done):>6}")
    print(f"skipped   {len(skipped):>6}  finished by an earlier run")
    print(f"failed    {len(failed):>6}")
    print(f"warnings  {sum(len(result.warnings) for result in report.results):>6}")
    if left_alone := sum(result.left_alone for result in report.results):
        print(
            f"small     {left_alone:>6}  faces left alone, far smaller than the largest of their photograph"
        )
    pace = f", {report.seconds / len(done):.2f} s an edit" if done else ""
    worker = "all of the cluster" if report.workers is None else counted(report.workers, "worker")
    print(f"{shown(report.output)}  ({worker}, {report.seconds:.1f} s{pace})")
