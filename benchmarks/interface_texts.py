"""Sentences of docs/ that tell what benchmarks/app.json and benchmarks/expressions.json measured."""


def app(content: dict) -> str:
    """How quick the web page is."""
    hardware, further, clients = content["hardware"], content["further"], content["clients"]
    return (
        f"With `mini` on {hardware['cores']} cores ({hardware['cpu'].strip()}), measured in a browser by "
        f"`{content['command']}` ([benchmarks/app.json](../benchmarks/app.json)): the command serves its "
        f"page after {content['page_served_seconds']:.1f} s, and a first photograph of 1024 px is uploaded, "
        f"edited, measured and shown {content['first_edit_seconds']:.1f} s after the command was started. "
        f"Each further edit takes {further['page_median_seconds']:.2f} s from the click to the picture, "
        f"{further['added_median_ms']} ms more than the same edit by the library (medians of "
        f"{further['edits']}). {clients['clients']} clients with ten edits each at once: "
        f"{clients['right']} of {clients['edits']} answered, each with its own result and in order, in "
        f"{clients['seconds']:.0f} s."
    )


def in_short(app: dict, video: dict) -> str:
    """Of the README."""
    speed = video["speed"]
    fast, long = speed["short, fast"], speed["long, fast"]
    flicker = max(row["flicker"]["ratio"] for row in (fast, long))
    further = app["further"]
    return (
        f"The page shows a first edit {app['first_edit_seconds']:.1f} s after `magicedit app` was started, "
        f"and adds {further['added_median_ms']} ms to each further one "
        "([benchmarks/app.json](benchmarks/app.json)). Videos of 1280 x 720 px with one face: "
        f"{fast['frames_per_second']:.1f} frames a second, {long['peak_rss_mb'] / 1000:.1f} GB of memory for "
        f"{long['frames']} frames, {flicker:.2f} times the input's flicker "
        "([benchmarks/video.json](benchmarks/video.json))."
    )


def transfer(content: dict) -> str:
    """How near a copied expression comes."""
    mean, worst = content["mean"], content["worst"]
    return (
        f"Measured with `mini` on {len(content['rows'])} pairs of people that it has never seen, somebody "
        "else's smile on a neutral photograph: the mean absolute difference between the copied intensities "
        f"of the twelve units and those of the result is {mean['open']:.2f} steps (worst pair "
        f"{worst['open']:.2f}), in the closed loop {mean['closed']:.2f} ({worst['closed']:.2f}); before it "
        f"was {mean['before']:.2f} ([benchmarks/expressions.json](../benchmarks/expressions.json))."
    )


def loop(content: dict) -> str:
    """How often the closed loop reaches what can be reached."""
    people = len({row["person"] for row in content["rows"]})
    return (
        f"Measured with `mini`: of {content['requests']} requests (each unit by +1, +2 and +3, {people} "
        f"people), {content['possible']} can be reached within {content['tolerance']:g} steps by some "
        f"request from -5 to 5. The loop reaches {content['reached']} of these ({content['share']:.0%}) in "
        f"at most {content['max_edits']} edits, {content['mean_edits']:.1f} on average; the request as it "
        f"stands reaches {content['reached_at_once']}."
    )
