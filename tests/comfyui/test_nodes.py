"""The nodes with the real `mini`, run as ComfyUI runs them: in inference mode, on float tensors."""

import inspect
import json
import tomllib
import types
from collections.abc import Callable

import comfy_stand_in
import numpy as np
import pytest
import torch
from comfy_loading import FOLDER
from PIL import Image
from skimage import data

from magicedit import ExpressionEditor
from magicedit.action_units import EMOTIONS, GEOMETRIC, NAMES
from magicedit.errors import ActionUnitError, ImageError, NoFaceError

WORKFLOWS = sorted((FOLDER / "example_workflows").glob("*.json"))
# ComfyUI's own nodes in the workflows: inputs and outputs by name and type
CORE = {
    "LoadImage": ({}, [("IMAGE", "IMAGE"), ("MASK", "MASK")]),
    "MaskToImage": ({"mask": "MASK"}, [("IMAGE", "IMAGE")]),
    "CreateVideo": ({"images": "IMAGE", "audio": "AUDIO"}, [("VIDEO", "VIDEO")]),
    "SaveVideo": ({"video": "VIDEO"}, []),
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
    assert len(nodes) == 10
    for node in nodes.values():
        inputs = [i.id for i in node.define_schema().inputs]
        parameters = inspect.signature(node.execute).parameters
        named = [n for n, p in parameters.items() if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
        free = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
        assert len(set(inputs)) == len(inputs)
        assert set(named) <= set(inputs)
        assert free or set(named) == set(inputs)


def test_a_seed_has_no_widget_that_changes_it(nodes):
    """ComfyUI's page adds one to any input called seed, unless told; then each run is another."""
    seeds = [i for node in nodes.values() for i in node.define_schema().inputs if i.id == "seed"]
    assert len(seeds) == 4
    assert all(seed.control_after_generate is False for seed in seeds)


def test_plain_words_find_the_nodes(nodes):
    """ComfyUI's search reads about the first 30 characters of titles, and aliases where it knows them."""
    titles = {name: node.define_schema().display_name[:30].lower() for name, node in nodes.items()}
    assert {"MagicEditEdit", "MagicEditFrames"} <= {name for name in titles if "smile" in titles[name]}
    aliases = {name: node.define_schema().search_aliases for name, node in nodes.items()}
    assert [name for name, words in aliases.items() if not words] == []
    assert "wink" in aliases["MagicEditEdit"]


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
    assert project["tool"]["comfy"].keys() >= {"PublisherId", "DisplayName"}
    assert project["tool"]["comfy"]["PublisherId"]
    required = (FOLDER / "requirements.txt").read_text().split()
    assert about["dependencies"] == required == ["magicedit>=0.1.0"]


# --- What they do ---


def test_the_editors_weights_tell_when_they_change(editor):
    """Those that are loaded in inference mode do not, and remembered faces would outlive an adapter."""
    assert not any(weight.is_inference() for weight in editor.pipeline.unet.parameters())


def test_nothing_asked_returns_the_image_as_it_came(run, editor, face):
    image, report, mask, marks = run("MagicEditEdit", editor=editor, image=face)
    assert torch.equal(image, face)
    assert report == "image 0, face 1: nothing asked"
    assert not mask.any()
    assert marks == [None]


def test_an_edit_is_the_editors(run, editor, face):
    image, report, *_ = run("MagicEditEdit", editor=editor, image=face, AU12=-3.0, add="AU2L=+2", seed=5)
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
    _, report, *_ = run("MagicEditEdit", editor=editor, image=face, set_to="AU12=1")
    assert "AU12 -" in report
    _, report, *_ = run("MagicEditEdit", editor=editor, image=face, emotion="surprise", emotion_strength=0.5)
    assert f"AU26 {EMOTIONS['surprise']['AU26'] / 2:+.1f}" in report
    _, report, *_ = run("MagicEditEdit", editor=editor, image=face, neutral=True, AU4=2.0)
    assert "AU4 +" in report
    assert "AU12" in report
    with pytest.raises(ActionUnitError, match="AU13"):
        run("MagicEditEdit", editor=editor, image=face, add="AU13=1")


def test_a_batch_is_edited_picture_by_picture(run, editor, face):
    batch = torch.cat([face, face.flip(2)])
    image, report, *_ = run("MagicEditEdit", editor=editor, image=batch, AU12=-3.0)
    alone, *_ = run("MagicEditEdit", editor=editor, image=batch[1:], AU12=-3.0)
    assert torch.equal(image[1:], alone)
    assert report.count("face 1") == 2


def test_a_chosen_face_is_called_by_its_number(run, editor, face):
    pair = torch.cat([face, face.flip(2) / 2], dim=2)
    _, report, *_ = run("MagicEditEdit", editor=editor, image=pair, AU12=-3.0, face="#2")
    assert report.startswith("image 0, face 2: AU12 -3.0")


def test_pictures_without_a_face(run, editor, face):
    batch = torch.cat([face, torch.full_like(face, 0.5)])
    with pytest.raises(NoFaceError):
        run("MagicEditEdit", editor=editor, image=batch, AU12=-3.0)
    image, report, *_ = run("MagicEditEdit", editor=editor, image=batch, AU12=-3.0, keep_faceless=True)
    assert torch.equal(image[1], batch[1])
    assert not torch.equal(image[0], batch[0])
    assert "image 1: left as it is" in report
    for wrong in (face[0], face[..., :1], face[:0]):
        with pytest.raises(ImageError, match="batch, height, width, 3"):
            run("MagicEditEdit", editor=editor, image=wrong)


def test_alpha_stays_as_it_came(run, editor, face):
    """Nodes that join a mask to a picture give a fourth channel."""
    alpha = torch.linspace(0, 1, face.shape[2]).expand(*face.shape[:3])[..., None]
    (plain, *_), (image, *_) = (
        run("MagicEditEdit", editor=editor, image=given, AU12=-2.0)
        for given in (face, torch.cat([face, alpha], -1))
    )
    torch.testing.assert_close(image[..., :3], plain)
    assert torch.equal(image[..., 3:], alpha)


def test_measuring(run, editor, face):
    text, content, expression = run("MagicEditMeasure", editor=editor, image=torch.cat([face, face]))
    assert text.startswith("image 0, face 1: AU1 ")
    measured = json.loads(content)
    assert [len(faces) for faces in measured] == [1, 1]
    assert measured[0][0]["action_units"]["AU12"] > 3  # she smiles
    assert expression.values["AU12"] == pytest.approx(measured[0][0]["action_units"]["AU12"], abs=1e-3)
    with pytest.raises(NoFaceError, match="face 4 does not exist"):
        run("MagicEditMeasure", editor=editor, image=face, face="#4")
    with pytest.raises(NoFaceError, match="a number such as #1, the largest face, got '-1'"):
        run("MagicEditMeasure", editor=editor, image=face, face="-1")


def test_a_sweep_is_a_batch(run, editor, face):
    images, report, masks, _ = run(
        "MagicEditSweep", editor=editor, image=face, au="AU12", start=-4.0, stop=0.0, steps=3
    )
    assert images.shape == (3, *face.shape[1:])
    assert torch.equal(images[2:], face)
    assert not torch.equal(images[:1], face)
    assert masks.shape == images.shape[:3]
    assert masks[0].any()
    assert not masks[2].any()
    assert report.splitlines()[0].startswith("image 0, face 1: AU12 -4.0")


def test_a_mask_covers_what_was_changed_without_holes(run, editor, face):
    image, _, mask, _ = run("MagicEditEdit", editor=editor, image=face, AU12=-3.0)
    changed = (image != face).any(-1)
    assert mask.dtype == torch.float32
    assert mask.shape == changed.shape
    assert set(mask.unique().tolist()) == {0, 1}
    assert mask[changed].all()
    assert changed.sum() < mask.sum() < 1.2 * changed.sum()


def test_progress_is_told(run, editor, face, progress):
    run("MagicEditSweep", editor=editor, image=face, start=-4.0, stop=0.0, steps=3)
    assert {total for _, total in progress} == {3}
    assert list(dict.fromkeys(done for done, _ in progress)) == [0, 1, 2, 3]


def test_cancel_stops_a_sweep(run, editor, face, progress, monkeypatch):
    monkeypatch.setattr(comfy_stand_in.ProgressBar, "cancel_at", 2)
    with pytest.raises(comfy_stand_in.InterruptProcessingException):
        run("MagicEditSweep", editor=editor, image=face, steps=100)
    assert max(done for done, _ in progress) == 2


@pytest.fixture
def progress(monkeypatch) -> list[tuple[int, int]]:
    """What progress bars are told from here on: done, total."""
    monkeypatch.setattr(comfy_stand_in.ProgressBar, "seen", [])
    return comfy_stand_in.ProgressBar.seen


def test_the_result_is_shown_in_the_node(nodes, editor, face):
    schema = nodes["MagicEditExample"].define_schema()
    output = nodes["MagicEditExample"].execute(**{i.id: i.default for i in schema.inputs})
    (image,) = output.args
    assert image.shape[0] == 1
    assert output.ui.image is image


def test_frames_of_a_video(run, editor, closed_mouth, progress):
    """Faces are followed and the edit is smoothed; frames without a face stay as they are."""
    photo = torch.from_numpy(closed_mouth[:470].astype(np.float32) / 255)
    frames = torch.stack([photo.roll(shift, 1) for shift in (0, 2, 4, 6)] + [torch.full_like(photo, 0.5)])
    images, report, masks, marks = run(
        "MagicEditFrames", editor=editor, images=frames, fps=25.0, AU12=3.0, quality="live"
    )
    assert images.shape == frames.shape
    assert torch.equal(images[4], frames[4])
    assert report.startswith("face 1: in 4 of 5 frames, 0.00 to 0.12 s")
    assert masks[:3].any((1, 2)).all()
    assert [mark is None for mark in marks][-1]
    assert marks[0].record["asked"]["add"] == {"AU12": 3.0}
    assert progress[-1] == (10, 10)
    # smoothed: later frames depend on the ones before
    alone, *_ = run("MagicEditFrames", editor=editor, images=frames[2:3], fps=25.0, AU12=3.0, quality="live")
    assert not torch.equal(alone[0], images[2])
    with pytest.raises(NoFaceError, match="no face was found in these frames"):
        run("MagicEditFrames", editor=editor, images=frames[4:])


def test_a_saved_picture_says_that_it_was_edited(run, editor, face, nodes, tmp_path, monkeypatch):
    from magicedit.provenance import EDITED

    monkeypatch.setattr(comfy_stand_in, "output_directory", str(tmp_path))
    monkeypatch.setattr(
        nodes["MagicEditSave"], "hidden", types.SimpleNamespace(prompt={"1": {}}, extra_pnginfo=None)
    )
    both = torch.cat([face, face])
    image, _, _, marks = run("MagicEditEdit", editor=editor, image=both, AU12=-3.0)
    marks = [marks[0], None]  # as of a picture that was left as it is
    run("MagicEditSave", images=image, marks=marks, filename_prefix="x")
    first, second = (Image.open(tmp_path / f"x_0000{number}_.png") for number in (1, 2))
    assert EDITED in first.info["XML:com.adobe.xmp"]
    assert "XML:com.adobe.xmp" not in second.info
    assert json.loads(first.text["prompt"]) == {"1": {}}
    assert np.array_equal(np.asarray(first), (image[0].numpy() * 255).round().astype(np.uint8))
    with pytest.raises(ImageError, match="both outputs of the same node"):
        run("MagicEditSave", images=torch.cat([image, image]), marks=marks)


def test_expressions_go_from_picture_to_picture(run, editor, face):
    expression, text = run("MagicEditExpressionFromImage", editor=editor, image=face)
    assert "AU12=" in text
    (again,) = run("MagicEditExpressionFromText", units=text)
    assert again.values == pytest.approx(expression.values, abs=0.01)
    _, report, *_ = run(
        "MagicEditApplyExpression", editor=editor, image=face.flip(2), expression=expression, mirror=True
    )
    assert "AU12" in report
    (calm,) = run("MagicEditExpressionFromText", units="AU12=-4", arrive=False)
    half, report, *_ = run(
        "MagicEditApplyExpression", editor=editor, image=face, expression=calm, strength=0.5
    )
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
    edit = next(node for node in workflow["nodes"] if node["type"] in ("MagicEditEdit", "MagicEditFrames"))
    edit["inputs"][0]["name"], edit["widgets_values"][0] = "model", 9999
    workflow["links"][0][5] = "IMAGE"
    assert len(problems(workflow, nodes)) == 3


@pytest.mark.parametrize(
    ("name", "pictures"),
    [
        ("edit_and_copy", {"MagicEditEdit": 1, "MagicEditSweep": 5, "MagicEditApplyExpression": 1}),
        ("video_frames", {"MagicEditSweep": 6, "MagicEditFrames": 6}),
    ],
)
def test_a_workflow_runs(nodes, run, tmp_path, monkeypatch, name, pictures):
    """From node to node along its links; ComfyUI's own nodes hand on what they get."""
    monkeypatch.setattr(comfy_stand_in, "output_directory", str(tmp_path))
    workflow = json.loads((FOLDER / "example_workflows" / f"{name}.json").read_text())
    by_id, done = {node["id"]: node for node in workflow["nodes"]}, {}
    sources = {link[0]: (link[1], link[2]) for link in workflow["links"]}

    def outputs_of(number: int) -> tuple:
        if number not in done:
            node = by_id[number]
            given = {
                i["name"]: outputs_of(sources[i["link"]][0])[sources[i["link"]][1]]
                for i in node["inputs"]
                if i["link"] is not None  # an optional one
            }
            if node["type"] in CORE:
                done[number] = tuple(given.values())
            else:
                widgets = slots(nodes, node["type"])[2]
                values = zip([w.id for w in widgets], node["widgets_values"], strict=True)
                done[number] = run(node["type"], **given, **dict(values))
        return done[number]

    for number in by_id:
        outputs_of(number)
    edited = {node["type"]: done[node["id"]] for node in workflow["nodes"] if node["type"] in pictures}
    assert {type: len(images) for type, (images, *_) in edited.items()} == pictures
    for images, _, masks, _ in edited.values():
        assert 0 <= images.min() <= images.max() <= 1
        assert masks.any()
    files = [path.name for path in tmp_path.iterdir()]
    assert files == (["magicedit_00001_.png"] if name == "edit_and_copy" else [])


def test_a_face_of_an_earlier_workflow_is_no_other_one(run, editor, face):
    """Those count from 0, in text or in a number, which ComfyUI turns into text."""
    pair = torch.cat([face, face.flip(2) / 2], dim=2)
    with pytest.raises(NoFaceError, match=r'got "1".*write #2'):
        run("MagicEditEdit", editor=editor, image=pair, AU12=-3.0, face="1")
    with pytest.raises(NoFaceError, match=r'got "0".*write #1'):
        run("MagicEditSweep", editor=editor, image=pair, face="0")
    with pytest.raises(NoFaceError, match="counted from 1"):
        run("MagicEditMeasure", editor=editor, image=pair, face="#0")
