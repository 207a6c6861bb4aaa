"""The decision on each asset's code version: a hash of the code that its work uses.

`code_versions.json` holds, for each asset, its code version and the hash of the syntax trees
(without docstrings and comments) of the project's modules that its work imports. When they change,
the test fails until someone decides: raise `code_version` in rules.py because the result changes,
or keep it because it does not; then `make accept-code` records the decision.
"""

import ast
import hashlib
import json
import sys
from pathlib import Path

from ft_pipeline.rules import RAW, RULES, Rule

ROOT = Path(__file__).resolve().parent.parent
FILE = Path(__file__).with_name("code_versions.json")
# Modules that carry work but do not decide what comes out of it.
WORK_PACKAGES = ("ft_pipeline.sources", "ft_pipeline.examples", "ft_pipeline.worker")
WORK_PACKAGES += ("ft_pipeline.evaluation", "ft_pipeline.jsonl", "ft_pipeline.artifacts")


def collect_modules(roots: tuple[str, ...]) -> list[str]:
    """Return the work modules that `roots` import, directly or not, and the roots."""
    found: set[str] = set()
    waiting = list(roots)
    while waiting:
        module = waiting.pop()
        if module in found or not _is_work(module):
            continue
        found.add(module)
        waiting += _imports(module)
    return sorted(found)


def hash_code(modules: list[str]) -> str:
    """16 hex characters over the syntax trees of modules, without docstrings."""
    digest = hashlib.sha256()
    for module in modules:
        tree = _without_docstrings(ast.parse(_file(module).read_text(encoding="utf-8")))
        digest.update(f"{module}\n{ast.dump(tree)}\n".encode())
    return digest.hexdigest()[:16]


def current() -> dict[str, dict[str, str]]:
    """Return code version and hash for each asset, as the code is now."""
    rules: dict[str, Rule] = {"raw_*": RAW, **RULES}
    return {
        name: {
            "code_version": rule.code_version,
            "hash": hash_code(collect_modules(rule.work)),
        }
        for name, rule in rules.items()
    }


def main() -> None:
    """Record the decision for every asset; say what was decided."""
    recorded = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}
    found = current()
    for name, entry in found.items():
        old = recorded.get(name)
        if old is not None and old["hash"] != entry["hash"]:
            raised = old["code_version"] != entry["code_version"]
            verdict = f"raised to {entry['code_version']}" if raised else "no effect on the result"
            sys.stdout.write(f"{name}: {verdict}\n")
    FILE.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def _is_work(module: str) -> bool:
    inside = any(module == p or module.startswith(f"{p}.") for p in WORK_PACKAGES)
    return inside and _file(module).is_file()


def _file(module: str) -> Path:
    return ROOT / (module.replace(".", "/") + ".py")


def _imports(module: str) -> list[str]:
    names: list[str] = []
    for node in ast.walk(ast.parse(_file(module).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return names


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                node.body = node.body[1:]
    return tree


if __name__ == "__main__":
    main()
