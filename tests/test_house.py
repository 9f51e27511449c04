"""The rules of the house that no tool checks: sizes, docstrings, and a map that is the territory."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("kintsugi", "jobs", "pipeline", "samplers", "priors", "operators")


@cache
def trees() -> dict[str, ast.Module]:
    """The product's files by their paths."""
    return {
        str(file.relative_to(ROOT)): ast.parse(file.read_text(encoding="utf-8"))
        for folder in FOLDERS
        for file in sorted((ROOT / folder).rglob("*.py"))
        if folder != "kintsugi" or file.parent == ROOT / folder  # its folders are links to the others
    }


FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def definitions(node: ast.AST, name: str, public: bool = True) -> Iterator[tuple[str, Definition, bool]]:
    """(name, node, whether it is public) of all functions and classes within, nested ones too."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (*FUNCTION, ast.ClassDef)):
            own, seen = f"{name}:{child.name}", public and not child.name.startswith("_")
            yield own, child, seen
            yield from definitions(child, own, seen and isinstance(child, ast.ClassDef))
        else:
            yield from definitions(child, name, public)


def attributes(node: ast.ClassDef) -> set[str]:
    """The annotated fields of a class, and what its methods assign to self."""
    fields = {
        s.target.id
        for s in node.body
        if isinstance(s, ast.AnnAssign)
        and isinstance(s.target, ast.Name)
        and "ClassVar" not in ast.unparse(s.annotation)
    }
    assigned = {
        n.attr
        for s in node.body
        if isinstance(s, FUNCTION)
        for n in ast.walk(s)
        if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store) and ast.unparse(n.value) == "self"
    }
    return fields | assigned


def faults(file: str, tree: ast.Module, lines: int) -> Iterator[str]:
    """What is too large in a file, or public without a docstring."""
    if lines > 400:
        yield f"{file}: {lines} lines"
    for name, node, public in definitions(tree, file):
        length = (node.end_lineno or 0) - node.lineno + 1
        if length > (200 if isinstance(node, ast.ClassDef) else 60):
            yield f"{name}: {length} lines"
        if isinstance(node, ast.ClassDef) and len(attributes(node)) > 12:
            yield f"{name}: {len(attributes(node))} attributes"
        if public and not ast.get_docstring(node):
            yield f"{name}: no docstring"


def test_no_room_is_too_large_and_each_has_its_sign():
    found = [
        fault
        for file, tree in trees().items()
        for fault in faults(file, tree, len((ROOT / file).read_text(encoding="utf-8").splitlines()))
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("code", "fault"),
    [
        ("def f():\n" + "    1\n" * 60, "file:f: 61 lines"),
        ("class _A:\n" + "    1\n" * 200, "file:_A: 201 lines"),
        ("class _A:\n" + "".join(f"    a{i}: int\n" for i in range(13)), "file:_A: 13 attributes"),
        ("class A:\n    ''' '''\n    @property\n    def x(self): ...", "file:A:x: no docstring"),
        ("if 1:\n    def f(): ...", "file:f: no docstring"),
    ],
)
def test_what_breaks_a_rule_is_found(code, fault):
    assert fault in list(faults("file", ast.parse(code), 1))
    assert list(faults("file", ast.parse("def _f():\n    def g(): ..."), 401)) == ["file: 401 lines"]


def test_the_map_names_every_module_and_nothing_else():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named, folder = [], ""
    for line in text.splitlines():
        if heading := re.fullmatch(r"\*\*`(.+/)`\*\*", line):
            folder = heading[1]
        elif entry := re.match(r"- `(\S+\.py)` ", line):
            named.append(folder + entry[1])
    # Of the metrics of images the map names the folder: a new one is one file and nothing else.
    ours = [file for file in trees() if not re.match(r"pipeline/metrics/images/(?!__init__)", file)]
    assert sorted(named) == sorted(ours)
