"""Attacks magicedit by the sections of `benchmarks/attacks/` and counts what held.

    python benchmarks/campaign.py -o benchmarks/campaign.json        # all of it, about an hour of two cores
    python benchmarks/campaign.py --short                            # the sample that the tests run
    python benchmarks/campaign.py --only images --only models

Each section runs in a worker process, which is killed when an attack takes ten times the seconds it may; the
next worker goes on with the next attack. Prints a line for each attack that did not hold, and exits with 1 if
there is one.
"""

import argparse
import contextlib
import importlib
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import attacks as sections
from machine import circumstances

from magicedit.files import write_text

SEED = 16
PATIENCE = 10  # times the seconds of an attack until its worker is killed


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--short", action="store_true", help="a sample of each section")
    parser.add_argument("--only", action="append", metavar="SECTION", choices=names(), help="repeatable")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("-o", "--output", type=Path, metavar="JSON")
    args = parser.parse_args(argv)
    held = True
    for name in args.only or names():
        started = time.perf_counter()
        row = run_section(f"attacks.{name}", args.seed, args.short)
        seconds = time.perf_counter() - started
        print(f"{row['title']}: {row['held']} of {row['tried']} held ({seconds:.0f} s)", flush=True)
        held &= row["held"] == row["tried"]
        if args.output is not None:
            keep(args.output, name, {**row, "seed": args.seed, "short": args.short})
    return int(not held)


def keep(output: Path, name: str, row: dict[str, Any]) -> None:
    """Writes a section's row into the file of all, so that a run that is ended keeps what it has done."""
    found = json.loads(output.read_text())["sections"] if output.exists() else {}
    content = {**circumstances(), "sections": dict(sorted((found | {name: row}).items()))}
    write_text(output, json.dumps(content, indent=1) + "\n")


def table_of(content: dict[str, Any]) -> str:
    """Returns the sections of a written campaign as a Markdown table."""
    lines = ["| attacked | tried | held | slowest, s | most memory, MB |", "|---|---:|---:|---:|---:|"]
    for row in content["sections"].values():
        title = row["title"] + (" (a sample)" if row["short"] else "")
        counts = f"{row['tried']:,} | {row['held']:,}"
        lines.append(f"| {title} | {counts} | {row['slowest_s']:.1f} | {row['largest_mb']} |")
    total = [sum(row[key] for row in content["sections"].values()) for key in ("tried", "held")]
    told = f"{total[1]:,} of {total[0]:,} held. {content['date']}, {content['hardware']['cpu'].strip()}"
    return "\n".join([*lines, "", f"{told}, beside other work; times are of the wall."])


def names() -> list[str]:
    """Returns the sections' names: modules of `attacks` with a TITLE."""
    files = sorted(Path(sections.__path__[0]).glob("*.py"))
    return [file.stem for file in files if "\nTITLE = " in file.read_text()]


def run_section(name: str, seed: int, short: bool) -> dict[str, Any]:
    """Runs the section of a module; returns its title, how many were tried and held, and what failed."""
    context = multiprocessing.get_context("spawn")
    title, total, failures, slowest, largest = "", 1, {}, 0.0, 0.0
    done = 0
    while done < total:
        here, there = context.Pipe(duplex=False)
        folder = Path(tempfile.mkdtemp(prefix="campaign-"))
        process = context.Process(target=_work, args=(there, folder, name, seed, short, done))
        process.start()
        there.close()
        current, limit = "loading the section", 600.0
        try:
            while True:
                if not here.poll(limit):
                    raise TimeoutError(f"did not end in {limit:.0f} s")
                kind, *said = here.recv()
                if kind == "section":
                    title, total = said
                elif kind == "begun":
                    current, limit = said
                else:
                    problem, seconds, megabytes = said
                    done += 1
                    slowest, largest, limit = max(slowest, seconds), max(largest, megabytes), 60.0
                    if problem is not None:
                        failures[current] = problem
                        print(f"  {name}: {current}: {problem}", flush=True)
        except (TimeoutError, EOFError) as error:
            if isinstance(error, TimeoutError) or done < total:
                process.kill()
                process.join()
                failures[current] = str(error) or f"its process ended with exit status {process.exitcode}"
                print(f"  {name}: {current}: {failures[current]}", flush=True)
                if not title:
                    raise SystemExit(f"section {name} could not be loaded") from error
                done += 1
        finally:
            process.join(10)  # one that is done cleans up after itself
            process.kill()
            process.join()
            here.close()
            shutil.rmtree(folder, ignore_errors=True)
    return {
        "title": title,
        "tried": total,
        "held": total - len(failures),
        "slowest_s": round(slowest, 2),
        "largest_mb": round(largest),
        "failures": failures,
    }


def _work(pipe: Connection, folder: Path, name: str, seed: int, short: bool, first: int) -> None:
    """Runs a section's attacks from number `first` on, and tells what came of each."""
    module = importlib.import_module(name)
    todo = module.attacks(seed, short)
    twice = {attack.name for attack in todo if [a.name for a in todo].count(attack.name) > 1}
    assert not twice, f"names of attacks must be unique: {twice}"
    pipe.send(("section", module.TITLE, len(todo)))
    for number, attack in enumerate(todo[first:], start=first):
        pipe.send(("begun", attack.name, PATIENCE * attack.seconds))
        own = folder / str(number)
        own.mkdir()
        before, started = _reset_peak(), time.perf_counter()
        try:
            with _quiet():
                problem = attack.check(own)
        except BaseException:
            problem = " | ".join(traceback.format_exc().strip().splitlines()[-3:])
        seconds, megabytes = time.perf_counter() - started, _memory("VmHWM") - before
        if problem is None and seconds > attack.seconds:
            problem = f"took {seconds:.1f} s, {attack.seconds:g} are allowed"
        if problem is None and megabytes > attack.megabytes:
            problem = f"took {megabytes:.0f} MB, {attack.megabytes:g} are allowed"
        pipe.send(("done", problem, seconds, megabytes))
        shutil.rmtree(own, ignore_errors=True)
    pipe.close()


@contextlib.contextmanager
def _quiet():
    """Sends what the attacked code prints to nowhere, native libraries' too."""
    with open(os.devnull, "w") as nowhere:
        kept = os.dup(1), os.dup(2)
        sys.stdout.flush(), sys.stderr.flush()
        os.dup2(nowhere.fileno(), 1), os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            sys.stdout.flush(), sys.stderr.flush()
            for number, handle in enumerate(kept, start=1):
                os.dup2(handle, number)
                os.close(handle)


def _reset_peak() -> float:
    """Makes the peak of resident memory begin anew (Linux); returns what is resident now, 10^6 bytes."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _memory("VmRSS")


def _memory(key: str) -> float:
    """Returns a figure of /proc/self/status in 10^6 bytes; 0 where there is none."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(f"{key}:")), 0.0)


if __name__ == "__main__":
    sys.exit(main())
