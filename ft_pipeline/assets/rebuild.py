"""Build a model again from its record alone, in an empty store, and compare bit for bit.

The settings are those that were recorded, not those of today's recipe. What came from outside (raw
files, base models) is taken from the store, at the recorded revision; all else is built again, the
teacher's answers too. Code versions, library versions and the lists of forgotten and held-out rows
must be those of then: what differs is named, and nothing is built.
"""

import copy
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ft_pipeline.base.errors import PipelineError
from ft_pipeline.base.hashing import META
from ft_pipeline.base.project import DEFAULT_RECIPE, Project
from ft_pipeline.config.recipe import parse_recipe
from ft_pipeline.graph.chain import Chain, Known, Request, load_other
from ft_pipeline.lineage.receipt import Link
from ft_pipeline.lineage.records import Found, Records
from ft_pipeline.lineage.trace import collect_links
from ft_pipeline.store.artifacts import (
    Ingredients,
    library_versions,
)
from ft_pipeline.store.store import Store

# Which section of the recipe each recorded group of settings is, by asset.
SECTIONS = {
    "prompt_completions": {"examples": "examples"},
    "base_model": {"base_model": "base_model"},
    "teacher_model": {"base_model": "distillation.teacher.model"},
    "train_tokens": {"tokens": "tokens"},
    "finetuned_model": {"training": "training"},
    "student_model": {"student": "distillation.student"},
    "teacher_logits": {"": "distillation"},
    "distilled_model": {"training": "distillation.training", "distillation": "distillation"},
    "ce_model": {"training": "distillation.training"},
}


@dataclass(frozen=True)
class Rebuilt:
    """What came out: each rebuilt artifact's data version then and now, and what differs first."""

    model: str
    versions: dict[str, tuple[str, str]]
    difference: str | None

    def as_record(self) -> dict[str, Any]:
        """Return it for programs."""
        versions = {name: {"then": old, "now": new} for name, (old, new) in self.versions.items()}
        equal = self.difference is None
        return {"model": self.model, "equal": equal, "difference": self.difference} | {
            "data_versions": versions
        }


class RecordedChain(Chain):
    """A chain as it was recorded: what came from outside is in the store, and only there."""

    def __init__(self, chain: Chain, store: Path, links: Mapping[str, Link]) -> None:
        project = Project(chain.project.root, store)
        recipe = restore_recipe(chain, links)
        super().__init__(project, chain.name, recipe, chain.default, chain.sources)
        self.recorded = links
        self.origins = {name: link for name, link in links.items() if not link.inputs}

    def asset(self, name: str) -> str:
        """Return the key that it had, shared ones included."""
        return self.recorded[name].asset if name in self.recorded else super().asset(name)

    def upstream(self, name: str) -> tuple[str, ...]:
        """The asset and all that is built for it."""
        return tuple(given for given in super().upstream(name) if given not in self.origins)

    def list_differences(self, target: str) -> list[str]:
        """Name what is not as recorded: code, libraries, and settings outside the recipe."""
        found = []
        for name in self.upstream(target):
            link, rule = self.recorded.get(name), self.rule(name)
            if link is None or link.ingredients is None:
                found.append(f"{name}: not recorded")
                continue
            today = Ingredients(
                code_version=rule.code_version,
                settings=self.settings(name) | self._revision(name),
                inputs=link.ingredients.inputs,
                libraries=library_versions(rule.libraries),
            )
            found += [f"{name}: {what}" for what in today.differences(link.ingredients)]
        return found

    def request(self, name: str, known: Known | None = None) -> Request:
        link = self.origins.get(name)
        if link is None or link.ingredients is None:
            return super().request(name, known)
        return Request(link.asset, link.ingredients, {})


