"""docs/ builds into a site that needs no network, and its commands are what the program understands and does.

The commands of README.md and docs/speed.md run in test_readme.py, in processes of their own. Those of the
pages here run in this one, so that the libraries are imported once; all other `sh` blocks are parsed.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from pages import blocks, shell_commands, write_clip
from PIL import Image, ImageOps

REPOSITORY = Path(__file__).resolve().parents[1]
DOCS = REPOSITORY / "docs"
RUN = ("start.md", "expressions.md")  # pages whose commands and scripts run as they stand
# Elsewhere commands are parsed only: training and evaluating take long, and their like run from the README
PARSED = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))

pytest.importorskip("mkdocs", reason="the site needs the extra `docs`")


# --- The site -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The site, built strictly, as `make docs` does."""
    folder = tmp_path_factory.mktemp("docs") / "site"
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder],
        cwd=REPOSITORY,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


class Loaded(HTMLParser):
    """The addresses that a browser fetches to show a page; links that only people follow are none."""

    FETCHING = frozenset({"src", "srcset", "data", "poster"})

    def __init__(self):
        super().__init__()
        self.addresses: list[str] = []
        self.inline: list[str] = []
        self._tag = ""

    def handle_starttag(self, tag, attrs):
        self._tag = tag
        self.addresses += [value or "" for name, value in attrs if name in self.FETCHING]
        self.inline += [value or "" for name, value in attrs if name == "style"]
        if tag == "link":
            self.addresses.append(dict(attrs).get("href") or "")

    def handle_data(self, data):
        if self._tag in ("script", "style"):
            self.inline.append(data)

    def handle_endtag(self, tag):
        self._tag = ""


def loaded_from_elsewhere(page: str) -> list[str]:
    """What a page would fetch from another place."""
    reader = Loaded()
    reader.feed(page)
    found = [address for address in reader.addresses if re.match(r"\s*(\w+:)?//", address)]
    return found + [
        text for text in reader.inline if re.search(r"(url\(|@import|import\(|fetch\().{0,9}//", text)
    ]


def test_the_site_has_every_page(site):
    assert [page for page in PARSED if not (site / page).with_suffix(".html").is_file()] == []
    atlas = (site / "atlas.html").read_text()
    for name in ("AU1", "AU26", "emotions-2"):
        assert f'src="images/atlas/{name}.jpg"' in atlas
        assert (site / "images" / "atlas" / f"{name}.jpg").is_file()
    # a picture from outside docs/ came along
    assert (
        'src="repository/benchmarks/evaluation/table4/guidance.svg"' in (site / "evaluation.html").read_text()
    )
    assert (site / "repository" / "benchmarks" / "evaluation" / "table4" / "guidance.svg").is_file()
    # docstrings arrived in the pages of the rooms
    for room, words in (("editor", "variations in intensity steps"), ("training", "GANimationSettings")):
        assert words in (site / "api" / f"{room}.html").read_text(), room


def test_no_page_loads_anything_from_elsewhere(site):
    pages = {path.relative_to(site).as_posix(): path.read_text() for path in site.glob("**/*.html")}
    assert len(pages) >= len(PARSED)
    assert {name: found for name, text in pages.items() if (found := loaded_from_elsewhere(text))} == {}
    for style in site.glob("**/*.css"):
        assert not re.search(r"url\(\s*[\"']?(\w+:)?//", style.read_text()), style
    # For these the theme's script would fetch a library, and the stars of a repository
    told = ('class="mermaid', 'data-md-component="source"')
    assert [name for name, text in pages.items() if any(part in text for part in told)] == []


@pytest.mark.parametrize(
    "page",
    [
        '<script src="https://unpkg.com/iframe-worker/shim"></script>',
        '<link rel="stylesheet" href="//fonts.googleapis.com/css?family=Roboto">',
        '<img src="http://example.org/badge.svg">',
        "<style>@import url(https://example.org/a.css)</style>",
    ],
)
def test_what_is_loaded_from_elsewhere_is_seen(page):
    """The negative control; a link to follow is none of them."""
    assert len(loaded_from_elsewhere(page + '<a href="https://arxiv.org/abs/2501.02260">paper</a>')) == 1


