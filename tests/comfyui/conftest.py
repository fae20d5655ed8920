"""The extension of comfyui/ and its nodes."""

import asyncio

import pytest
from comfy_loading import load_extension


@pytest.fixture(scope="session")
def extension():
    return load_extension()


@pytest.fixture(scope="session")
def nodes(extension) -> dict[str, type]:
    """The node classes by their ids, as the extension gives them."""

    async def listed():
        made = await extension.comfy_entrypoint()
        await made.on_load()
        return await made.get_node_list()

    return {node.define_schema().node_id: node for node in asyncio.run(listed())}
