"""What steering works with, in the README; `python -m tests.pipelines.works_with` writes it anew.

The pipelines are counted in the table of outcomes, and everything else names the test that shows it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.pipelines.outcome_table import PAGE, documented_rows
from tests.tiny.families import GROUPS

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
BEGIN, END = "<!-- works with: python -m tests.pipelines.works_with -->", "<!-- end of works with -->"
STEERS = ("steers", "steers with a preview")

SCHEDULERS = "DDIM, DDPM, Euler a, KDPM2 a, DPM++ SDE, LCM, TCD, EDM, flow SDE, GLASS"

EVIDENCE: dict[str, dict[str, tuple[str, str]]] = {
    "adapters": {
        "LoRA": ("pipelines/test_micro_batches.py", "test_lora"),
        "ControlNet": ("pipelines/test_micro_batches.py", "test_controlnet_and_its_residuals"),
        "IP-Adapter": ("pipelines/test_ip_adapter.py", "test_what_is_not_steered_is_the_stock_image"),
        "several LoRAs by weight": ("cli/test_generate.py", "test_loras_change_the_images_by_their_weights"),
    },
    "tasks": {
        "text to image": ("pipelines/test_families.py", "test_a_reward_that_is_nan_names_prompt_particle_and_step"),
        "image to image, inpainting": (
            "pipelines/test_image_to_image.py",
            "test_what_is_not_steered_is_the_stock_image",
        ),
        "several prompts a call": (
            "pipelines/test_conditions.py",
            "test_prompts_do_not_mix_when_their_populations_shrink",
        ),
    },
    "memory and speed": {
        "offload": ("pipelines/test_hooks.py", "test_group_offload_gives_the_same_images"),
        "`torch.compile`": (
            "pipelines/test_acceleration.py",
            "test_same_images_by_compiled_code_that_is_compiled_a_few_times_for_all_batch_sizes",
        ),
        "feature caches": ("pipelines/test_pipeline_state.py", "test_a_population_that_shrinks_takes_its_caches_along"),
        "micro-batches": ("pipelines/test_micro_batches.py", "test_latents_are_decoded_and_images_scored_in_batches"),
    },
}


def missing_tests() -> Iterator[str]:
    """Tests that are named here and do not exist."""
    for path, name in (test for of_kind in EVIDENCE.values() for test in of_kind.values()):
        tree = ast.parse((ROOT / "tests" / path).read_text(encoding="utf-8"))
        if not any(isinstance(node, ast.FunctionDef) and node.name == name for node in tree.body):
            yield f"{path}::{name}"


def families() -> str:
    """Each family with how many of its classes steer, of those that were tried."""
    rows = documented_rows(PAGE.read_text(encoding="utf-8"))
    outcomes = {name: line.split("|")[3].strip() for name, line in rows.items()}
    counts = {
        title: (sum(outcomes[name] in STEERS for name in classes), len(classes)) for title, classes in GROUPS.items()
    }
    return " · ".join(f"{title} ({steers} of {tried})" for title, (steers, tried) in counts.items() if steers)


def table() -> str:
    """The rows of the README."""
    rows = {"pipelines, classes that steer": f"{families()}: [each](docs/pipelines.md)"}
    rows |= {kind: ", ".join(of_kind) for kind, of_kind in EVIDENCE.items()}
    rows |= {"schedulers": f"{SCHEDULERS}: [each](docs/schedulers.md); any other for searches that copy nothing"}
    return "\n".join(["| | |", "| --- | --- |", *(f"| {kind} | {what} |" for kind, what in rows.items())])


def written(page: str) -> str:
    """The README with these rows."""
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n{table()}\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    README.write_text(written(README.read_text(encoding="utf-8")), encoding="utf-8")
