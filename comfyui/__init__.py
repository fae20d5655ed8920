"""Nodes for ComfyUI that edit facial expressions with magicedit. ComfyUI loads this folder, see README.md."""

from comfy_api.latest import ComfyExtension, io

from .nodes import NODES

WEB_DIRECTORY = "./web"  # scripts of ComfyUI's page


class MagicEditExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES


async def comfy_entrypoint() -> ComfyExtension:
    return MagicEditExtension()
