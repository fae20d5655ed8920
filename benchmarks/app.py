"""How long the web page takes: from its command to a first edit, for each further edit, and for four clients.

    python benchmarks/app.py [--edits 20] [-o benchmarks/app.json]

The page is served by `magicedit app` in a process of its own and used in headless Chromium. The photograph is
scikit-image's astronaut at 1024 px.

start: from starting the command until the browser shows the first measured edit, the upload included.
further: one action unit by another amount each time; from the click on "Edit" until the browser has loaded
the result, and the same edit by the library in this process, in turn. The difference is what the page adds.
drag: a corner of the mouth of the page's example, dragged by 20 px of the window in ten steps;
from each movement until the browser shows its preview, the server's CPU time a movement, and how far the
corner, measured in the last preview, is from the pointer.
clients: four clients with ten edits each at once, through the API; each must get its own, in order.
"""

import argparse
import concurrent.futures
import io
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
from gradio_client import Client, handle_file
from machine import circumstances
from PIL import Image
from playwright.sync_api import Page, sync_playwright
from skimage import data

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in `magicedit`, before torch is loaded
from magicedit import ExpressionEditor
from magicedit.app.handles import HANDLES

UNITS = ("AU12", "AU4", "AU1", "AU26")  # of the four clients
OPTIONS = ["--no-sandbox", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
# Milliseconds from the click until the state tells of an edit and both pictures are there
CLICK = """async number => {
    const start = performance.now();
    const shown = () => Number(document.querySelector('#compare [data-shown]').dataset.shown);
    const before = shown();
    document.querySelector('#edit').click();
    while (!document.querySelector('#status').innerText.includes(`Edit ${number} of`) || shown() === before)
        await new Promise(resolve => setTimeout(resolve, 2));
    return performance.now() - start;
}"""

# Notes when a drag moved last, and when the picture changed after it
WATCH = """() => {
    window.moved = window.changed = 0;
    document.addEventListener('me-drag', () => { window.moved = performance.now(); });
    new MutationObserver(() => { window.changed = performance.now(); })
        .observe(document.querySelector('#compare [data-shown]'), { attributeFilter: ['data-shown'] });
}"""
REST = 1.5  # s after which a picture, and the handles on it, have followed the buttons
DRAGS = ((8.0, -18.3), (-6.0, -19.1), (0.0, 20.0))  # px of the window, 20 each


def start_page() -> tuple[subprocess.Popen, str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "magicedit.cli", "app", "--port", "0"], stderr=subprocess.PIPE, text=True
    )
    for line in process.stderr:
        if found := re.search(r"the page is at (http\S+)", line):
            return process, found[1].rstrip("/")
    raise SystemExit("magicedit app ended before it served its page")


def move(page: Page, value: float) -> None:
    """Sets the slider of AU12 without letting go of it, so that no edit starts by itself."""
    page.locator("#slider-AU12L input[type=number]").fill(f"{value:.1f}")
    time.sleep(0.3)


def use_page(photo: Path, edits: int) -> dict:
    started = time.perf_counter()
    process, address = start_page()
    served = time.perf_counter() - started
    try:
        with sync_playwright() as playwright:
            chromium = shutil.which("chromium") or shutil.which("google-chrome")
            browser = playwright.chromium.launch(executable_path=chromium, args=OPTIONS)
            page = browser.new_page(viewport={"width": 1440, "height": 900})
            page.goto(address)
            page.set_input_files("#upload input[type=file]", photo)
            page.wait_for_selector("#compare [data-shown] img")
            page.get_by_role("tab", name="Settings").click()
            page.locator("#live input").uncheck()
            page.get_by_role("tab", name="Face").click()
            move(page, -3.0)
            page.evaluate(CLICK, 1)
            first = time.perf_counter() - started
            found = {"page_served_seconds": round(served, 2), "first_edit_seconds": round(first, 2)}
            found["further"] = further(page, photo, edits)
            page.close()
            page = browser.new_page(viewport={"width": 1440, "height": 900})
            found["drag"] = drag(page, address, psutil.Process(process.pid))
            browser.close()
        found["clients"] = clients(address, photo)
    finally:
        process.terminate()
        process.wait(timeout=30)
    return found


