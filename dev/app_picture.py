"""Draws docs/images/app.png: the page in headless Chromium, with its example and two drags in the picture.

python dev/app_picture.py
"""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

OUTPUT = Path(__file__).resolve().parents[1] / "docs" / "images" / "app.png"
OPTIONS = ["--no-sandbox", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
DRAGS = (("the subject's left corner of the mouth", (8, -26)), ("lower lip", (0, 14)))  # px of the window


def main() -> None:
    command = [sys.executable, "-m", "magicedit.cli", "app", "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        address = next(
            found[1] for line in process.stderr if (found := re.search(r"the page is at (http\S+)", line))
        )
        with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
            chromium = shutil.which("chromium") or shutil.which("google-chrome")
            browser = playwright.chromium.launch(executable_path=chromium, args=OPTIONS)
            page = browser.new_page(viewport={"width": 1440, "height": 900})
            page.goto(address)
            page.click("#example")
            page.wait_for_selector("#compare [data-shown] img")
            for number, (label, by) in enumerate(DRAGS, 1):
                box = page.get_by_title(label, exact=True).bounding_box()
                x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
                page.mouse.move(x, y)
                page.mouse.down()
                page.mouse.move(x + by[0], y + by[1], steps=4)
                page.mouse.up()
                page.wait_for_function(
                    "n => document.querySelector('#status').innerText.includes(`Edit ${n} of`)", arg=number
                )
                page.wait_for_timeout(800)
            page.mouse.move(5, 5)
            page.evaluate("document.activeElement.blur(); window.scrollTo(0, 0)")
            page.wait_for_timeout(800)
            shot = Path(folder) / "page.png"
            page.screenshot(path=shot)
            browser.close()
            # 256 colours: a third of the size, and nobody sees it in a page of text
            picture = Image.open(shot).convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE)
            picture.save(OUTPUT, optimize=True)
    finally:
        process.terminate()
        process.wait(timeout=30)
    print(OUTPUT)


if __name__ == "__main__":
    main()
