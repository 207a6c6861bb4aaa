"""The decision on each asset's code version: a hash of the code that its work uses.

`code_versions.json` holds, for each asset, its code version and the hash of all definitions that
its work reaches: the functions and classes that the rule's `work` names, what those mention, and so
on through the whole package, less `LEFT_OUT`. When they change, a test fails until someone decides:
raise `code_version` in the asset's rule because the result changes, or keep it because it does not;
then `make accept-code` records the decision.

A definition is hashed as its syntax tree. Docstrings, comments, descriptions of settings and of
assets, and words of errors and log lines change nothing.
"""

import ast
import hashlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ft_pipeline.graph.asset_rules import RULES

ROOT = Path(__file__).resolve().parent.parent
FILE = Path(__file__).with_name("code_versions.json")
# Modules and definitions that an asset's work mentions, and that have no say in its content.
LEFT_OUT = {
    "ft_pipeline.assets.build": "asks the store, starts the work, publishes what it left",
    "ft_pipeline.assets.sources:_read_facts": "what a page shows of raw files; kept in meta/",
    "ft_pipeline.assets.sources:preview_table": "what a page shows",
    "ft_pipeline.graph.chain": "decides what is asked for, and that is the fingerprint itself",
    "ft_pipeline.graph.lookup": "finds what was asked for by its fingerprint",
    "ft_pipeline.store.checks": "a check's result is kept under the check's own version",
    "ft_pipeline.base.errors": "words of errors",
    "ft_pipeline.graph.estimate": "shown before a training, and in metadata",
    "ft_pipeline.process.launch": "starts and ends the worker",
    "ft_pipeline.base.project": "where the project's folders are",
    "ft_pipeline.store.remote": "a second place for what the store keeps",
    "ft_pipeline.graph.asset_rules": "its settings and inputs are the fingerprint itself",
    "ft_pipeline.base.settings": "reads declared values, which are in the fingerprint as read",
    "ft_pipeline.store.store": "keeps content by its hash and makes none",
    "ft_pipeline.process.tracking.start": "copies metrics to a tracker",
}


