"""Two finished runs, perhaps of different people: whether they can be compared, what differs, and by how much.

Images are paired by prompt and sample. Where both runs also have the seeds, the model and the noise of each other,
pairs share their noise and the interval of a difference is narrow; where not, a pair shares its prompt only, and the
interval says so by its width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fk_reward.benchmarks.image_report import COST_COLUMNS
from fk_reward.benchmarks.image_results import RunResult, read_run
from fk_reward.benchmarks.image_store import PromptFolder, find_runs, records_digest
from fk_reward.benchmarks.report import CHANGE, RANGE, Column, Report, Table, interval_text, write_tables
from fk_reward.benchmarks.statistics import Ends, Outcome, estimate, estimate_by_task, paired_differences
from fk_reward.benchmarks.store import flat_settings

NOT_OF_IMAGES = ("command", "preset")
"""What a manifest holds besides what its images depend on."""
_SAME_NOISE = {
    *("settings.seed", "settings.num_steps", "settings.scheduler", "settings.solver"),
    *("model.weights", "model.scheduler", "model.eta"),
}
"""What two runs must share for their pairs to begin with the same noise."""


def find_run(folder: Path) -> Path:
    """The folder of one finished run.

    Raises:
        ValueError: it holds several; the message names them.
        FileNotFoundError: none.
        NotADirectoryError: no such folder.
    """
    runs = find_runs(folder)
    if len(runs) > 1:
        names = ", ".join(str(run) for run in runs)
        raise ValueError(f"{folder} holds {len(runs)} runs; name one of them: {names}.")
    return runs[0]


def read_pair(first: Path, second: Path) -> tuple[RunResult, RunResult]:
    """Two runs that can be compared.

    Args:
        first: folder of a run, or of a folder with one.
        second: likewise.

    Raises:
        ValueError: unfinished or unjudged runs, the same run twice, other prompts, or verdicts of different judges; the
            message says what differs and what to do.
        OSError: missing folders.
    """
    roots = [find_run(folder) for folder in (first, second)]
    if roots[0].resolve() == roots[1].resolve():
        raise ValueError(f"{roots[0]} is the same run twice: name two runs.")
    ours, theirs = (read_run(root) for root in roots)
    records = [
        [PromptFolder(run.root, i).read_metadata() for i in sorted({one.index for one in run.images})]
        for run in (ours, theirs)
    ]
    if records_digest(records[0]) != records_digest(records[1]):
        raise ValueError(
            f"{ours.root} and {theirs.root} are of different prompts: {_prompts_differ(*records)}. Only runs of the "
            "same suite can be compared."
        )
    differ = _differences(ours.judge, theirs.judge)
    if differ:
        said = "; ".join(f"{row['what']}: {row['first']} and {row['second']}" for row in differ)
        raise ValueError(
            f"{ours.root} and {theirs.root} were judged by different judges ({said}): judge both by one, with --stage "
            "judge of the command that made them."
        )
    return ours, theirs


def _prompts_differ(ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]]) -> str:
    if len(ours) != len(theirs):
        return f"{len(ours)} and {len(theirs)} of them"
    place = next(i for i, pair in enumerate(zip(ours, theirs, strict=True)) if pair[0] != pair[1])
    return f"prompt {place} is {ours[place]['prompt']!r} and {theirs[place]['prompt']!r}"


def what_differs(first: RunResult, second: RunResult) -> list[dict[str, Any]]:
    """What the two runs depend on and do not share: rows with `what`, `first` and `second`."""
    pair = [dict(run.manifest or {}) for run in (first, second)]
    for manifest in pair:
        for name in NOT_OF_IMAGES:
            manifest.pop(name, None)
    return _differences(*pair)


def _differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[dict[str, Any]]:
    before, after = flat_settings(first), flat_settings(second)
    names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    return [{"what": name, "first": _value(before, name), "second": _value(after, name)} for name in names]


def _value(leaves: Mapping[str, Any], name: str) -> str:
    return str(leaves[name]) if name in leaves else "not there"


def share_noise(first: RunResult, second: RunResult) -> bool:
    """Whether images of the same prompt and sample began with the same noise, as far as the manifests say."""
    if first.manifest is None or second.manifest is None:
        return False
    changed = {row["what"] for row in what_differs(first, second)}
    return not changed & _SAME_NOISE


def compare_runs(first: Path, second: Path, *, out: Path | None = None) -> Report:
    """Compare two finished runs of the same prompts by the same judge.

    Args:
        first: folder of a run; differences are the first less the second.
        second: folder of another one.
        out: folder for `compare.json`, `.md` and `.tex`; None to write nothing.

    Raises:
        ValueError: as `read_pair`.
        OSError: missing folders, or one that cannot be written to.
    """
    ours, theirs = read_pair(first, second)
    names = {"first": str(ours.root), "second": str(theirs.root)}
    differ = what_differs(ours, theirs)
    paired = share_noise(ours, theirs)
    accuracy = _accuracy_rows(ours, theirs)
    scores = _score_rows(ours, theirs)
    flags = _flag_rows(ours, theirs)
    facts = _facts(ours, theirs, paired=paired, num_differ=len(differ))
    content = {"runs": names, "judge": ours.judge, "same_noise": paired, "differences": differ}
    content |= {"accuracy": accuracy, "scores": scores, "flags": flags, "cost": _costs(ours, theirs)}
    title = f"{ours.name} and {theirs.name}"
    tables = _tables(content)
    files = () if out is None else write_tables(out / "compare", title, tables, facts=facts, content=content)
    return Report(title, tables, files, tuple(facts))


def _facts(first: RunResult, second: RunResult, *, paired: bool, num_differ: int) -> list[str]:
    places = set(first.by_place) & set(second.by_place)
    left = len(first.images) + len(second.images) - 2 * len(places)
    noise = "and share their noise" if paired else "and do not share their noise"
    facts = [
        f"first: {first.root}; second: {second.root}; both judged by {first.judge.get('judge', 'the same judge')}.",
        f"{len({index for index, _ in places})} prompts, {len(places)} pairs of images, which are of the same prompt "
        f"and sample, {noise}.",
    ]
    if left:
        facts.append(f"{left} images that only one of the runs has are left out of the differences.")
    unknown = [run.name for run in (first, second) if run.manifest is None]
    if unknown:
        facts.append(f"{' and '.join(unknown)}: no manifest, so that nothing is known of how these images were made.")
    else:
        facts.append(
            f"{num_differ} setting{'s differ' if num_differ > 1 else ' differs'}: see the last table."
            if num_differ
            else "No setting differs."
        )
    return [*facts, "Brackets are 95 % bootstrap intervals over prompts; a difference is the first less the second."]


def _accuracy_rows(first: RunResult, second: RunResult) -> list[dict[str, Any]]:
    ours, theirs = first.correctness(), second.correctness()
    differences = estimate_by_task(paired_differences(ours, theirs))
    means = [estimate_by_task(list(found.values())) for found in (ours, theirs)]
    return [
        {"task": task, "first": means[0].get(task), "second": means[1].get(task), "difference": ends}
        for task, ends in differences.items()
    ]


def _score_rows(first: RunResult, second: RunResult) -> list[dict[str, Any]]:
    names = dict.fromkeys(name for image in first.images for name in image.scores)
    pairs = {name: (first.scores(name), second.scores(name)) for name in names}
    return [_row("reward", name, *found) for name, found in pairs.items() if all(found)]


def _flag_rows(first: RunResult, second: RunResult) -> list[dict[str, Any]]:
    names = dict.fromkeys(name for image in first.images for name in image.flags)
    pairs = {name: (first.flagged(name), second.flagged(name)) for name in names}
    return [_row("flag", name, *found) for name, found in pairs.items() if all(found)]


def _row(
    kind: str, name: str, ours: Mapping[tuple[int, int], Outcome], theirs: Mapping[tuple[int, int], Outcome]
) -> dict[str, Any]:
    pairs = paired_differences(ours, theirs)
    found = {"first": estimate(ours.values()), "second": estimate(theirs.values())}
    return {kind: name, **found, "difference": estimate(pairs) if pairs else None}


def _costs(first: RunResult, second: RunResult) -> list[dict[str, Any]]:
    known = {"first": first, "second": second}
    return [
        {"run": name, **{key: value / len(run.images) for key, value in vars(run.cost).items()}}
        for name, run in known.items()
        if run.cost is not None
    ]


def _tables(content: Mapping[str, Any]) -> list[Table]:
    means = (Column("first", "first [95 %]"), Column("second", "second [95 %]"))
    columns = (*means, Column("difference", "difference [95 %]"))
    differ = (Column("what"), Column("first"), Column("second"))
    tables = [
        Table("Accuracy", (Column("task"), *columns), _cells(content["accuracy"])),
        Table("Rewards", (Column("reward"), *columns), _cells(content["scores"])),
        Table("Flagged images", (Column("flag"), *columns), _cells(content["flags"])),
        Table("Cost of an image", (Column("run"), *COST_COLUMNS), list(content["cost"])),
        Table("What differs", differ, list(content["differences"])),
    ]
    return [table for table in tables if table.rows]


def _cells(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    styles = {"first": RANGE, "second": RANGE, "difference": CHANGE}
    return [{**row, **{name: _text(row[name], style) for name, style in styles.items()}} for row in rows]


def _text(ends: Ends | None, style: str) -> str | None:
    return None if ends is None else interval_text(ends, style)
