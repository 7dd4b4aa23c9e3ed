"""The house rules, held by the machine: sizes, doors, names, layers, public surface.

A rule has no list of exceptions; the figures in ratchet.json only go down.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from io import StringIO

import pytest

from architecture import ratchet
from architecture.survey import (
    ROOT,
    SHIPPED,
    Source,
    attributes,
    classes,
    functions,
    imports,
    length,
    median_length,
    public_methods,
    sources,
)

FILE_LINES_MAX = 500
FUNCTION_LINES_MAX = 60
FUNCTION_MEDIAN_MAX = 8
PUBLIC_METHODS_MAX = 15

# A module that only the named places may import.
DOORS = {
    "time": ("fwstore/base/clock.py", "integrations/fwstore_torch/saver.py", "tools/fwstore_demo/"),
    "random": ("fwstore/base/ids.py", "integrations/fwstore_torch/", "tools/fwstore_demo/"),
    "secrets": (),
    "uuid": (),
    "threading": (
        "fwstore/sched/",
        "integrations/fwstore_torch/",
        "tools/fwstore_demo/link.py",
    ),
    "queue": ("fwstore/sched/",),
    "multiprocessing": ("tools/fwstore_demo/",),
    "asyncio": ("tools/fwstore_demo/link.py",),
    "pickle": ("tools/fwstore_migrate/unpickler.py", "integrations/fwstore_torch/"),
    "cPickle": (),
    "cloudpickle": (),
    "dill": (),
    "marshal": (),
    "shelve": (),
    "yaml": (),
}
ENVIRONMENT = (
    "fwstore/base/config.py",
    "fwstore/base/ids.py",
    "integrations/fwstore_torch/",
    "tools/fwstore_demo/",
)
FRAMEWORKS = ("torch", "boto3", "botocore", "zarr", "tensorstore", "fsspec", "pyarrow")
AVOIDED = {"blob", "item", "data", "manager", "handler", "utils", "util", "helper", "helpers"}
PRESCRIBED = {"read_data", "write_data"}  # by the storage interface of DCP
UNFINISHED = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")


def _report(found: Iterator[str]) -> None:
    problems = sorted(found)
    assert not problems, "\n" + "\n".join(problems)


def test_files_are_short() -> None:
    _report(
        f"{source.path} has {source.lines} lines; at most {FILE_LINES_MAX}: split it by idea"
        for source in sources(*SHIPPED, "tests", "benchmarks")
        if source.lines > FILE_LINES_MAX
    )


def test_functions_are_short() -> None:
    _report(
        f"{name} has {length(function)} lines; at most {FUNCTION_LINES_MAX}"
        for source in sources(*SHIPPED, "tests", "benchmarks")
        for name, function in functions(source)
        if length(function) > FUNCTION_LINES_MAX
    )


def test_classes_are_small() -> None:
    _report(
        f"{source.path}:{node.lineno} {node.name} has {len(public_methods(node))} public methods"
        for source in sources(*SHIPPED)
        for node in classes(source)
        if len(public_methods(node)) > PUBLIC_METHODS_MAX
    )


def test_every_module_says_why_it_exists() -> None:
    _report(
        f"{source.path} has no docstring"
        for source in sources(*SHIPPED, "benchmarks")
        if not ast.get_docstring(source.tree)
    )


def test_every_public_name_is_documented() -> None:
    _report(
        f"{source.path}:{node.lineno} {node.name} has no docstring"
        for source in sources(*SHIPPED)
        for node in _public_definitions(source.tree)
        if not ast.get_docstring(node)
    )


def _public_definitions(
    parent: ast.Module | ast.ClassDef,
) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    for node in parent.body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        if node.name.startswith("_") or _is_overload(node):
            continue
        yield node
        if isinstance(node, ast.ClassDef):
            yield from _public_definitions(node)


def _is_overload(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> bool:
    names = {ast.unparse(decorator) for decorator in node.decorator_list}
    return any(name == "overload" or name.endswith((".setter", ".overload")) for name in names)


def test_one_door_for_time_chance_threads_and_code() -> None:
    _report(
        f"{source.path}:{line} imports {module}; its door is {' or '.join(doors) or 'closed'}"
        for source in sources(*SHIPPED)
        for line, module, _ in imports(source)
        for banned, doors in DOORS.items()
        if module.split(".")[0] == banned and not source.path.startswith(doors or ("-",))
    )


def test_one_door_for_the_environment() -> None:
    _report(
        f"{source.path}:{line} reads os.{name}"
        for source in sources(*SHIPPED)
        if not source.path.startswith(ENVIRONMENT)
        for line, name in attributes(source, "os")
        if name in ("environ", "getenv", "putenv", "urandom")
    )


def test_the_core_executes_no_stored_code() -> None:
    banned = {"eval", "exec", "compile", "__import__"}
    _report(
        f"{source.path}:{node.lineno} calls {node.func.id}"
        for source in sources(*SHIPPED)
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in banned
    )


def test_names_are_nouns_of_the_design() -> None:
    _report(
        f"{source.path}:{node.lineno} {node.name}: avoid {', '.join(sorted(avoided))}"
        for source in sources(*SHIPPED)
        for node in ast.walk(source.tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        and node.name not in PRESCRIBED
        if (avoided := _words(node.name) & AVOIDED)
    )
    _report(
        f"{source.path}: avoid {source.path.rsplit('/', 1)[-1]} as a module name"
        for source in sources(*SHIPPED)
        if _words(source.path.rsplit("/", 1)[-1].removesuffix(".py")) & AVOIDED
    )


def _words(name: str) -> set[str]:
    parts = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).split("_")
    return {part.lower() for part in parts if part}


def test_nothing_is_left_unfinished() -> None:
    _report(
        f"{source.path}:{line} {text.strip()[:80]}"
        for source in sources(*SHIPPED, "benchmarks")
        for line, text in _comments(source)
        if UNFINISHED.search(text)
    )
    _report(
        f"{source.path}:{node.lineno} raises NotImplementedError"
        for source in sources(*SHIPPED)
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Raise) and "NotImplementedError" in ast.unparse(node)
    )


def _comments(source: Source) -> Iterator[tuple[int, str]]:
    for token in tokenize.generate_tokens(StringIO(source.text).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def test_no_error_is_swallowed_whole() -> None:
    _report(
        f"{source.path}:{node.lineno} swallows every error"
        for source in sources(*SHIPPED)
        for node in ast.walk(source.tree)
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or ast.unparse(node.type) in ("Exception", "BaseException"))
        and all(isinstance(step, ast.Pass | ast.Continue) for step in node.body)
    )


def test_no_test_is_skipped() -> None:
    banned = ("pytest.skip", "pytest.mark.skip", "pytest.mark.xfail", "pytest.importorskip")
    _report(
        f"{source.path}:{node.lineno} {ast.unparse(node)}"
        for source in sources("tests")
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node).startswith(banned)
    )


def test_tools_and_integrations_use_public_names_only() -> None:
    public = set(_exported())
    _report(
        f"{source.path}:{line} uses {module}{'.' if name else ''}{name}, which is not public"
        for source in sources("integrations", "tools")
        for line, module, name in _private_uses(source, public)
    )


def _private_uses(source: Source, public: set[str]) -> Iterator[tuple[int, str, str]]:
    for line, module, name in imports(source):
        if module.startswith("fwstore.") or (module == "fwstore" and name and name not in public):
            yield line, module, name
    for line, name in attributes(source, "fwstore"):
        if name not in public:
            yield line, "fwstore", name


def _exported() -> list[str]:
    tree = ast.parse((ROOT / "fwstore" / "__init__.py").read_text(encoding="utf-8"))
    for statement in tree.body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "__all__":
            return list(ast.literal_eval(statement.value))
    return []


def test_public_names_are_sorted_and_locked() -> None:
    exported = _exported()
    assert exported == sorted(set(exported))
    locked = (ROOT / "tests" / "architecture" / "public_names.txt").read_text(encoding="utf-8")
    assert exported == locked.split(), (
        "fwstore.__all__ changed: that is a change of the public API; if it is meant, "
        "update tests/architecture/public_names.txt and the changelog"
    )


@pytest.mark.slow
def test_importing_the_core_imports_no_framework() -> None:
    code = (
        "import sys, fwstore\n"
        f"print(*[name for name in {FRAMEWORKS!r} if name in sys.modules])\n"
        "assert [name for name in fwstore.__all__ if not hasattr(fwstore, name)] == []\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


def test_functions_are_short_on_the_whole() -> None:
    shipped = sources(*SHIPPED)
    layers = {source.layer for source in shipped}
    medians = {name: median_length(s for s in shipped if s.layer == name) for name in layers}
    _report(f"{name}: {value:g}" for name, value in medians.items() if value > FUNCTION_MEDIAN_MAX)


def test_figures_only_improve() -> None:
    measured, allowed = ratchet.measure(), ratchet.remembered()
    assert measured.keys() == allowed.keys()
    _report(
        f"{name}: {value}, but {allowed[name]} was reached before"
        for name, value in measured.items()
        if value > allowed[name]
    )
