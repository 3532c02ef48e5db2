"""`fk-reward convert`: an official checkpoint of LLaVA-Reward into our own format."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fk_reward.cli.options import NamedPath, OverwriteOption
from fk_reward.output_folder import prepare_folder
from fk_reward.terminal import TextTable, say

if TYPE_CHECKING:
    from fk_reward.rewards.llava_reward.checkpoint import RewardCheckpoint


def convert(  # noqa: PLR0913 (one parameter for each option)
    official_folder: Path,
    out: NamedPath,
    /,
    *,
    backbone: str,
    dimension: str,
    base_model: str | None = None,
    objective: str | None = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Convert an official LLaVA-Reward checkpoint into a folder without pickles.

    Writes adapter/ (LoRA in the layout of PEFT), reward.safetensors (head and projector) and reward_config.json.

    Args:
        official_folder: Folder with reward_config.yaml, lora/ and pytorch_model.bin.
        out: Folder to write to.
        backbone: Model type of the backbone: phi3_v, qwen2_5_vl or llava_next.
        dimension: What the reward judges: alignment, fidelity, safety, overall, ...
        base_model: Hub id or folder of the backbone; the official one if not given.
        objective: Training objective, which the folder does not say: bradley-terry (if not given) or binary. A general
            preference is recognised.
        overwrite: Write into a folder that is not empty.
    """
    from fk_reward.rewards.llava_reward.official_checkpoint import load_official_checkpoint

    checkpoint = load_official_checkpoint(
        official_folder,
        backbone=backbone,
        dimension=dimension,
        base_model=base_model or _official_base_model(backbone),
        objective=objective,
    )
    checkpoint.save(prepare_folder(out, overwrite=overwrite), overwrite=overwrite)
    _show(checkpoint, official_folder, out)


def _official_base_model(backbone: str) -> str:
    from fk_reward.rewards.llava_reward.backbones.base import BACKBONES, backbone_spec

    if backbone not in BACKBONES:
        raise ValueError(f"Give --base-model for backbone {backbone!r}; it is known for {', '.join(BACKBONES)} only.")
    return backbone_spec(backbone).hub_id


def _show(checkpoint: RewardCheckpoint, official_folder: Path, out: Path) -> None:
    config, lora_config = checkpoint.config, checkpoint.lora_config
    skip_ca = f"attends to {config.attends_to}" if config.cross_attention else "no"
    rows = {
        "dimension": f"{config.dimension} ({config.objective})",
        "backbone": f"{config.backbone} ({config.base_model})",
        "LoRA": f"{len(checkpoint.lora_modules)} modules, rank {lora_config.r}" if lora_config else "none",
        "value head": f"{config.value_head_dim} x {checkpoint.head['value_head.weight'].shape[1]}",
        "SkipCA": skip_ca,
        "projector": f"{len(checkpoint.projector)} tensors" if checkpoint.projector else "the base model's own",
    }
    table = TextTable("LLaVA-Reward checkpoint", show_header=False)
    table.add_column("what", no_wrap=True)
    table.add_column("value")
    for what, value in rows.items():
        table.add_row(what, value)
    table.print()
    say(f"Read {official_folder}")
    say(f"Written to {out}")
