"""Draws docs/images/app.png: the page in headless Chromium, with the public-domain astronaut on it.

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
from skimage import data

OUTPUT = Path(__file__).resolve().parents[1] / "docs" / "images" / "app.png"
OPTIONS = ["--no-sandbox", "--disable-background-networking", "--disable-component-update", "--disable-sync"]


def main() -> None:
    command = [sys.executable, "-m", "magicedit.cli", "app", "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        address = next(
            found[1] for line in process.stderr if (found := re.search(r"the page is at (http\S+)", line))
        )
        with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
            photo = Path(folder) / "astronaut.png"
            Image.fromarray(data.astronaut()).save(photo)
            chromium = shutil.which("chromium") or shutil.which("google-chrome")
            browser = playwright.chromium.launch(executable_path=chromium, args=OPTIONS)
            page = browser.new_page(viewport={"width": 1280, "height": 1460})
            page.goto(address)
            page.set_input_files("#upload input[type=file]", photo)
            page.wait_for_selector("#compare img")
            for name, value in (("AU12L", -4), ("AU25", -2.4), ("AU1L", 2)):
                page.locator(f"#slider-{name} input[type=number]").fill(str(value))
            page.click("#edit")
            page.wait_for_function("document.querySelector('#status').innerText.includes('AU25 -2.4')")
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