def rebuild(chain: Chain, found: Found, show_progress: bool) -> Rebuilt:
    """Build an artifact again in a temporary store and compare.

    Raises PipelineError where it cannot be built as it was.
    """
    prefix, _, target = found.link.asset.rpartition("/")
    owner = chain if prefix in ("", chain.name) else load_other(chain, prefix)
    if not prefix and chain.name != DEFAULT_RECIPE:
        owner = chain.default_chain
    links = collect_links(Records(chain.store, found.receipt), found.link)
    twice = [name for name in links if " " in name]
    if twice:
        raise PipelineError(
            f"{found.link.asset} {found.link.fingerprint} was made of two builds of some assets "
            f"({', '.join(twice)} besides): the newer one left a side as it was. Only what has one "
            "build of each behind it can be built again; `ft-pipeline trace` shows them."
        )
    if not found.link.inputs:
        raise PipelineError(
            f"{found.link.asset}: came from outside and is not built here; `verify` checks it."
        )
    with tempfile.TemporaryDirectory(prefix="ft-pipeline-rebuild-") as folder:
        recorded = RecordedChain(owner, Path(folder) / "store", links)
        differences = recorded.list_differences(target)
        if differences:
            raise PipelineError(
                f"{found.link.asset} {found.link.fingerprint} cannot be built again as it was "
                f"(recorded → today): {'; '.join(differences)}."
            )
        _copy_origins(chain.store, recorded)
        _run(recorded, target, Path(folder), show_progress)
        return _compare(recorded, target, found.link)


def restore_recipe(chain: Chain, links: Mapping[str, Link]) -> Any:
    """Return today's recipe with all settings that were recorded put in their places."""
    data = copy.deepcopy(chain.recipe.model_dump(mode="json"))
    for name, sections in SECTIONS.items():
        link = links.get(name)
        if link is None or link.ingredients is None:
            continue
        for group, section in sections.items():
            settings = link.ingredients.settings
            _put(data, section, settings[group] if group else _own_settings(settings))
    logits = links.get("teacher_logits")
    if logits is not None and logits.ingredients is not None:
        teacher = logits.ingredients.settings["teacher"]
        kept = ("precision", "quantization") if "teacher_model" in links else ("precision",)
        _put(data, "distillation.teacher", {name: teacher[name] for name in kept})
    origin = f"the record of {chain.name}"
    return parse_recipe(data, origin, tuple(chain.sources))


def _own_settings(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name != "teacher"}


def _put(data: dict[str, Any], section: str, settings: dict[str, Any]) -> None:
    """Lay recorded settings over a section; fields that the asset does not read stay."""
    *parents, last = section.split(".")
    node = data
    for part in parents:
        node[part] = node.get(part) or {}
        node = node[part]
    node[last] = (node.get(last) or {}) | settings


def _copy_origins(store: Store, recorded: RecordedChain) -> None:
    for link in recorded.origins.values():
        artifact = store.find(link.asset, link.fingerprint)
        if artifact is None or artifact.data_version != link.data_version:
            raise PipelineError(
                f"{link.asset} {link.fingerprint} (data version {link.data_version}) is not in "
                f"{store.root}. It came from outside; without it nothing can be built again."
            )
        target = recorded.store.folder(link.asset, link.fingerprint)
        shutil.copytree(artifact.path, target)


def _run(recorded: RecordedChain, target: str, folder: Path, show_progress: bool) -> None:
    """Build in a Dagster instance of its own, so that the history of the project has no part."""
    from ft_pipeline.assets.execution import execute

    (folder / "dagster").mkdir()
    settings = "telemetry: {enabled: false}\n"
    (folder / "dagster" / "dagster.yaml").write_text(settings, encoding="utf-8")
    os.environ["DAGSTER_HOME"] = str(folder / "dagster")
    outcome = execute(recorded, target, (), show_progress)
    if outcome.failures:
        raise PipelineError(f"rebuilding {recorded.asset(target)}: {' '.join(outcome.failures)}")


def _compare(recorded: RecordedChain, target: str, model: Link) -> Rebuilt:
    versions: dict[str, tuple[str, str]] = {}
    difference = None
    for name in recorded.upstream(target):
        then = recorded.recorded[name]
        (now,) = recorded.store.manifests(then.asset)
        versions[then.asset] = (then.data_version, now.data_version)
        if difference is None and now.data_version != then.data_version:
            entries = {n: entry.sha256 for n, entry in now.files.items()}
            names = [n for n in sorted(then.files.keys() | entries) if not n.startswith(META)]
            file = next((n for n in names if then.files.get(n) != entries.get(n)), "content")
            difference = (
                f"{then.asset}: {file}: then sha256 {then.files.get(file, 'no file')}, "
                f"now {entries.get(file, 'no file')}"
            )
    return Rebuilt(f"{model.asset} {model.fingerprint}", versions, difference)
