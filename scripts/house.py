"""Measure how the code is laid out, for one checkout or for two side by side, as Markdown tables.

    python scripts/house.py                      # this checkout
    python scripts/house.py OLD NEW              # two of them
    python scripts/house.py --list               # and what the counts consist of
    python scripts/house.py --no-prompt          # without the measured row, which needs the library's requirements

What the rows mean:

- Shipped files: Python files below `fk_reward`, `pipelines`, `rewards` and `training`.
- Body lines of a function: from its first statement after the docstring to its last line. Nested functions count too.
- An importer of a file: another shipped file with an import of it anywhere, also within a function or for type checking
  only. Names in strings (`"fk_reward.rewards.hps:HPS"`) are no imports. A file under 100 lines whose one importer is an
  `__init__` holds public names; it is left out of that row.
- A circle: files of which each reaches each other one by imports that run when the file is imported; with those for
  types (`if TYPE_CHECKING:`) in the second count, and with those within functions too in the third.
- An import that runs up: of a file in a higher layer (`LAYERS`), at import or within a function. `rewards` and
  `training` know no layer at all, and files directly below `fk_reward` know only one another.
- Files that a call runs, and those of them that a prompt passes: measured, in a process of its own. The embedded
  `shapes-sd` draws and resamples four particles in four steps with the reward `shapes-llava-reward-alignment`; loading
  is not part of it. A file runs when a function of it returns or yields. A prompt passes it when that function then has
  the prompt in an argument or another local variable: as a string that contains it, or in a list, tuple or dictionary.

All but these two are read from the text: nothing is imported.
"""

from __future__ import annotations

import argparse
import ast
import functools
import io
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import tokenize
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

PACKAGE = "fk_reward"
MAPPED = ("pipelines", "rewards", "training")
NOT_SHIPPED = {"tests", "examples", "scripts", "__pycache__"}

LAYERS = ("smc", "search", "sampling", "pipelines", "planning", "benchmarks", "ui", "cli")
"""From the lowest to the highest. A layer imports those below it."""
WITHOUT_LAYERS = ("rewards", "training")
"""What knows no layer."""
BASE = "base"
"""The files directly below `fk_reward`, which are for all."""

AT_IMPORT, DEFERRED, TYPES = "at import", "in a function", "for types"
PROMPT = "two red circles above a green square"
CALL = {"num_particles": 4, "num_inference_steps": 4, "num_images_per_prompt": 1, "ess_threshold": 1.0}
REWARD = "shapes-llava-reward-alignment"

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Source:
    """A shipped file.

    Attributes:
        path: relative to the root of the checkout.
        module: its name when it is installed.
        text: what it holds.
    """

    path: Path
    module: str
    text: str

    @functools.cached_property
    def tree(self) -> ast.Module:
        """The parsed text."""
        return ast.parse(self.text)

    @property
    def is_package(self) -> bool:
        """Whether it is an `__init__`."""
        return self.path.name == "__init__.py"

    @property
    def num_lines(self) -> int:
        """Lines, blank ones and comments too."""
        return len(self.text.splitlines())

    @property
    def folder(self) -> str:
        """The package folder that it belongs to: `rewards`, `fk_reward/smc`, ..., or `fk_reward` itself."""
        return "/".join(
            self.path.parts[:2] if self.path.parts[0] == PACKAGE and len(self.path.parts) > 2 else self._top
        )

    @property
    def _top(self) -> tuple[str, ...]:
        return self.path.parts[:1]


@dataclass(frozen=True, order=True)
class Import:
    """One module that another one imports.

    Attributes:
        importer: name of the module.
        imported: name of the other one.
        kind: `AT_IMPORT`, `DEFERRED` or `TYPES`.
    """

    importer: str
    imported: str
    kind: str = AT_IMPORT


def read_sources(root: Path) -> list[Source]:
    """The shipped files of a checkout."""
    folders = [root / name for name in (PACKAGE, *MAPPED)]
    paths = sorted(path.relative_to(root) for folder in folders for path in folder.rglob("*.py"))
    shipped = [path for path in paths if not NOT_SHIPPED & set(path.parts)]
    return [Source(path, module_name(path), (root / path).read_text(encoding="utf-8")) for path in shipped]


