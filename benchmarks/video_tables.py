"""Tables of docs/video.md, of what benchmarks/video.json holds."""


def flicker_table(flicker: dict) -> str:
    """Ratio of flicker by video and by what is smoothed, and by quality."""
    ratio = {
        (row["video"], row["model"], row["quality"], row["smoothed"]): row["ratio"] for row in flicker["rows"]
    }
    videos = list(dict.fromkeys(row["video"] for row in flicker["rows"]))
    lines = [f"| flicker | {' | '.join(videos)} |", "|---|" + "---|" * len(videos)]
    named = {
        "`fast`, nothing smoothed": ("mini", "fast", "nothing"),
        "`fast`, place, landmarks and units": ("mini", "fast", "faces"),
        "`fast`, the model's answer": ("mini", "fast", "changes"),
        "`fast`, both: what is done": ("mini", "fast", "both"),
        "`live`, both": ("mini", "live", "both"),
        "`balanced`, both": ("mini", "balanced", "both"),
        "`--model mini-live`, both": ("mini-live", "live", "both"),
    }
    for name, way in named.items():
        lines.append(f"| {name} | {' | '.join(f'{ratio[(video, *way)]:.2f}' for video in videos)} |")
    return "\n".join(lines)


def cores_table(cores: dict) -> str:
    """Frames that one core edits a second, now and before, by size."""
    lines = ["| | film | frames/s of a core | before | flicker | before |", "|---|---|---|---|---|---|"]
    for row in cores["rows"]:
        now, before = row["now"], row["before"]
        cells = (
            row["video"],
            f"{row['film_mbit_per_second']:.0f} Mbit/s",
            *(f"{one['frames_per_second_of_a_core']:.1f}" for one in (now, before)),
            *(f"{one['flicker']:.2f}" for one in (now, before)),
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def encoding_table(encoding: dict) -> str:
    """Time, size and SSIM of x264's presets."""
    lines = ["| `--preset` | ms a frame | kB a frame | SSIM |", "|---|---|---|---|"]
    films = {(row["video"], row["preset"]): row for row in encoding["rows"]}
    for preset in dict.fromkeys(preset for _, preset in films):
        rows = [films[video, preset] for video in ("noisy", "clean")]
        cells = (
            f"`{preset}`",
            ", ".join(f"{row['ms_per_frame']:.0f}" for row in rows),
            ", ".join(f"{row['kb_per_frame']:.0f}" for row in rows),
            ", ".join(f"{row['ssim']:.4f}" for row in rows),
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def speed_table(result: dict) -> str:
    """Frames a second, CPU seconds a frame and memory."""
    lines = ["| | frames | frames/s | CPU s a frame | peak memory |", "|---|---|---|---|---|"]
    speed = result["speed"]
    rows = {f"`video`, {quality}": speed[f"short, {quality}"] for quality in ("live", "fast", "balanced")}
    rows |= {"`video`, fast, longer": speed["long, fast"], "`reenact`, fast, 1024 px": result["reenact"]}
    for name, row in rows.items():
        cells = (
            name,
            row["frames"],
            f"{row['frames_per_second']:.1f}",
            f"{row['cpu_seconds_per_frame']:.2f}",
            f"{row['peak_rss_mb']} MB",
        )
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)
