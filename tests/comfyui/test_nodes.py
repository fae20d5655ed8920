"""The nodes with the real `mini`, run as ComfyUI runs them: in inference mode, on float tensors."""

import inspect
import json
import tomllib
from collections.abc import Callable

import numpy as np
import pytest
import torch
from comfy_loading import FOLDER
from skimage import data

from magicedit import ExpressionEditor
from magicedit.action_units import EMOTIONS, GEOMETRIC, NAMES
from magicedit.errors import ActionUnitError, ImageError, NoFaceError

WORKFLOWS = sorted((FOLDER / "example_workflows").glob("*.json"))
# ComfyUI's own nodes in the workflows: inputs and outputs by name and type
CORE = {
    "LoadImage": ({}, [("IMAGE", "IMAGE"), ("MASK", "MASK")]),
    "PreviewImage": ({"images": "IMAGE"}, []),
    "PreviewAny": ({"source": "*"}, [("STRING", "STRING")]),
}


@pytest.fixture(scope="module")
def face() -> torch.Tensor:
    """(1, height, width, 3), with values between those of 8 bits, as other nodes leave them."""
    pixels = data.astronaut()[:300, 80:380].astype(np.float32) / 255
    noise = np.random.default_rng(0).uniform(-0.4, 0.4, pixels.shape).astype(np.float32) / 255
    return torch.from_numpy(np.clip(pixels + noise, 0, 1))[None]


@pytest.fixture(scope="module")
def run(nodes) -> Callable:
    """`run("MagicEditEdit", editor=..., ...)`: a node's outputs; what is not named has its default."""

    def call(node_id: str, **values):
        schema = nodes[node_id].define_schema()
        defaults = {i.id: i.default for i in schema.inputs if hasattr(i, "default")}
        assert values.keys() <= {i.id for i in schema.inputs}
        with torch.inference_mode():  # as ComfyUI does
            outputs = nodes[node_id].execute(**(defaults | values)).args
        assert len(outputs) == len(schema.outputs)
        return outputs

    return call


@pytest.fixture(scope="module")
def editor(run):
    (editor,) = run("MagicEditLoadEditor", model="mini")
    return editor


# --- What is defined ---