def module_name(path: Path) -> str:
    """Name of the module in the installed package.

    Example:
        >>> module_name(Path("rewards/blip/__init__.py"))
        'fk_reward.rewards.blip'
    """
    parts = path.with_suffix("").parts
    parts = parts if parts[0] == PACKAGE else (PACKAGE, *parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def functions(tree: ast.AST) -> Iterator[Function]:
    """All functions and methods, nested ones too."""
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def body_lines(function: Function) -> int:
    """Lines from the first statement after the docstring to the last; 0 where there is only a docstring."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def comment_lines(text: str) -> int:
    """Lines with a comment that tells a reader something: no `noqa`, no `type: ignore`, no shebang."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    comments = [token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT]
    return sum(not comment.startswith(("noqa", "type: ignore", "!", "fmt:")) for comment in comments)


def read_imports(sources: Sequence[Source]) -> list[Import]:
    """Every import of one shipped file by another, once for each kind."""
    modules = {source.module for source in sources}
    found = {
        Import(source.module, imported, kind)
        for source in sources
        for statement, kind in _import_statements(source.tree.body, AT_IMPORT)
        for imported in _imported(source, statement, modules)
    }
    return sorted(line for line in found if line.importer != line.imported)


def _import_statements(nodes: Iterable[ast.AST], kind: str) -> Iterator[tuple[ast.Import | ast.ImportFrom, str]]:
    for node in nodes:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node, kind
        elif isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            yield from _import_statements(node.body, TYPES)
            yield from _import_statements(node.orelse, kind)
        else:
            yield from _import_statements(ast.iter_child_nodes(node), DEFERRED if isinstance(node, Function) else kind)


def _imported(source: Source, statement: ast.Import | ast.ImportFrom, modules: set[str]) -> set[str]:
    if isinstance(statement, ast.Import):
        return {alias.name for alias in statement.names} & modules
    base = statement.module or ""
    if statement.level:
        package = source.module.split(".")
        package = package[: len(package) - statement.level + source.is_package]
        base = ".".join([*package, *filter(None, [base])])
    names = {f"{base}.{alias.name}" for alias in statement.names}
    return (names & modules) | ({base} & modules if names - modules else set())


def single_importers(sources: Sequence[Source], imports: Iterable[Import]) -> dict[str, str]:
    """Files with exactly one importer, `__init__` files aside: path -> importer."""
    known: dict[str, set[str]] = {source.module: set() for source in sources}
    for line in imports:
        known[line.imported].add(line.importer)
    files = [source for source in sources if not source.is_package]
    return {s.path.as_posix(): next(iter(known[s.module])) for s in files if len(known[s.module]) == 1}


def fragments(sources: Sequence[Source], imports: Iterable[Import], *, limit: int = 100) -> dict[str, str]:
    """Files under `limit` lines with exactly one importer that is no `__init__`: path -> importer."""
    packages = {source.module for source in sources if source.is_package}
    short = {source.path.as_posix() for source in sources if source.num_lines < limit}
    found = single_importers(sources, imports)
    return {path: importer for path, importer in found.items() if path in short and importer not in packages}


def circles(imports: Iterable[Import], *, kinds: Sequence[str] = (AT_IMPORT,)) -> list[tuple[str, ...]]:
    """Groups of modules that reach one another: the strongly connected components of more than one module."""
    graph: dict[str, set[str]] = defaultdict(set)
    for line in imports:
        if line.kind in kinds:
            graph[line.importer].add(line.imported)
    reached = {module: _reachable(graph, module) for module in list(graph)}
    together = {
        frozenset(other for other in there if module in reached.get(other, ())) for module, there in reached.items()
    }
    return sorted(tuple(sorted(group)) for group in together if len(group) > 1)


def _reachable(graph: Mapping[str, set[str]], start: str) -> set[str]:
    found: set[str] = set()
    waiting = list(graph[start])
    while waiting:
        module = waiting.pop()
        if module not in found:
            found.add(module)
            waiting.extend(graph.get(module, ()))
    return found


def layer(source: Source) -> str:
    """The part of the package that a file belongs to, such as `smc`, `rewards` or `base`."""
    parts = source.module.split(".")
    return parts[1] if len(parts) > 2 or (len(parts) == 2 and source.is_package) else BASE


def runs_up(importer: str, imported: str) -> bool:
    """Whether a file of one layer must not import a file of the other.

    Example:
        >>> runs_up("smc", "search"), runs_up("search", "smc"), runs_up("rewards", "pipelines"), runs_up("smc", "base")
        (True, False, True, False)
    """
    if importer == BASE:
        return imported != BASE
    if importer in WITHOUT_LAYERS:
        return imported in LAYERS
    both = importer in LAYERS and imported in LAYERS
    return both and LAYERS.index(imported) > LAYERS.index(importer)


def imports_that_run_up(sources: Sequence[Source], imports: Iterable[Import], *, kinds: Sequence[str]) -> list[Import]:
    """The imports of these kinds that a layer must not make. The `__init__` of the whole package may name all."""
    layers = {source.module: layer(source) for source in sources}
    asked = [line for line in imports if line.kind in kinds and line.importer != PACKAGE]
    return [line for line in asked if runs_up(layers[line.importer], layers[line.imported])]


def percentile(values: Sequence[float], percent: int) -> float:
    """The smallest value that at least `percent` of a hundred values do not exceed.

    Example:
        >>> percentile([1, 2, 3, 4], 50), percentile([], 50)
        (2, 0)
    """
    return sorted(values)[math.ceil(percent * len(values) / 100) - 1] if values else 0


def holds(value: Any, text: str, *, depth: int = 2) -> bool:
    """Whether a value is a string with the text, or a list, tuple or dictionary that holds one."""
    if isinstance(value, str):
        return text in value
    if depth and type(value) in (list, tuple, dict):
        items = [*value, *value.values()] if type(value) is dict else value
        return any(holds(item, text, depth=depth - 1) for item in items)
    return False


def watch(action: Callable[[], object], *, text: str, root: Path) -> dict[str, list[str]]:
    """Files below `root`, relative to it, that ran during the action, and those of which a function held the text."""
    ran: set[str] = set()
    passed: set[str] = set()

    def profile(frame: FrameType, event: str, _: object) -> None:
        path = _inside(frame.f_code.co_filename, root) if event == "return" else None
        if path is None:
            return
        ran.add(path)
        if path not in passed and any(holds(value, text) for value in frame.f_locals.values()):
            passed.add(path)

    threading.setprofile(profile)
    sys.setprofile(profile)
    try:
        action()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]
    return {"Files that a call runs": sorted(ran), "Files that a prompt passes": sorted(passed)}


