"""How the files of the library may depend on one another, and which files are pieces of another file.

The counts are those of `scripts/house.py`, and so are the layers.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts import house
from scripts.house import AT_IMPORT, DEFERRED, TYPES, Import, Source

TABLES = {
    *("SEARCHES", "REWARDS", "POTENTIALS", "RESAMPLERS", "SOLVERS", "PREVIEWS", "BACKBONES", "OBJECTIVES", "TASKS"),
    *("COMMANDS", "BENCHMARKS", "BUILT_IN_PROBES"),
}
"""Tables of what people add. A file that is named in one of them may be short, whoever imports it."""
COMMANDS = ("fk_reward/cli", "fk_reward.cli.app")
"""Folder of the commands, and what imports them all. Each is a file with a function of its name."""

LONG_FILES: dict[str, str] = {
    "tests/rewards/llava_reward/backbones/test_qwen2_5_vl.py": "Preprocessing, model and loading of one source file.",
}
"""Files over 500 lines, and why they are one concept."""
SHORT_FILES: dict[str, str] = {
    "rewards/vlm_judge/stopping.py": "a class of transformers, which its importer imports only when it answers",
    "fk_reward/benchmarks/ray_workers.py": "Ray, an extra, of which nothing else of the engine knows",
    "fk_reward/benchmarks/timing.py": "the clock of the scripts in examples/benchmarks, too",
    "fk_reward/search/fkd_args.py": "the settings of somebody else's code, of which the sampler's own know nothing",
}
"""Files under 100 lines with one importer, and why they are files of their own; not what people add (`TABLES`)."""


@dataclass(frozen=True)
class Layout:
    """What a checkout does against the rules.

    Attributes:
        circles: groups of modules that import one another as soon as they are imported.
        in_circles: modules that import one another in whatever way: within a function and for types as well.
        running_up: `module -> layer`, for imports of a higher layer, but those for types.
        fragments: files under 100 lines with one importer, which are not what people add.
    """

    circles: list[tuple[str, ...]]
    in_circles: set[str]
    running_up: set[str]
    fragments: set[str]

    @classmethod
    def of(cls, root: Path) -> Layout:
        """Read a checkout."""
        sources = house.read_sources(root)
        imports = house.read_imports(sources)
        layers = {source.module: house.layer(source) for source in sources}
        up = house.imports_that_run_up(sources, imports, kinds=(AT_IMPORT, DEFERRED))
        modules = added_modules(sources, imports)
        added = {source.path.as_posix() for source in sources if source.module in modules}
        return cls(
            circles=house.circles(imports),
            in_circles={m for circle in house.circles(imports, kinds=(AT_IMPORT, DEFERRED, TYPES)) for m in circle},
            running_up={f"{line.importer} -> {layers[line.imported]}" for line in up},
            fragments=set(house.fragments(sources, imports)) - added,
        )


def added_modules(sources: Sequence[Source], imports: Sequence[Import]) -> set[str]:
    """Modules of what people add: named in a table, or a command."""
    importers = house.single_importers(sources, imports)
    commands = {s.module for s in sources if _is_command(s, importers.get(s.path.as_posix()))}
    return commands | {module for source in sources for module in _named_in_tables(source)}


def _is_command(source: Source, importer: str | None) -> bool:
    names = {node.name for node in source.tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    return (source.path.parent.as_posix(), importer) == COMMANDS and source.path.stem in names


def _named_in_tables(source: Source) -> Iterator[str]:
    """Modules that a table of this file names: by what it imports from them, or as `"module:attribute"`."""
    origins = {
        alias.asname or alias.name: (statement.module or "", alias.name)
        for statement in ast.walk(source.tree)
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    }
    for table in _tables(source.tree):
        for node in ast.walk(table):
            if isinstance(node, ast.Name) and node.id in origins:
                yield from (origins[node.id][0], ".".join(origins[node.id]))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and ":" in node.value:
                yield node.value.split(":")[0]


def _tables(tree: ast.Module) -> Iterator[ast.expr]:
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(target, ast.Name) and target.id in TABLES for target in targets):
            yield node.value
