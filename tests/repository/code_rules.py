"""What the linter does not check: sizes of files and functions, and calls that library code never makes."""

from __future__ import annotations

import ast
from pathlib import Path

MAX_FILE_LINES = 500
MAX_BODY_LINES = 40
USUAL_BODY_LINES = 20
DRAWERS = {"utils", "helpers", "common", "misc"}


def is_drawer(path: Path) -> bool:
    """Whether the name of the file or of a folder says nothing about what it holds."""
    return bool(DRAWERS & {part.removesuffix(".py").strip("_") for part in path.parts})


def _attribute(node: ast.AST) -> str:
    return ast.unparse(node) if isinstance(node, ast.Attribute | ast.Name) else ""


def _is_true(call: ast.Call, keyword: str) -> bool:
    return any(k.arg == keyword and isinstance(k.value, ast.Constant) and k.value.value is True for k in call.keywords)


def _call_sin(call: ast.Call) -> str | None:
    name = _attribute(call.func)
    if name == "print":
        return "print: use logging"
    if name == "torch.load" and not _is_true(call, "weights_only"):
        return "torch.load without weights_only=True"
    if any(keyword.arg == "trust_remote_code" for keyword in call.keywords):
        return "trust_remote_code"
    return None


def _is_blind(handler: ast.ExceptHandler) -> bool:
    """Whether it catches everything and goes on; to raise a better error from it is fine."""
    catches_all = handler.type is None or _attribute(handler.type) in {"Exception", "BaseException"}
    return catches_all and not isinstance(handler.body[-1], ast.Raise)


def _sin(node: ast.AST) -> str | None:
    checks = {
        ast.Call: _call_sin,
        ast.Assert: lambda _: "assert: raise an error that says what to do",
        ast.Global: lambda _: "global",
        ast.Attribute: lambda attribute: "sys.path" if _attribute(attribute) == "sys.path" else None,
        ast.ImportFrom: lambda line: "import *" if line.names[0].name == "*" else None,
        ast.ExceptHandler: lambda handler: "blind except" if _is_blind(handler) else None,
    }
    check = checks.get(type(node))
    return check(node) if check else None


def library_sins(source: str) -> list[str]:
    """What library code must not do, each with its line."""
    return [f"{node.lineno}: {sin}" for node in ast.walk(ast.parse(source)) if (sin := _sin(node)) is not None]
