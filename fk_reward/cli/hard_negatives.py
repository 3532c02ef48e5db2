"""`fk-reward hard-negatives`: pairs of a right and a wrong caption of one image, made from captions."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fk_reward.output_folder import NAMED_PATH
from fk_reward.terminal import TextTable, say, styled

if TYPE_CHECKING:
    from fk_reward.training import HardNegative

NUM_SHOWN = 5


def hard_negatives(  # noqa: PLR0913 (options of a command)
    captions: Annotated[
        Path, typer.Argument(help="JSON, JSON lines or Parquet with prompt and path of each image.", show_default=False)
    ],
    out: Annotated[
        Path, typer.Argument(help="JSON file to write; JSON lines if it ends so.", show_default=False, **NAMED_PATH)
    ],
    *,
    image_root: Annotated[
        Path | None, typer.Option(help="Folder of the images.", show_default="the folder of the captions")
    ] = None,
    per_caption: Annotated[int, typer.Option(help="Wrong captions of each image, at most.", min=1)] = 1,
    kind: Annotated[
        list[str] | None,
        typer.Option(help="attribute, object, count or position; may be repeated.", show_default="all of them"),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the choice.", min=0)] = 0,
    skip_bad_rows: Annotated[bool, typer.Option("--skip-bad-rows", help="Leave out bad rows and images.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output file.")] = False,
) -> None:
    """Make hard negatives: one thing in a caption is changed, so that it no longer fits its image.

    Writes rows of the public preference format, which `fk-reward train` reads: prompt (the right and the wrong
    caption), chosen_path and reject_path (the same image), and what was changed. Captions that no rule applies to are
    left out and counted.
    """
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
