"""`fk-reward hard-negatives`: pairs of a right and a wrong caption of one image, made from captions."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from fk_reward.cli.options import NamedPath, OverwriteOption
from fk_reward.terminal import TextTable, say, styled
from fk_reward.value_checks import whole_number

if TYPE_CHECKING:
    from fk_reward.training import HardNegative

NUM_SHOWN = 5


def hard_negatives(  # noqa: PLR0913 (one parameter for each option)
    captions: Path,
    out: NamedPath,
    /,
    *,
    image_root: Path | None = None,
    per_caption: int = 1,
    kind: list[str] | None = None,
    seed: int = 0,
    skip_bad_rows: bool = False,
    overwrite: OverwriteOption = False,
) -> None:
    """Make hard negatives: one thing in a caption is changed, so that it no longer fits its image.

    Writes rows of the public preference format, which `fk-reward train` reads: prompt (the right and the wrong
    caption), chosen_path and reject_path (the same image), and what was changed. Captions that no rule applies to are
    left out and counted.

    Args:
        captions: JSON, JSON lines or Parquet with prompt and path of each image.
        out: JSON file to write; JSON lines if it ends so.
        image_root: Folder of the images; the folder of the captions if not given.
        per_caption: Wrong captions of each image, at most.
        kind: What is changed: attribute, object, count or position; may be repeated; all of them if not given.
        seed: Seed of the choice.
        skip_bad_rows: Leave out bad rows and images.
        overwrite: Replace the output file.
    """
    for name, value, minimum in (("--per-caption", per_caption, 1), ("--seed", seed, 0)):
        whole_number(name, value, minimum=minimum)
    from fk_reward.training.hard_negatives import KINDS, choose_hard_negatives, read_captions, write_prompt_pairs

    if out.exists() and not overwrite:
        raise FileExistsError(f"The output file {out} exists; choose another name or add --overwrite.")
    captioned = read_captions(captions, image_root=image_root, skip_bad_rows=skip_bad_rows)
    texts = [text for text, _ in captioned]
    chosen = choose_hard_negatives(texts, per_caption=per_caption, kinds=kind or KINDS, seed=seed)
    unchanged = [text for text, negatives in zip(texts, chosen, strict=True) if not negatives]
    if len(unchanged) == len(texts):
        raise ValueError(f"No rule applies to any of the {len(texts)} captions, such as {texts[0]!r}.")
    write_prompt_pairs(out, [image for _, image in captioned], chosen)
    _show([negative for negatives in chosen for negative in negatives], unchanged, out)


def _show(negatives: list[HardNegative], unchanged: list[str], out: Path) -> None:
    table = TextTable(f"{len(negatives)} prompt pairs in {out}")
    table.add_column("changed")
    table.add_column("pairs", right=True)
    table.add_column("for example")
    for kind, count in Counter(negative.kind for negative in negatives).most_common():
        example = next(negative for negative in negatives if negative.kind == kind)
        table.add_row(kind, str(count), styled(f"{example.caption} ", (f"({example.change})", "dim")))
    table.print()
    if unchanged:
        say(f"No rule applies to {len(unchanged)} captions, which were left out:")
        for caption in unchanged[:NUM_SHOWN]:
            say(f"  {caption}")
