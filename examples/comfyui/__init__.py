"""Custom nodes for ComfyUI: copy this folder to `ComfyUI/custom_nodes/fk_reward`, and read README.md beside it."""

from .nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
