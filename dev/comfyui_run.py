"""Runs our nodes in a given checkout of ComfyUI, over its HTTP interface; fetches nothing.

    COMFYUI_PATH=/path/to/ComfyUI python dev/comfyui_run.py

The Python that runs this also runs ComfyUI, so it needs ComfyUI's requirements and this package. ComfyUI's
files go to a temporary folder; the checkout stays as it is. Checked are, and the figures printed as JSON:
the nodes load, the example workflows run with progress, nothing runs again without a change,
a saved picture is marked as edited, and a sweep stops within CANCELLED seconds of Cancel. With
--browser also: ComfyUI's page, in Chromium, opens a workflow of earlier nodes with all its values.
"""

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp

from magicedit.provenance import EDITED

FOLDER = Path(__file__).resolve().parent.parent / "comfyui"
WORKFLOWS = sorted((FOLDER / "example_workflows").glob("*.json"))
STARTED, RUN, CANCELLED = 300, 900, 2  # seconds, the most
# What ComfyUI's page would queue of a workflow
OPENED = """async workflow => {
    await window.app.loadGraphData(workflow);
    return (await window.app.graphToPrompt()).output;
}"""


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--comfyui", type=Path, default=os.environ.get("COMFYUI_PATH"), metavar="FOLDER")
    parser.add_argument("--browser", action="store_true", help="also check the page (needs playwright)")
    args = parser.parse_args(argv)
    if args.comfyui is None or not (args.comfyui / "main.py").is_file():
        parser.error("name a checkout of ComfyUI by --comfyui or COMFYUI_PATH")
    with tempfile.TemporaryDirectory() as folder, served(args.comfyui, Path(folder)) as address:
        figures = asyncio.run(checked(address, Path(folder)))
        if args.browser:
            figures["older_workflow_values"] = older_workflow(address)
        print(json.dumps(figures, indent=1))


@contextlib.contextmanager
def served(checkout: Path, base: Path) -> Iterator[str]:
    """Yields the address of a running ComfyUI whose files, and our nodes, are in the folder `base`."""
    (base / "custom_nodes").mkdir()
    (base / "custom_nodes" / "magicedit").symlink_to(FOLDER)
    shutil.copytree(checkout / "input", base / "input")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = base / "log.txt"
    command = [
        sys.executable, "main.py", "--cpu", "--listen", "127.0.0.1", "--port", str(port), "--base-directory",
        str(base), "--database-url", "sqlite:///:memory:", "--disable-api-nodes",
    ]  # fmt: skip
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=checkout, stdout=output, stderr=subprocess.STDOUT)
    try:
        ends = time.monotonic() + STARTED
        while b"To see the GUI go to" not in log.read_bytes():
            if process.poll() is not None or time.monotonic() > ends:
                raise SystemExit(f"ComfyUI did not start:\n{log.read_text(errors='replace')[-3000:]}")
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    except BaseException:
        print(log.read_text(errors="replace")[-3000:], file=sys.stderr)
        raise
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


async def checked(address: str, base: Path) -> dict[str, Any]:
    """Returns the figures of all checks; AssertionError where one fails."""
    figures: dict[str, Any] = {}
    async with aiohttp.ClientSession(address) as session:
        async with session.get("/system_stats") as answer:
            figures["comfyui"] = (await answer.json())["system"]["comfyui_version"]
        async with session.get("/object_info") as answer:
            definitions = await answer.json()
        figures["nodes"] = sum(name.startswith("MagicEdit") for name in definitions)
        titles = [definition["display_name"] for name, definition in definitions.items() if "Magic" in name]
        assert any("smile" in title[:30] for title in titles), titles  # where ComfyUI's search looks

        # 1. The workflows, and again
        for path in WORKFLOWS:
            prompt = prompt_of(json.loads(path.read_text()), definitions)
            started = time.perf_counter()
            events = [event async for event in run(session, prompt)]
            kinds = [kind for kind, _ in events]
            ours = {node for node, entry in prompt.items() if entry["class_type"].startswith("MagicEdit")}
            executed = {data["node"] for kind, data in events if kind == "executed"}
            assert kinds[-1] == "execution_success", events[-1]
            progress = [data for kind, data in events if kind == "progress"]
            assert progress
            figures[path.stem] = {
                "seconds": round(time.perf_counter() - started, 1),
                "nodes_with_pictures_or_text": len(executed & ours),
                "progress_events": len(progress),
            }
            again = [event async for event in run(session, prompt)]
            cached = next(data["nodes"] for kind, data in again if kind == "execution_cached")
            assert executed & ours <= {*cached}, executed & ours - {*cached}

        # 2. What is saved
        (saved,) = (base / "output").glob("magicedit_*.png")
        assert EDITED.encode() in saved.read_bytes()
        assert b"MagicEditEdit" in saved.read_bytes()  # the prompt, from which ComfyUI opens the workflow

        # 3. Cancel
        sweep = {
            "1": {"class_type": "MagicEditLoadEditor", "inputs": {"model": "mini", "device": "cpu"}},
            "2": {"class_type": "MagicEditExample", "inputs": {"portrait": "calm"}},
            "3": {
                "class_type": "MagicEditSweep",
                "inputs": {
                    "editor": ["1", 0], "image": ["2", 0], "au": "AU4", "start": -3, "stop": 5, "steps": 100,
                    "face": "largest", "quality": "model's own", "seed": 0,
                },
            },
        }  # fmt: skip
        cancelled = None
        async for kind, data in run(session, sweep):
            if cancelled is None and kind == "progress" and data["value"] >= 1:
                cancelled = time.perf_counter()
                async with session.post("/interrupt") as answer:
                    answer.raise_for_status()
        assert kind == "execution_interrupted", kind
        figures["cancel_seconds"] = round(time.perf_counter() - cancelled, 2)
        assert figures["cancel_seconds"] <= CANCELLED
    return figures