@dataclass(frozen=True)
class Definition:
    """A top-level function, class or constant of a module; "" stands for its other statements."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}:{self.name}"


class Code:
    """The definitions of a package below a folder, and what each of them mentions."""

    def __init__(self, root: Path = ROOT) -> None:
        self._root = root
        self._modules: dict[str, _Module | None] = {}

    def reach(self, roots: tuple[str, ...]) -> list[Definition]:
        """Return the definitions that `roots` reach, sorted by name.

        A root is `module:name`, or a module for all that is in it. Raises LookupError where there
        is none.
        """
        found: set[Definition] = set()
        waiting = [definition for root in roots for definition in self._find_root(root)]
        while waiting:
            current = waiting.pop()
            if current in found or not {current.module, str(current)}.isdisjoint(LEFT_OUT):
                continue
            found.add(current)
            # Statements of a module run whoever imports it.
            waiting += [Definition(current.module, ""), *self._mentions(current)]
        return sorted(found, key=lambda each: (each.name, each.module))

    def hash(self, definitions: list[Definition]) -> str:
        """16 hex characters over the syntax trees of definitions; where they stand has no say."""
        trees = sorted(f"{d.name}\n{dump}" for d in definitions for dump in self._dumps(d))
        return hashlib.sha256("\n".join(trees).encode()).hexdigest()[:16]

    def _find_root(self, root: str) -> list[Definition]:
        module, _, name = root.partition(":")
        parsed = self._module(module)
        if parsed is None or (name and name not in parsed.definitions):
            raise LookupError(f"{root}: no such module or definition below {self._root}")
        names = [name] if name else list(parsed.definitions)
        return [Definition(module, each) for each in names]

    def _mentions(self, definition: Definition) -> Iterator[Definition]:
        parsed = self._module(definition.module)
        assert parsed is not None, "only modules that exist are reached"
        for tree in parsed.definitions.get(definition.name, []):
            for node in ast.walk(tree):
                if isinstance(node, ast.Name):
                    yield from self._resolve(definition.module, node.id)
                elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                    yield from self._resolve(definition.module, node.value.id, node.attr)
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield from self._resolve_text(node.value)

    def _resolve(self, module: str, name: str, attribute: str = "") -> Iterator[Definition]:
        """Yield what a name of a module stands for, through imports."""
        parsed = self._module(module)
        if parsed is None:
            return
        if name in parsed.definitions:
            yield Definition(module, name)
        target = parsed.imports.get(name, "")
        if not target.startswith("ft_pipeline."):
            return
        if self._module(target) is not None:
            yield from self._resolve(target, attribute) if attribute else ()
        else:
            yield from self._resolve(*target.rsplit(".", 1))

    def _resolve_text(self, text: str) -> Iterator[Definition]:
        """Yield the module that a text names, whole: it is imported by that name."""
        if text.startswith("ft_pipeline.") and self._module(text) is not None:
            yield from self._find_root(text)

    def _dumps(self, definition: Definition) -> list[str]:
        parsed = self._module(definition.module)
        assert parsed is not None, "only modules that exist are reached"
        return [ast.dump(_strip(tree)) for tree in parsed.definitions.get(definition.name, [])]

    def _module(self, name: str) -> "_Module | None":
        if name not in self._modules:
            file = self._root / (name.replace(".", "/") + ".py")
            self._modules[name] = (
                _parse(file.read_text(encoding="utf-8")) if file.is_file() else None
            )
        return self._modules[name]


@dataclass(frozen=True)
class _Module:
    """Top-level definitions by name, and what imports bring in by name."""

    definitions: dict[str, list[ast.stmt]]
    imports: dict[str, str]


def _parse(source: str) -> _Module:
    tree = ast.parse(source)
    definitions: dict[str, list[ast.stmt]] = {}
    for node in tree.body:
        for name in _names(node):
            definitions.setdefault(name, []).append(node)
    imports: dict[str, str] = {}
    for inner in ast.walk(tree):
        if isinstance(inner, ast.Import):
            imports |= {alias.asname: alias.name for alias in inner.names if alias.asname}
        elif isinstance(inner, ast.ImportFrom) and inner.module:
            imports |= {a.asname or a.name: f"{inner.module}.{a.name}" for a in inner.names}
    return _Module(definitions, imports)


def _names(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.Import | ast.ImportFrom) or _is_text(node):
        return []
    if isinstance(node, ast.If) and getattr(node.test, "id", "") in ("TYPE_CHECKING", "__name__"):
        return []
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    named = [t.id for t in targets if isinstance(t, ast.Name)]
    return [name for name in named if name not in ("logger", "__all__")] if named else [""]


def _is_text(node: ast.stmt) -> bool:
    constant = node.value if isinstance(node, ast.Expr) else None
    return isinstance(constant, ast.Constant) and isinstance(constant.value, str)


class _Stripped(ast.NodeTransformer):
    """Takes away what has no say: docstrings, descriptions, imports, words of errors and logs."""

    def generic_visit(self, node: ast.AST) -> ast.AST:
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and _is_text(body[0]):
            node.body = body[1:]  # type: ignore[attr-defined]
        return super().generic_visit(node)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.AST:
        return ast.Pass()  # where something stands has no say; what is used is mentioned

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        return _without_texts(node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        if isinstance(node.func, ast.Attribute) and getattr(node.func.value, "id", "") == "logger":
            return ast.Constant(value=None)
        node.keywords = [k for k in node.keywords if k.arg != "description"]
        return self.generic_visit(node)


def _without_texts(tree: ast.AST) -> ast.AST:
    class _Textless(ast.NodeTransformer):
        def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.AST:
            return ast.Constant(value="")

        def visit_Constant(self, node: ast.Constant) -> ast.AST:
            return ast.Constant(value="") if isinstance(node.value, str) else node

        def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
            return ast.Constant(value="")

    return _Textless().visit(tree)


def _strip(tree: ast.AST) -> ast.AST:
    return _Stripped().visit(ast.parse(ast.unparse(tree)))


def current(root: Path = ROOT) -> dict[str, dict[str, str]]:
    """Return code version and hash for each asset, as the code below `root` is now."""
    code = Code(root)
    return {
        name: {"code_version": rule.code_version, "hash": code.hash(code.reach(rule.work))}
        for rule in RULES
        for name in rule.names
    }


def recorded() -> dict[str, dict[str, str]]:
    """Return what was decided last."""
    return dict(json.loads(FILE.read_text(encoding="utf-8"))) if FILE.exists() else {}


def main() -> None:
    """Record the decision for every asset; say what was decided."""
    old, found = recorded(), current()
    for name, entry in found.items():
        if name in old and old[name]["hash"] != entry["hash"]:
            raised = old[name]["code_version"] != entry["code_version"]
            verdict = f"raised to {entry['code_version']}" if raised else "no effect on the result"
            sys.stdout.write(f"{name}: {verdict}\n")
    FILE.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
