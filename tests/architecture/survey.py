"""What the sources look like, measured on their syntax trees.

Invariant: it imports nothing of what it measures, so it also works on a tree that is broken.
"""

from __future__ import annotations

import ast
import statistics
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ("fwstore", "integrations", "tools")

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Source:
    """One Python file, parsed."""

    path: str
    text: str
    tree: ast.Module

    @property
    def lines(self) -> int:
        return self.text.count("\n")

    @property
    def layer(self) -> str:
        """The folder below the source root, as ``fwstore/store`` or ``tools/fwstore_cli``."""
        return "/".join(self.path.split("/")[:-1][:2])


@cache
def sources(*roots: str) -> tuple[Source, ...]:
    """All Python files of the roots, in order."""
    found = sorted(path for root in roots for path in (ROOT / root).rglob("*.py"))
    return tuple(_read(path) for path in found)


def _read(path: Path) -> Source:
    text = path.read_text(encoding="utf-8")
    name = path.relative_to(ROOT).as_posix()
    return Source(name, text, ast.parse(text, name))


def functions(source: Source) -> Iterator[tuple[str, Function]]:
    """Every function of a file with its qualified name, nested ones too."""
    yield from _functions(source.tree, source.path + ":")


def _functions(node: ast.AST, prefix: str) -> Iterator[tuple[str, Function]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Function):
            yield prefix + child.name, child
        inside = isinstance(child, Function | ast.ClassDef)
        name = f"{prefix}{child.name}." if isinstance(child, Function | ast.ClassDef) else prefix
        yield from _functions(child, name if inside else prefix)


def classes(source: Source) -> Iterator[ast.ClassDef]:
    """Every class of a file."""
    return (node for node in ast.walk(source.tree) if isinstance(node, ast.ClassDef))


def length(function: Function) -> int:
    """Lines of a function from `def` to its end, its docstring left out."""
    end = function.end_lineno or function.lineno
    total = end - function.lineno + 1
    first = function.body[0]
    if ast.get_docstring(function) is not None and len(function.body) > 1:
        total -= (first.end_lineno or first.lineno) - first.lineno + 1
    return total


def median_length(files: Iterable[Source]) -> float:
    """The median function length of some files; interfaces without a body don't count."""
    lengths = [
        length(function)
        for source in files
        for _, function in functions(source)
        if not _is_interface(function)
    ]
    return statistics.median(lengths) if lengths else 0.0


def _is_interface(function: Function) -> bool:
    last = function.body[-1]
    return isinstance(last, ast.Expr) and isinstance(last.value, ast.Constant)


def imports(source: Source) -> Iterator[tuple[int, str, str]]:
    """Every import as (line, module, name); name is empty for ``import module``."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.lineno, node.module or "", alias.name) for alias in node.names)


def attributes(source: Source, module: str) -> Iterator[tuple[int, str]]:
    """Every ``module.name`` in a file as (line, name)."""
    for node in ast.walk(source.tree):
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == module
        ):
            yield node.lineno, node.attr


def public_methods(node: ast.ClassDef) -> list[str]:
    """The names of the public methods that a class defines itself; properties are data."""
    return [
        child.name
        for child in node.body
        if isinstance(child, Function)
        and not child.name.startswith("_")
        and not any("property" in ast.unparse(mark) for mark in child.decorator_list)
    ]