def older_workflow(address: str) -> int:
    """Returns how many values of an older workflow ComfyUI's page reads as they were meant.

    Earlier nodes counted faces by a number from 0, and each seed was followed by how it goes on.
    """
    from playwright.sync_api import sync_playwright

    workflow = json.loads((FOLDER / "example_workflows" / "edit_and_copy.json").read_text())
    (edit,) = (node for node in workflow["nodes"] if node["type"] == "MagicEditEdit")
    (sweep,) = (node for node in workflow["nodes"] if node["type"] == "MagicEditSweep")
    (now,) = (node for node in workflow["nodes"] if node["type"] == "MagicEditMeasure")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(address)
        page.wait_for_function(
            "window.app?.extensions?.some(({ name }) => name === 'magicedit.older_workflows')"
        )
        sent = page.evaluate(OPENED, workflow)
        seed = edit["widgets_values"].index("model's own") + 1
        edit["widgets_values"].insert(seed + 1, "randomize")
        sweep["widgets_values"][4] = now["widgets_values"][0] = 1
        sweep["widgets_values"].append("fixed")
        older = page.evaluate(OPENED, workflow)
        browser.close()
    for node in (sweep, now):
        sent[str(node["id"])]["inputs"]["face"] = "#2"
    assert older == sent, older
    return sum(len(node["inputs"]) for node in older.values())


async def run(session: aiohttp.ClientSession, prompt: dict[str, Any]) -> AsyncIterator[tuple[str, Any]]:
    """Queues a prompt and yields (event, data) until it has ended."""
    client = uuid.uuid4().hex
    async with (
        asyncio.timeout(RUN),
        session.ws_connect("/ws", params={"clientId": client}, max_msg_size=0) as socket,
    ):
        async with session.post("/prompt", json={"prompt": prompt, "client_id": client}) as answer:
            content = await answer.json()
            assert answer.status == 200, content
            assert not content["node_errors"], content
        async for message in socket:
            if message.type is aiohttp.WSMsgType.BINARY:  # a picture
                continue
            event = json.loads(message.data)
            yield event["type"], event["data"]
            if event["type"] in ("execution_success", "execution_error", "execution_interrupted"):
                return


def prompt_of(workflow: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """Returns a saved workflow as ComfyUI's page sends it: the values by their inputs' names.

    Values stand in the order of the inputs that have a widget; after a seed there is one more, how it goes
    on, unless the node says that there is none.
    """
    origins = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    prompt = {}
    for node in workflow["nodes"]:
        definition = definitions[node["type"]]
        values = iter(node["widgets_values"])
        linked = {entry["name"]: entry["link"] for entry in node["inputs"] if entry["link"] is not None}
        inputs = {}
        for group in ("required", "optional"):
            for name in definition["input_order"].get(group, ()):
                kind, *options = definition["input"][group][name]
                options = options[0] if options else {}
                if isinstance(kind, list) or kind in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"):
                    inputs[name] = next(values)
                    if options.get("control_after_generate", kind == "INT" and name == "seed"):
                        next(values)
                if name in linked:
                    inputs[name] = origins[linked[name]]
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return prompt


if __name__ == "__main__":
    main()
