"""How long the web page takes: from its command to a first edit, for each further edit, and for four clients.

    python benchmarks/app.py [--edits 20] [-o benchmarks/app.json]

The page is served by `magicedit app` in a process of its own and used in headless Chromium. The photograph is
scikit-image's astronaut at 1024 px.

start: from starting the command until the browser shows the first measured edit, the upload included.
further: one action unit by another amount each time; from the click on "Edit" until the browser has loaded
the result, and the same edit by the library in this process, in turn. The difference is what the page adds.
clients: four clients with ten edits each at once, through the API; each must get its own, in order.
"""

import argparse
import concurrent.futures
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

from gradio_client import Client, handle_file
from machine import circumstances
from PIL import Image
from playwright.sync_api import Page, sync_playwright
from skimage import data

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in `magicedit`, before torch is loaded
from magicedit import ExpressionEditor

UNITS = ("AU12", "AU4", "AU1", "AU26")  # of the four clients
OPTIONS = ["--no-sandbox", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
# Milliseconds from the click until the state tells of an edit and both pictures are there
CLICK = """async number => {
    const start = performance.now();
    document.querySelector('#edit').click();
    const images = () => [...document.querySelectorAll('#compare img')];
    while (!document.querySelector('#status').innerText.includes(`Edit ${number} of`)
           || images().length < 2 || !images().every(image => image.complete))
        await new Promise(resolve => setTimeout(resolve, 2));
    return performance.now() - start;
}"""


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
            page = browser.new_page(viewport={"width": 1280, "height": 1100})
            page.goto(address)
            page.set_input_files("#upload input[type=file]", photo)
            page.wait_for_selector("#compare img")
            page.locator("#live input").uncheck()
            move(page, -3.0)
            page.evaluate(CLICK, 1)
            first = time.perf_counter() - started
            found = {"page_served_seconds": round(served, 2), "first_edit_seconds": round(first, 2)}
            found["further"] = further(page, photo, edits)
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