def test_in_a_browser_from_the_disk(site):
    """Search finds, nothing is fetched, no script fails, and a phone's page does not scroll sideways."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("needs chromium, which is not installed")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 390, "height": 800})
        fetched, failed = [], []
        page.on("request", lambda request: fetched.append(request.url))
        page.on("pageerror", lambda error: failed.append(str(error)))
        for name in ("atlas", "gallery", "api/editor", "api/pipelines", "index"):
            page.goto((site / f"{name}.html").as_uri())
            assert page.evaluate("document.documentElement.scrollWidth") == 390, name
        page.click("label[for=__search] >> visible=true")
        page.keyboard.type("wrinkler")
        page.wait_for_selector("[data-md-component=search-result] a[href*='atlas.html']", timeout=20_000)
        browser.close()
    assert failed == []
    assert [url for url in fetched if re.match("https?:", url)] == []


def test_a_link_to_nothing_ends_the_build(tmp_path):
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "index.md").write_text("# Here\n\n[gone](../benchmarks/gone.json)\n")
    (tmp_path / "mkdocs.yml").write_text(f"site_name: x\nhooks: [{REPOSITORY / 'dev' / 'docs_hook.py'}]\n")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert built.returncode != 0
    assert "gone.json, which is not in the repository" in built.stdout + built.stderr


def test_the_command_reference_is_current():
    checked = subprocess.run(
        [sys.executable, REPOSITORY / "dev" / "cli_reference.py", "--check"], check=False
    )
    assert checked.returncode == 0, "docs/cli.md is old: run `python dev/cli_reference.py`"


# --- The commands -------------------------------------------------------------------------------------------


def text_of(page: str) -> str:
    return (DOCS / page).read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PARSED)
def test_commands_are_understood(page):
    """Every command of an `sh` block has options that exist and values that fit."""
    from magicedit.cli import build_parser
    from magicedit.train.config import parse_config

    for command in shell_commands(text_of(page)):
        words = shlex.split(command)
        if words[:2] == ["accelerate", "launch"]:
            script = words.index("train/train.py")
            assert all(Path(REPOSITORY, word).is_file() for word in words[3:script:2]), command
            parse_config(words[script + 1 :])
        elif words[0] == "magicedit":
            build_parser().parse_args(words[1:])
        else:
            assert shutil.which(words[0]) or words[0] in ("pip", "torchrun"), command


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """photo.jpg, A.jpg and B.jpg of one person, IN.mp4, and what a project has around them."""
    folder = tmp_path_factory.mktemp("docs-commands")
    astronaut = Image.fromarray(pytest.importorskip("skimage.data").astronaut())
    astronaut.save(folder / "photo.jpg", quality=95)
    astronaut.crop((0, 0, 480, 480)).save(folder / "A.jpg", quality=95)
    ImageOps.mirror(astronaut).save(folder / "B.jpg", quality=95)
    write_clip(folder / "IN.mp4", astronaut)
    return folder


def test_commands_and_scripts_of_the_pages_run(folder, monkeypatch, capfd):
    from magicedit.cli import main

    monkeypatch.chdir(folder)
    elsewhere = shell_commands((REPOSITORY / "README.md").read_text())  # these run in test_readme.py
    ran = []
    for page in RUN:
        for command in shell_commands(text_of(page)):
            if command in elsewhere or command in ran:
                continue
            program, *words = shlex.split(command)
            assert program == "magicedit", command
            assert main(words) == 0, f"{command}\n{capfd.readouterr().err[-3000:]}"
            ran.append(command)
        for script in blocks("python", text_of(page)):
            exec(compile(script, page, "exec"), {"__name__": "__main__"})
    assert len(ran) > 8
    made = ("C.png", "strip.png", "between.gif", "neutral.png", "exact.png", "faint.yaml", "surprised.png")
    assert [name for name in made if not (folder / name).is_file()] == []
    assert "kind: intensities" in (folder / "smile.yaml").read_text()
    for name in ("OUT.mp4", "alive.mp4"):
        assert (folder / name).stat().st_size > 5_000
