"""The tables of docs/speed.md and the README, from what `edit_speed.py`, `yardstick.py`, `speed.py` and
`qualities.py` wrote."""

from edit_speed import LINES
from qualities import table_of

from magicedit.request import QUALITIES

MINI = "mini-live-fast-balanced"  # `speed.py mini --settings live fast balanced`
NOT_MEASURED = "not measured: no GPU was at hand; "


UNITS = {"seconds": "s", "peak_mb": "MB"}
IN_SHORT = ("cold_edit", "warm_live_1024", "warm_balanced_measured", "eight_faces_6000")  # of the README


def figure(name: str, value: float) -> str:
    """Such as "0.43 s" or "8,175 MB"."""
    number = f"{value:,.0f}" if name == "peak_mb" else f"{value:.3g}" if value < 10 else f"{value:.1f}"
    return f"{number} {UNITS[name]}"


def figures(row: dict, arm: str) -> str:
    """What a line is held to, or else its seconds, of one checkout."""
    found = {"seconds": row["seconds"][arm]["median"], **row["most"][arm]}
    return ", ".join(figure(name, found[name]) for name in row["must_reach"] or ["seconds"])


def waiting_table(lines: dict) -> str:
    """A row for each measured line of `edit_speed.py`: before, now, and what it must reach."""
    rows = [
        (
            lines[name]["what"],
            figures(lines[name], "before"),
            figures(lines[name], "after"),
            ", ".join(figure(*goal) for goal in lines[name]["must_reach"].items()),
        )
        for name in LINES
        if name in lines
    ]
    head = ["| | before | now | must reach |", "|---|---|---|---|"]
    return "\n".join(head + [f"| {' | '.join(row)} |" for row in rows])


def waiting_in_short(lines: dict) -> str:
    """The same for the README: some lines, now."""
    hardware = next(iter(lines.values()))["hardware"]
    head = [f"| {hardware['cpu'].strip()}, one thread | |", "|---|---|"]
    return "\n".join(
        head
        + [
            f"| {lines[name]['what']} | {figures(lines[name], 'after')} |"
            for name in IN_SHORT
            if name in lines
        ]
    )


def yardstick_table(yardstick: dict) -> str:
    """Times faster than the published system's own code."""
    lines = ["| | times faster |", "|---|---|"]
    for row in yardstick.values():
        what = row["what"].split(".")[0].split(":")[0]
        size = f"{row['size']} size, {row['resolution']} px" if row["size"] == "full" else "CPU proxy"
        for arm in row["ratios"]:
            named = "" if arm == "ours" else f", `{arm}`"
            lines.append(f"| {what[0].lower()}{what[1:]}, {size}{named} | {ratio(row, arm)} |")
    return "\n".join(lines)


def utilisation_text(speed: dict) -> str:
    """How much of the CPU's peak a training step uses."""
    row = speed["utilisation"]
    return (
        f"A training step of the CPU proxy (batch {row['batch']}, {row['dtype']}) does "
        f"{row['images_per_second']:.2f} images a second on one thread and reaches {100 * row['mfu']:.0f} % "
        "of the FLOP/s that a product of two matrices reaches there."
    )


def ratio(row: dict, arm: str) -> str:
    """Of naive to an arm; where fewer naive steps were timed than are published, scaled by counted FLOPs."""
    scale = row.get("to_published_steps", 1.0)
    median, low, high = (scale * row["ratios"][arm][name] for name in ("median", "low", "high"))
    return f"{median:.2f}x ({low:.2f} to {high:.2f})"


def by_device(devices: dict[str, str]) -> str:
    return ", ".join(f"{value} on {name}" for name, value in devices.items())


