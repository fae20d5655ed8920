"""The nodes by ComfyUI's own API, where ComfyUI can be imported: `PYTHONPATH=ComfyUI pytest tests/comfyui`.

No package on PyPI brings `comfy_api`, so elsewhere these tests skip, and test_nodes.py reads the definitions
through a stand-in for it.
"""

import asyncio

import pytest
from comfy_loading import has_comfyui

pytestmark = pytest.mark.skipif(
    not has_comfyui(),
    reason="needs ComfyUI's package comfy_api, which is in no package index; see docs/comfyui.md",
)


def test_comfyui_accepts_every_node(nodes):
    """Its own check of the classes and their schemas, and the description that its page reads."""
    for node_id, node in nodes.items():
        schema = node.GET_SCHEMA()
        assert schema.node_id == node_id
        info = node.GET_NODE_INFO_V1()
        assert info["name"] == node_id
        assert info["category"] == "magicedit"
        assert info["input_order"]["required"] == [entry.id for entry in schema.inputs]
        assert len(info["output"]) == len(schema.outputs)


def test_the_entry_point_gives_an_extension(extension):
    from comfy_api.latest import ComfyExtension

    assert isinstance(asyncio.run(extension.comfy_entrypoint()), ComfyExtension)
