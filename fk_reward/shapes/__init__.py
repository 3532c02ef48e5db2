"""A world of coloured shapes: prompts, scenes, pictures and a judge of pictures."""

from fk_reward.shapes.forbidden_sign import FORBIDDEN_SIGN, shows_forbidden_sign, sign_prompts
from fk_reward.shapes.palette import BACKGROUND, COLORS, SHAPES
from fk_reward.shapes.prompts import TASKS, ObjectSpec, ShapesPrompt, all_prompts, parse_prompt
from fk_reward.shapes.recognition import DetectedObject, detect
from fk_reward.shapes.render import render
from fk_reward.shapes.sampling import sample_scene, true_prompts
from fk_reward.shapes.scene import Scene, SceneObject
from fk_reward.shapes.split import benchmark_prompts, heldout_prompts, is_heldout, train_prompts
from fk_reward.shapes.verifier import Verdict, verify

__all__ = [
    "BACKGROUND",
    "COLORS",
    "FORBIDDEN_SIGN",
    "SHAPES",
    "TASKS",
    "DetectedObject",
    "ObjectSpec",
    "Scene",
    "SceneObject",
    "ShapesPrompt",
    "Verdict",
    "all_prompts",
    "benchmark_prompts",
    "detect",
    "heldout_prompts",
    "is_heldout",
    "parse_prompt",
    "render",
    "sample_scene",
    "shows_forbidden_sign",
    "sign_prompts",
    "train_prompts",
    "true_prompts",
    "verify",
]
