"""What docs/scale.md and docs/training.md show of committed measurements; the plan is `plan.plan_table`."""

from typing import Any


def full_size_text(content: dict[str, Any]) -> str:
    """Seconds, memory and sizes of LoRA training at full size, in sentences."""
    found, hardware = content["results"], content["hardware"]
    edit, sizes = found["edit"], found["megabytes"]
    training, saving = found["two steps"]["training"], found["two steps"]["saving"]
    a_step, where = training["seconds"] / 2, f"{hardware['cores']} cores ({hardware['cpu'].strip()})"
    merged, merging = sizes["merged"] / 1000, found["merge"]["peak_gb"]
    return "\n".join(
        [
            f"- `sd15-lora` at 512 px, batch 1, on {where}: {a_step:.0f} s a step, beside other work; "
            f"memory at most {training['peak_gb']:.1f} GB in training, {saving['peak_gb']:.1f} GB in saving.",
            f"- A checkpoint has {sizes['checkpoint']:.0f} MB, the result {sizes['result']:.0f} MB. Merged "
            f"with its base it has {merged:.1f} GB, for which merging takes {merging:.1f} GB of memory.",
            f"- An edit with it (`--quality live`): {edit['seconds']:.0f} s beside other work, "
            f"{edit['peak_gb']:.1f} GB.",
        ]
    )


def memory_table(content: dict[str, Any]) -> str:
    """Counted memory of a GPU by recipe."""
    lines = ["| training | live tensors at most | taken from the card |", "|---|---:|---:|"]
    for name, row in content.items():
        if row["kind"] == "counted":
            peak = max(row["encoding_mb"], row["training_mb"])
            lines.append(f"| `{name}` | {peak / 1000:.1f} GB | {row['reserved_mb'] / 1000:.1f} GB |")
    return "\n".join(lines)


def start_text(content: dict[str, Any]) -> str:
    """Seconds and memory of opening a large dataset, in a sentence."""
    found = content["start"]
    return (
        f"Opening {found['rows']:,} photographs takes {found['cpu_seconds']:.1f} s of one core, and "
        f"{found['bytes_a_record_held']:.0f} bytes of memory each."
    )


def samples_text(content: dict[str, Any]) -> str:
    """Samples a second of one core, with nothing cached, in a sentence."""
    found = content["samples"]
    now, size = found["samples_a_second_now"].values(), found["resolution"]
    return (
        f"One core makes {min(now):.0f} to {max(now):.0f} samples of {size} px a second where nothing is "
        "cached: fewest real pairs with `--augment`, most warped ones as they are stored."
    )
