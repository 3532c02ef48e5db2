"""A world of coloured shapes: prompts, scenes, images and a verifier of images."""

from fk_reward.shapes.prompts import (
    TASKS,
    ObjectSpec,
    ShapesPrompt,
    all_prompts,
    benchmark_prompts,
    heldout_prompts,
    is_heldout,
    parse_prompt,
    train_prompts,
)
from fk_reward.shapes.recognition import DetectedObject, detect
from fk_reward.shapes.sampling import sample_scene, true_prompts
from fk_reward.shapes.scene import BACKGROUND, COLORS, SHAPES, Scene, SceneObject, render
from fk_reward.shapes.verifier import FORBIDDEN_SIGN, Verdict, shows_forbidden_sign, sign_prompts, verify

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