@functools.cache
def _inside(filename: str, root: Path) -> str | None:
    path = Path(filename).resolve()
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else None


def trace_prompt(root: Path) -> dict[str, list[str]]:
    """The files of a steered call, in this process, in which `fk_reward` must be that of the checkout."""
    import torch  # noqa: PLC0415 (all other measures need no requirements)

    from fk_reward import FKSteeringPipeline  # noqa: PLC0415

    pipe = FKSteeringPipeline.from_pretrained("shapes-sd", reward=REWARD)
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return watch(lambda: pipe(PROMPT, generator=generator, **CALL), text=PROMPT, root=root)


def files_of_a_call(root: Path) -> dict[str, list[str]]:
    """The same, in a process that imports the package of the checkout, which is left as it is."""
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / PACKAGE
        package.mkdir()
        for entry in [*(root / PACKAGE).iterdir(), *(root / name for name in MAPPED)]:
            if entry.name != "__pycache__":
                (package / entry.name).symlink_to(entry)
        environment = {**os.environ, "PYTHONPATH": folder, "PYTHONDONTWRITEBYTECODE": "1", "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, str(Path(__file__).resolve()), "--trace-prompt", str(root)]
        done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        raise RuntimeError(f"The call of {root} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


@dataclass(frozen=True)
class House:
    """The measures of a checkout.

    Attributes:
        rows: what is measured -> the figure, as it is printed.
        folders: folder -> its files and lines.
        lists: what some rows consist of.
    """

    rows: dict[str, str]
    folders: dict[str, str]
    lists: dict[str, list[str]]


def measure(root: Path, *, with_prompt: bool = True) -> House:
    """Measure a checkout."""
    sources = read_sources(root)
    imports = read_imports(sources)
    lists = _lists(sources, imports) | (files_of_a_call(root) if with_prompt else {})
    rows = _length_rows(sources) | {name: str(len(found)) for name, found in lists.items()}
    return House(rows, _folder_rows(sources), lists)


def _length_rows(sources: Sequence[Source]) -> dict[str, str]:
    lines = [source.num_lines for source in sources]
    bodies = [body_lines(function) for source in sources for function in functions(source.tree)]
    return {
        "Shipped files": str(len(lines)),
        "Lines": f"{sum(lines):,}",
        "File length, mean": f"{statistics.mean(lines):.0f}",
        "File length, p90": f"{percentile(lines, 90)}",
        "Body lines, mean": f"{statistics.mean(bodies):.1f}",
        "Body lines, p50": f"{percentile(bodies, 50)}",
        "Body lines, p90": f"{percentile(bodies, 90)}",
        "Bodies under 20 lines": f"{100 * sum(body < 20 for body in bodies) / len(bodies):.1f} %",
        "Files under 60 lines": str(sum(length < 60 for length in lines)),
        "Files under 100 lines": str(sum(length < 100 for length in lines)),
        "Comment lines": f"{sum(comment_lines(source.text) for source in sources):,}",
    }


def _lists(sources: Sequence[Source], imports: Sequence[Import]) -> dict[str, list[str]]:
    def lines(found: Iterable[Import]) -> list[str]:
        return [f"{line.importer} -> {line.imported} ({line.kind})" for line in found]

    def arrows(found: Mapping[str, str]) -> list[str]:
        return [f"{path} <- {importer}" for path, importer in found.items()]

    return {
        "Files with one importer": arrows(single_importers(sources, imports)),
        "Files under 100 lines with one importer": arrows(fragments(sources, imports)),
        "Import circles": [", ".join(circle) for circle in circles(imports)],
        "Import circles, with imports for types": [
            ", ".join(circle) for circle in circles(imports, kinds=(AT_IMPORT, TYPES))
        ],
        "Import circles, with imports in functions too": [
            ", ".join(circle) for circle in circles(imports, kinds=(AT_IMPORT, TYPES, DEFERRED))
        ],
        "Imports that run up": lines(imports_that_run_up(sources, imports, kinds=(AT_IMPORT, DEFERRED))),
        "Imports for types that run up": lines(imports_that_run_up(sources, imports, kinds=(TYPES,))),
    }


def _folder_rows(sources: Sequence[Source]) -> dict[str, str]:
    lengths: dict[str, list[int]] = defaultdict(list)
    for source in sources:
        lengths[source.folder].append(source.num_lines)
    return {folder: f"{len(found)} files, {sum(found):,} lines" for folder, found in sorted(lengths.items())}


def table(heading: str, columns: Mapping[str, Mapping[str, str]]) -> str:
    """A Markdown table: a row for each name, a column for each checkout."""
    names = list(dict.fromkeys(name for rows in columns.values() for name in rows))
    lines = [f"| {' | '.join([heading, *columns])} |", f"| --- |{' ---: |' * len(columns)}"]
    return "\n".join(
        lines + [f"| {' | '.join([n, *(rows.get(n, '-') for rows in columns.values())])} |" for n in names]
    )


def report(houses: Mapping[str, House], *, with_lists: bool = False) -> str:
    """The tables, and lists of what some rows consist of."""
    parts = [table("Measure", {label: house.rows for label, house in houses.items()})]
    parts.append(table("Folder", {label: house.folders for label, house in houses.items()}))
    for label, house in houses.items() if with_lists else ():
        for name, found in house.lists.items():
            parts.append("\n".join([f"{label}: {name}", "", *(f"- {line}" for line in found)]))
    return "\n\n".join(parts)


def main() -> None:
    """Print the measures."""
    parser = argparse.ArgumentParser(description="Measure how the code of a checkout is laid out.")
    parser.add_argument("roots", nargs="*", type=Path, help="checkouts; this one when there is none")
    parser.add_argument("--list", action="store_true", help="print what the counts consist of as well")
    parser.add_argument("--no-prompt", action="store_true", help="do not measure which files a prompt passes")
    parser.add_argument("--trace-prompt", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.trace_prompt:
        sys.stdout.write(json.dumps(trace_prompt(arguments.trace_prompt)) + "\n")
        return
    roots = [root.resolve() for root in arguments.roots or [Path(__file__).parents[1]]]
    houses = {str(root): measure(root, with_prompt=not arguments.no_prompt) for root in roots}
    sys.stdout.write(report(houses, with_lists=arguments.list) + "\n")


if __name__ == "__main__":
    main()