def speed_table(speed: dict) -> str:
    """What was aimed at and what came out: a row for each line that speed is held to."""
    step, train = speed["step"], speed["train"]
    devices, tflop = speed["gpu"]["devices"], speed["flops"]["tflop"]
    naive = tflop["50 guided steps, naive"]
    memory = speed["memory"]
    (sweep_name,) = (name for name in memory if name.startswith("sweep"))
    simulated = "simulated from counted FLOPs and bytes, without launch times"
    rows = [
        ("one guided step, exact, CPU proxy", "1.2x", "1.35x", ratio(step, "exact")),
        (
            "the same on a GPU, full size",
            "1.4x",
            "2x",
            f"{NOT_MEASURED}{simulated}: "
            + by_device({name: f"{found['guided_step_ratio']:.2f}x" for name, found in devices.items()}),
        ),
        (
            "one edit, `balanced`, against 50 naive steps",
            "6x",
            "12x",
            edit_ratio(speed, "balanced", "balanced"),
        ),
        (
            "each of 25 AUs of one face, `fast`",
            "15x",
            "30x",
            edit_ratio(speed, "sweep fast", "fast, each of 25 AUs"),
        ),
        (
            "full size on a GPU, `live`",
            "100 ms",
            "30 ms",
            f"{NOT_MEASURED}{tflop['live']:.1f} TFLOP, distilled {tflop['distilled to 4, live']:.1f} "
            f"(the naive edit: {naive:.0f})",
        ),
        (
            "training step of both UNets, cached latents, CPU proxy",
            "1.18x exact, 1.6x cached",
            "2x",
            f"{ratio(train, 'exact')} exact, {ratio(train, 'cached')} with the cached features of a frozen "
            "reference",
        ),
        (
            "peak memory at full size, bfloat16",
            "6 GB",
            "4 GB offloaded, 8 GB for 25 AUs",
            f"counted, not measured: {memory['one_edit']['all_resident_gb']:.1f} GB, offloaded "
            f"{memory['one_edit']['offloaded_gb']:.1f} GB, 25 AUs "
            f"{memory[sweep_name]['all_resident_gb']:.1f} GB",
        ),
    ]
    lines = ["| | must reach | goal | here |", "|---|---|---|---|"]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in rows])


def edit_ratio(speed: dict, arm: str, counted: str) -> str:
    """Of whole edits to 50 naive steps: measured where a valid run is at hand, else by counted FLOPs."""
    if "edit" in speed:
        distilled = arm.replace("balanced", "distilled-balanced").replace("fast", "distilled-fast")
        return (
            f"CPU proxy: {ratio(speed['edit'], arm)}; distilled to 4 steps {ratio(speed['edit'], distilled)}"
        )
    tflop = speed["flops"]["tflop"]
    naive = tflop["50 guided steps, naive"]
    return (
        f"by counted FLOPs {naive / tflop[counted]:.1f}x; distilled to 4 steps "
        f"{naive / tflop[f'distilled to 4, {counted}']:.1f}x. No valid timing: the control of every run "
        "failed"
    )


def speed_in_short(speed: dict) -> str:
    """A sentence of ratios for the README."""
    step, train = (speed[name]["ratios"] for name in ("step", "train"))
    tflop = speed["flops"]["tflop"]
    naive = tflop["50 guided steps, naive"]
    return (
        "Against our re-implementation of the published way of computing, on a CPU proxy of the full size: "
        f"one guided step, with the same result, {step['exact']['median']:.2f} times as fast; a training "
        "step "
        f"{train['exact']['median']:.2f} times, with a frozen reference {train['cached']['median']:.2f}. By "
        f"counted FLOPs a whole edit `balanced` takes {naive / tflop['balanced']:.1f} times less, of a model "
        f"distilled to 4 steps {naive / tflop['distilled to 4, balanced']:.1f} times."
    )


def counted_table(speed: dict) -> str:
    """TFLOP of one edit, and of each of 25 of one face, by quality."""
    tflop = speed["flops"]["tflop"]
    naive = tflop["50 guided steps, naive"]

    def cell(name: str) -> str:
        return f"{tflop[name]:.1f} ({naive / tflop[name]:.1f}x)"

    lines = [
        "| TFLOP | one edit | each of 25 AUs of one face |",
        "|---|---|---|",
        f"| naive, 50 guided steps | {naive:.1f} | {naive:.1f} |",
        f"| `exact` | {cell('50 guided steps, exact')} | |",
    ]
    for kind in ("", "distilled to 4, "):
        for quality in QUALITIES[1:]:
            name = f"{kind}{quality}"
            lines.append(f"| {kind}`{quality}` | {cell(name)} | {cell(f'{name}, each of 25 AUs')} |")
    return "\n".join(lines)


def qualities_table(qualities: dict, speed: dict) -> str:
    """The trade-off of the qualities with the embedded model, times beside losses."""
    names = tuple(name for name in qualities["summary"] if name in QUALITIES or name.startswith("distilled"))
    seconds = speed[MINI]["seconds"]
    table = table_of(qualities, names).splitlines()
    head, rule, *rows = table
    times = [f"{seconds[name]['median']:.2f} s" if name in seconds else "" for name in names]
    return "\n".join(
        [f"{head} next edit |", f"{rule}---|"]
        + [f"{row} {time} |" for row, time in zip(rows, times, strict=True)]
    )


def sampling_table(qualities: dict) -> str:
    """What single ways of saving lose."""
    names = tuple(
        name for name in qualities["summary"] if name not in QUALITIES and not name.startswith("distilled")
    )
    return table_of(qualities, names)