def test_execute_takes_what_the_schema_says(nodes):
    assert len(nodes) == 7
    for node in nodes.values():
        inputs = [i.id for i in node.define_schema().inputs]
        parameters = inspect.signature(node.execute).parameters
        named = [n for n, p in parameters.items() if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
        free = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
        assert len(set(inputs)) == len(inputs)
        assert set(named) | ({*NAMES, *GEOMETRIC} if free else set()) == set(inputs)


def test_defaults_fit_their_ranges(nodes):
    for node in nodes.values():
        for entry in node.define_schema().inputs:
            if getattr(entry, "min", None) is not None:
                assert entry.min <= entry.default <= entry.max
            if getattr(entry, "options", None):
                assert entry.default in entry.options


def test_sliders_are_the_models_units(nodes, editor):
    inputs = nodes["MagicEditEdit"].define_schema().inputs
    sliders = {i.id: (i.min, i.max) for i in inputs if i.id in editor.action_units}
    assert tuple(sliders) == editor.action_units == (*NAMES, *GEOMETRIC)
    assert [i.id for i in inputs][2:14] == [*NAMES]  # where saved workflows have them
    assert sliders["gaze_yaw"] == (-30, 30)
    assert sliders["AU43"] == (-5, 5)


def test_what_the_registry_reads():
    project = tomllib.loads((FOLDER / "pyproject.toml").read_text())
    about = project["project"]
    assert about["name"] == "magicedit"
    assert [part.isdecimal() for part in about["version"].split(".")] == [True] * 3
    assert about["license"] == {"text": "Apache-2.0"}
    assert "Repository" in about["urls"]
    assert {"PublisherId", "DisplayName"} <= project["tool"]["comfy"].keys()


# --- What they do ---


def test_the_editors_weights_tell_when_they_change(editor):
    """Those that are loaded in inference mode do not, and remembered faces would outlive an adapter."""
    assert not any(weight.is_inference() for weight in editor.pipeline.unet.parameters())


def test_nothing_asked_returns_the_image_as_it_came(run, editor, face):
    image, report = run("MagicEditEdit", editor=editor, image=face)
    assert torch.equal(image, face)
    assert report == "image 0, face 0: nothing asked"


def test_an_edit_is_the_editors(run, editor, face):
    image, report = run("MagicEditEdit", editor=editor, image=face, AU12=-3.0, add="AU2L=+2", seed=5)
    photo = (face[0].numpy() * 255).round().astype(np.uint8)
    expected = ExpressionEditor.from_pretrained("mini").edit(photo, {"AU12": -3, "AU2L": 2}, seed=5)
    assert image.shape == face.shape
    assert image.dtype == torch.float32
    assert np.array_equal((image[0].numpy() * 255).round().astype(np.uint8), np.asarray(expected.image))
    changed = (image != face).any(-1)[0]
    assert changed.any()
    assert not changed[:20].any()  # far from the face: not even rounded to 8 bits
    assert "AU12 -3.0 (measured" in report


def test_targets_emotions_and_neutral(run, editor, face):
    _, report = run("MagicEditEdit", editor=editor, image=face, set_to="AU12=1")
    assert "AU12 -" in report
    _, report = run("MagicEditEdit", editor=editor, image=face, emotion="surprise", emotion_strength=0.5)
    assert f"AU26 {EMOTIONS['surprise']['AU26'] / 2:+.1f}" in report
    _, report = run("MagicEditEdit", editor=editor, image=face, neutral=True, AU4=2.0)
    assert "AU4 +" in report
    assert "AU12" in report
    with pytest.raises(ActionUnitError, match="AU13"):
        run("MagicEditEdit", editor=editor, image=face, add="AU13=1")


def test_a_batch_is_edited_picture_by_picture(run, editor, face):
    batch = torch.cat([face, face.flip(2)])
    image, report = run("MagicEditEdit", editor=editor, image=batch, AU12=-3.0)
    alone, _ = run("MagicEditEdit", editor=editor, image=batch[1:], AU12=-3.0)
    assert torch.equal(image[1:], alone)
    assert report.count("face 0") == 2


def test_a_chosen_face_is_called_by_its_number(run, editor, face):
    pair = torch.cat([face, face.flip(2) / 2], dim=2)
    _, report = run("MagicEditEdit", editor=editor, image=pair, AU12=-3.0, face="1")
    assert report.startswith("image 0, face 1: AU12 -3.0")


def test_pictures_without_a_face(run, editor, face):
    batch = torch.cat([face, torch.full_like(face, 0.5)])
    with pytest.raises(NoFaceError):
        run("MagicEditEdit", editor=editor, image=batch, AU12=-3.0)
    image, report = run("MagicEditEdit", editor=editor, image=batch, AU12=-3.0, keep_faceless=True)
    assert torch.equal(image[1], batch[1])
    assert not torch.equal(image[0], batch[0])
    assert "image 1: left as it is" in report
    for wrong in (face[0], face[..., :1], face[:0]):
        with pytest.raises(ImageError, match="batch, height, width, 3"):
            run("MagicEditEdit", editor=editor, image=wrong)


def test_alpha_stays_as_it_came(run, editor, face):
    """Nodes that join a mask to a picture give a fourth channel."""
    alpha = torch.linspace(0, 1, face.shape[2]).expand(*face.shape[:3])[..., None]
    (plain, _), (image, _) = (
        run("MagicEditEdit", editor=editor, image=given, AU12=-2.0)
        for given in (face, torch.cat([face, alpha], -1))
    )
    torch.testing.assert_close(image[..., :3], plain)
    assert torch.equal(image[..., 3:], alpha)


def test_measuring(run, editor, face):
    text, content, expression = run("MagicEditMeasure", editor=editor, image=torch.cat([face, face]))
    assert text.startswith("image 0, face 0: AU1 ")
    measured = json.loads(content)
    assert [len(faces) for faces in measured] == [1, 1]
    assert measured[0][0]["action_units"]["AU12"] > 3  # she smiles
    assert expression.values["AU12"] == pytest.approx(measured[0][0]["action_units"]["AU12"], abs=1e-3)
    with pytest.raises(NoFaceError, match="face 3 does not exist"):
        run("MagicEditMeasure", editor=editor, image=face, face=3)


def test_a_sweep_is_a_batch(run, editor, face):
    images, report = run(
        "MagicEditSweep", editor=editor, image=face, au="AU12", start=-4.0, stop=0.0, steps=3
    )
    assert images.shape == (3, *face.shape[1:])
    assert torch.equal(images[2:], face)
    assert not torch.equal(images[:1], face)
    assert report.splitlines()[0].startswith("image 0, face 0: AU12 -4.0")


def test_expressions_go_from_picture_to_picture(run, editor, face):
    expression, text = run("MagicEditExpressionFromImage", editor=editor, image=face)
    assert "AU12=" in text
    (again,) = run("MagicEditExpressionFromText", units=text)
    assert again.values == pytest.approx(expression.values, abs=0.01)
    _, report = run(
        "MagicEditApplyExpression", editor=editor, image=face.flip(2), expression=expression, mirror=True
    )
    assert "AU12" in report
    (calm,) = run("MagicEditExpressionFromText", units="AU12=-4", arrive=False)
    half, report = run("MagicEditApplyExpression", editor=editor, image=face, expression=calm, strength=0.5)
    assert "AU12 -2.0" in report
    assert torch.equal(half, run("MagicEditEdit", editor=editor, image=face, AU12=-2.0)[0])


# --- Workflows ---


def slots(nodes, type: str) -> tuple[dict[str, str], list[tuple[str, str]], list]:
    """Of a node type: sockets by name, outputs, and its inputs with a value of their own, in order."""
    if type in CORE:
        return (*CORE[type], [])
    schema = nodes[type].define_schema()
    sockets = {i.id: i.io_type for i in schema.inputs if not hasattr(i, "default")}
    return (
        sockets,
        [(o.display_name, o.io_type) for o in schema.outputs],
        [i for i in schema.inputs if hasattr(i, "default")],
    )


def problems(workflow: dict, nodes) -> list[str]:
    """What in a workflow is not in the definitions of its nodes."""
    found, by_id = [], {node["id"]: node for node in workflow["nodes"]}
    for node in workflow["nodes"]:
        if node["type"] not in CORE and node["type"] not in nodes:
            found.append(f"no node {node['type']}")
            continue
        sockets, outputs, widgets = slots(nodes, node["type"])
        if {i["name"]: i["type"] for i in node["inputs"]} != sockets:
            found.append(f"{node['type']} has other inputs")
        if [(o["name"], o["type"]) for o in node["outputs"]] != outputs:
            found.append(f"{node['type']} has other outputs")
        if node["type"] not in CORE and len(node["widgets_values"]) != len(widgets):
            found.append(f"{node['type']} has {len(widgets)} values")
        for widget, value in zip(widgets, node["widgets_values"], strict=False):
            low, high = getattr(widget, "min", None), getattr(widget, "max", None)
            if low is not None and not (not isinstance(value, str) and low <= value <= high):
                found.append(f"{node['type']}: {widget.id} = {value}")
            if getattr(widget, "options", None) and value not in widget.options:
                found.append(f"{node['type']}: {widget.id} = {value}")
    for number, origin, output, target, entry, type in workflow["links"]:
        source, goal = by_id[origin]["outputs"][output], by_id[target]["inputs"][entry]
        if number not in source["links"] or goal["link"] != number:
            found.append(f"link {number} is on one side only")
        if source["type"] != type or goal["type"] not in (type, "*"):
            found.append(f"link {number} joins {source['type']} and {goal['type']}")
    numbers = [link[0] for link in workflow["links"]]
    listed = [i["link"] for node in workflow["nodes"] for i in node["inputs"]]
    if sorted(numbers) != sorted(filter(None, listed)):
        found.append("links that are not in the list, or inputs without one")
    return found


def test_workflows_are_there():
    assert WORKFLOWS


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_all_of_a_workflow_is_in_the_definitions(nodes, path):
    workflow = json.loads(path.read_text())
    assert problems(workflow, nodes) == []
    # The negative controls
    edit = next(node for node in workflow["nodes"] if node["type"] == "MagicEditEdit")
    edit["inputs"][0]["name"], edit["widgets_values"][0] = "model", 99
    workflow["links"][0][5] = "IMAGE"
    assert len(problems(workflow, nodes)) == 3


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_runs(nodes, run, face, path):
    """From node to node along its links, ComfyUI's own ones replaced by what they hand on."""
    workflow = json.loads(path.read_text())
    by_id, done, shown = {node["id"]: node for node in workflow["nodes"]}, {}, []
    sources = {link[0]: (link[1], link[2]) for link in workflow["links"]}

    def outputs_of(number: int) -> tuple:
        if number not in done:
            node = by_id[number]
            given = {
                i["name"]: outputs_of(sources[i["link"]][0])[sources[i["link"]][1]]
                for i in node["inputs"]
                if i["link"] is not None  # an optional one
            }
            if node["type"] == "LoadImage":
                done[number] = (face, None)
            elif node["type"] in CORE:
                shown.extend(given.values())
                done[number] = ()
            else:
                widgets = slots(nodes, node["type"])[2]
                values = zip([w.id for w in widgets], node["widgets_values"], strict=True)
                done[number] = run(node["type"], **given, **dict(values))
        return done[number]

    for number in by_id:
        outputs_of(number)
    pictures = [value for value in shown if isinstance(value, torch.Tensor)]
    assert sorted(len(picture) for picture in pictures) == [1, 1, 5]
    assert all(0 <= picture.min() and picture.max() <= 1 for picture in pictures)
    assert any("AU12 +3.0" in value for value in shown if isinstance(value, str))
