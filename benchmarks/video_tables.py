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
