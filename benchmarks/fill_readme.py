"""Writes the figures of benchmarks/ into README.md and the pages of docs/, between their markers.

    python benchmarks/fill_readme.py [--check]

`--check` changes nothing and ends with 1 where a page differs from the data.
"""

import argparse
import json
import re
import sys
from pathlib import Path

import atlas_tables
import campaign
import interface_texts
import plan
import scale_tables
import video_tables
from mini_quality import checks_table_of, sides_table_of, table_of
from speed_tables import (
    counted_table,
    qualities_table,
    sampling_table,
    speed_in_short,
    speed_table,
    utilisation_text,
    waiting_in_short,
    waiting_table,
    yardstick_table,
)

from magicedit.evaluation import headline_table
from magicedit.evaluation.families import short_table
from magicedit.evaluation.tables import markdown

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
EVALUATION = HERE.parent / "docs" / "evaluation.md"
SPEED = HERE.parent / "docs" / "speed.md"
ATLAS = HERE.parent / "docs" / "atlas.md"
APP = HERE.parent / "docs" / "app.md"
FAMILIES = HERE.parent / "docs" / "families.md"
EXPRESSIONS = HERE.parent / "docs" / "expressions.md"
RELIABILITY = HERE.parent / "docs" / "reliability.md"
TRAINING = HERE.parent / "docs" / "training.md"
SCALE = HERE.parent / "docs" / "scale.md"
VIDEO = HERE.parent / "docs" / "video.md"


def summary_of(protocol: str) -> dict:
    return json.loads((HERE / "evaluation" / protocol / "summary.json").read_text())


def evaluation(protocol: str) -> str:
    """The headline table of a committed evaluation."""
    return headline_table(summary_of(protocol)).strip()


def evaluation_blocks() -> dict[str, str]:
    """What belongs between which markers of docs/evaluation.md."""
    protocols = sorted({folder.name for folder in (HERE / "evaluation").iterdir()} - {"families"})
    return {f"table:{protocol}": evaluation(protocol) for protocol in protocols}


def committed(name: str) -> dict:
    return json.loads((HERE / f"{name}.json").read_text())


def speed_blocks() -> dict[str, str]:
    """What belongs between which markers of docs/speed.md."""
    speed, qualities = committed("speed"), committed("qualities")
    return {
        "table:waiting": waiting_table(committed("edit_speed")),
        "table:yardstick": yardstick_table(committed("yardstick")),
        "text:utilisation": utilisation_text(speed),
        "table:qualities": qualities_table(qualities, speed),
        "table:sampling": sampling_table(qualities),
        "table:speed": speed_table(speed),
        "table:counted": counted_table(speed),
        "text:samples": scale_tables.samples_text(committed("training_data")),
    }


def readme_blocks() -> dict[str, str]:
    """What belongs between which markers of the README."""
    quality = committed("mini_quality")
    summary, checks = quality["summary"], quality["checks"]
    levels = summary["AU12_mean_change_by_request"]
    missed = [check for check in checks if not check["reached"]]
    families = short_table(summary_of("families"))
    return {
        "table:mini_quality": table_of(summary),
        "text:mini_quality": (
            "Mean change of AU12 by MediaPipe for a request of "
            + ", ".join(f"+{level}: {change:+.2f}" for level, change in levels.items())
            + f". It meets {len(checks) - len(missed)} of our {len(checks)} acceptance criteria."
            + (" It misses:" if missed else "")
        ),
        "table:mini_missed": checks_table_of(missed),
        "table:mini_sides": sides_table_of(summary),
        "table:table1-small": evaluation("table1-small"),
        "table:families": markdown(families.head, families.rows).strip(),
        "table:edit_speed": waiting_in_short(committed("edit_speed")),
        "text:speed": speed_in_short(committed("speed")),
        "text:interfaces": interface_texts.in_short(committed("app"), committed("video")),
    }


def scale_blocks() -> dict[str, str]:
    """What belongs between which markers of docs/scale.md."""
    memory = committed("memory")
    return {
        "text:full_size": scale_tables.full_size_text(committed("full_size")),
        "table:memory": scale_tables.memory_table(memory),
        "table:plan": plan.plan_table(committed("plan"), memory),
    }


def filled(text: str, blocks: dict[str, str]) -> str:
    for name, content in blocks.items():
        start, end = f"<!-- {name} -->", f"<!-- /{name.split(':')[0]} -->"
        pattern = re.escape(start) + r".*?" + re.escape(end)
        text, count = re.subn(
            pattern, lambda _, c=content, s=start, e=end: f"{s}\n{c}\n{e}", text, flags=re.S
        )
        if count != 1:
            raise SystemExit(f"the page must have the markers {start} ... {end} once, found {count}")
    return text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    stale = False
    for page, blocks in (
        (README, readme_blocks()),
        (EVALUATION, evaluation_blocks()),
        (SPEED, speed_blocks()),
        (ATLAS, atlas_tables.blocks(committed("mini_quality"), committed("controls"))),
        (
            VIDEO,
            {
                "table:flicker": video_tables.flicker_table(committed("video")["flicker"]),
                "table:cores": video_tables.cores_table(committed("video")["cores"]),
                "table:encoding": video_tables.encoding_table(committed("video")["encoding"]),
                "table:speed": video_tables.speed_table(committed("video")),
            },
        ),
        (RELIABILITY, {"table:campaign": campaign.table_of(committed("campaign"))}),
        (FAMILIES, {"table:families": evaluation("families")}),
        (TRAINING, {"text:start": scale_tables.start_text(committed("training_data"))}),
        (SCALE, scale_blocks()),
        (APP, {"text:app": interface_texts.app(committed("app"))}),
        (
            EXPRESSIONS,
            {
                "text:transfer": interface_texts.transfer(committed("expressions")["transfer"]),
                "text:loop": interface_texts.loop(committed("expressions")["loop"]),
            },
        ),
    ):
        before = page.read_text()
        after = filled(before, blocks)
        stale |= before != after
        if not args.check:
            page.write_text(after)
    return int(args.check and stale)


if __name__ == "__main__":
    sys.exit(main())