def further(page: Page, photo: Path, edits: int) -> dict:
    editor = ExpressionEditor.from_pretrained("mini")
    editor.edit(photo, add={"AU12": -3.0})
    rows = []
    for number in range(edits):
        value = -3.0 + 0.1 * (number + 1)
        started = time.perf_counter()
        editor.edit(photo, add={"AU12": round(value, 1)})
        library = time.perf_counter() - started
        move(page, value)
        shown = page.evaluate(CLICK, number + 2) / 1000
        rows.append({"library_seconds": round(library, 4), "page_seconds": round(shown, 4)})
        print(rows[-1], flush=True)
    added = [row["page_seconds"] - row["library_seconds"] for row in rows]
    return {
        "edits": edits,
        "library_median_seconds": round(statistics.median(row["library_seconds"] for row in rows), 3),
        "page_median_seconds": round(statistics.median(row["page_seconds"] for row in rows), 3),
        "added_median_ms": round(1000 * statistics.median(added)),
        "added_max_ms": round(1000 * max(added)),
        "rows": rows,
    }


def drag(page: Page, address: str, server: psutil.Process) -> dict:
    backend = ExpressionEditor.from_pretrained("mini").backend
    number = next(number for number, handle in enumerate(HANDLES) if "left corner" in handle.label)
    landmark = HANDLES[number].landmarks[0]

    def corner() -> np.ndarray:
        """px of the window"""
        source = page.locator(".me-after").get_attribute("src")
        picture = np.asarray(Image.open(io.BytesIO(page.request.get(source).body())).convert("RGB"))
        frame = page.locator(".me-frame").bounding_box()
        place = backend.detect(picture)[0].landmarks[landmark] * frame["width"] / picture.shape[1]
        return place + np.array([frame["x"], frame["y"]])

    page.goto(address)
    page.click("#example")
    page.wait_for_selector("#compare [data-shown] img")
    page.evaluate(WATCH)
    waited, missed, worked = [], [], 0.0
    for by in map(np.array, DRAGS):
        box = page.locator(f".me-handle[data-number='{number}']").bounding_box()
        start = np.array([box["x"] + box["width"] / 2, box["y"] + box["height"] / 2])
        rest = corner()
        page.mouse.move(*start)
        page.mouse.down()
        before = sum(server.cpu_times()[:2])
        for share in np.linspace(0.3, 1, 10):  # the first is too far for a click
            page.mouse.move(*(start + share * by))
            page.wait_for_function("window.changed > window.moved && window.moved > 0")
            waited.append(page.evaluate("window.changed - window.moved"))
        worked += sum(server.cpu_times()[:2]) - before
        missed.append(float(np.linalg.norm(corner() - rest - by)))
        page.mouse.up()
        page.wait_for_function("!document.querySelector('#undo').disabled")
        time.sleep(REST)
        page.click("#undo")
        page.wait_for_function("document.querySelector('#undo').disabled")
        time.sleep(REST)
    return {
        "movements": len(waited),
        "preview_median_ms": round(statistics.median(waited)),
        "preview_max_ms": round(max(waited)),
        "server_cpu_mean_ms": round(1000 * worked / len(waited)),
        "missed_px": [round(distance, 1) for distance in missed],
    }


def clients(address: str, photo: Path) -> dict:
    values = [round(-2.0 + 0.4 * number, 1) for number in range(10)]

    def work(unit: str) -> int:
        client = Client(address, verbose=False)
        jobs = [client.submit(handle_file(photo), f"{unit}={value}", api_name="/edit") for value in values]
        answers = [job.result(timeout=300)[1]["faces"][0]["requested"] for job in jobs]
        return sum(answer == {unit: value} for answer, value in zip(answers, values, strict=True))

    started = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(len(UNITS)) as pool:
        right = sum(pool.map(work, UNITS))
    seconds = round(time.perf_counter() - started, 1)
    return {"clients": len(UNITS), "edits": len(UNITS) * len(values), "right": right, "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--edits", type=int, default=20)
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        photo = Path(folder) / "astronaut.png"
        Image.fromarray(data.astronaut()).resize((1024, 1024), Image.Resampling.LANCZOS).save(photo)
        load = os.getloadavg()[0]
        found = use_page(photo, args.edits)
    content = circumstances() | {"load_before": round(load, 2)} | found
    args.output.write_text(json.dumps(content, indent=1) + "\n")
    print({key: value for key, value in found.items() if key != "further"})
    print({key: value for key, value in found["further"].items() if key != "rows"})


if __name__ == "__main__":
    main()
