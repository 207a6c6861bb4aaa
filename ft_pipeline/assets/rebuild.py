"""Rebuild a model from nothing but its record, in an empty store, and compare bit for bit.

The recorded recipe applies, not today's. What came from outside (raw files, base models) is copied
from the store, at the recorded revision; everything else is rebuilt, including the teacher's
answers. Code versions, library versions, the way sources are read and the lists of forgotten and
held-out rows must match the record: any difference is named, and nothing is built.
"""

import os
import shutil
import tempfile
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ft_pipeline.base.errors import PipelineError
from ft_pipeline.base.hashing import META
from ft_pipeline.base.project import DEFAULT_RECIPE, Project
from ft_pipeline.config.recipe import parse_recipe
from ft_pipeline.graph.chain import Chain
from ft_pipeline.graph.lookup import Lookup, open_store
from ft_pipeline.graph.pins import Pins
from ft_pipeline.lineage.receipt import Link, read_recipe
from ft_pipeline.lineage.records import Found, Records
from ft_pipeline.lineage.trace import collect_links
from ft_pipeline.store.artifacts import MANIFEST, Ingredients, library_versions
from ft_pipeline.store.store import Store


@dataclass(frozen=True)
class Rebuilt:
    """The result: data versions of the rebuilt artifacts, then and now; the first difference."""

    model: str
    versions: dict[str, tuple[str, str]]
    difference: str | None

    def as_record(self) -> dict[str, Any]:
        """Return the result for JSON output."""
        versions = {name: {"then": old, "now": new} for name, (old, new) in self.versions.items()}
        equal = self.difference is None
        return {"model": self.model, "equal": equal, "difference": self.difference} | {
            "data_versions": versions
        }


@dataclass(frozen=True)
class RebuildPlan:
    """What to rebuild (`names`), and what to copy (the links without inputs)."""

    lookup: Lookup
    links: Mapping[str, Link]
    names: tuple[str, ...]
    run_id: str

    @property
    def origins(self) -> dict[str, Link]:
        return {name: link for name, link in self.links.items() if not link.inputs}


def rebuild(chain: Chain, found: Found) -> Rebuilt:
    """Rebuild an artifact in a temporary store and compare.

    Raises PipelineError if it cannot be rebuilt as it was.
    """
    if not found.link.inputs:
        raise PipelineError(
            f"{found.link.asset}: comes from outside and cannot be rebuilt; `ft-pipeline verify` "
            "checks it."
        )
    with tempfile.TemporaryDirectory(prefix="ft-pipeline-rebuild-") as folder:
        plan = plan_rebuild(chain, found, Path(folder))
        differences = list_differences(plan)
        if differences:
            raise PipelineError(
                f"{found.link.asset} {found.link.fingerprint} cannot be rebuilt as it was "
                f"(recorded → today): {'; '.join(differences)}."
            )
        _run(plan, found.link.name, Path(folder))
        return _compare(plan, found.link)


def plan_rebuild(chain: Chain, found: Found, folder: Path) -> RebuildPlan:
    """Copy what came from outside into an empty store below `folder`; plan what to build from it.

    Raises PipelineError if the record is incomplete, or what it names is not stored.
    """
    links = _collect_behind(chain, found)
    plan = _make_plan(chain, found, links, folder)
    _lay_origins(open_store(chain), plan)
    return plan


def _collect_behind(chain: Chain, found: Found) -> dict[str, Link]:
    """Return an artifact and all it was made from, by name. Raises if an asset occurs twice."""
    links = collect_links(Records(open_store(chain), found.receipt), found.link)
    twice = [name for name in links if " " in name]
    if twice:
        raise PipelineError(
            f"{found.link.asset} {found.link.fingerprint} was made from two builds of some assets "
            f"(the second: {', '.join(twice)}), because a newer build left a split unchanged. "
            "Only artifacts made from one build of each asset can be rebuilt; `ft-pipeline trace` "
            "shows the builds."
        )
    return links


def _make_plan(chain: Chain, found: Found, links: Mapping[str, Link], folder: Path) -> RebuildPlan:
    """Make the recorded recipe the only one of an empty store, with the recorded revisions."""
    record = found.receipt.recipe if found.receipt else read_recipe(found.folder)
    if record is None:
        raise PipelineError(
            f"{found.link.asset} {found.link.fingerprint}: its recipe was not recorded (it was "
            "built by an older version), so it cannot be rebuilt."
        )
    origin = f"the record of {found.link.asset}"
    recipe = parse_recipe(record.settings, origin, tuple(chain.sources))
    project = Project(chain.project.root, folder / "store")
    recorded = Chain(project, DEFAULT_RECIPE, recipe, recipe, chain.sources)
    run_id = str(uuid.uuid4())
    pins = Pins(project.store / "pins" / run_id)
    origins = {name for name, link in links.items() if not link.inputs}
    pins.set({recorded.asset(name): _revision_of(links[name]) for name in origins})
    names = [name for name in recorded.upstream(found.link.name) if name not in origins]
    return RebuildPlan(Lookup(recorded, pins), links, tuple(names), run_id)


def _revision_of(link: Link) -> dict[str, Any]:
    settings = link.ingredients.settings if link.ingredients else {}
    return {name: value for name, value in settings.items() if name == "revision"}


def _lay_origins(store: Store, plan: RebuildPlan) -> None:
    """Copy what came from outside into the empty store, under today's fingerprints."""
    for name, link in plan.origins.items():
        artifact = store.find(*link.key)
        if artifact is None or artifact.data_version != link.data_version:
            raise PipelineError(
                f"{link.asset} {link.fingerprint} (data version {link.data_version}) is not in "
                f"{store.root}. It comes from outside; nothing can be rebuilt without it."
            )
        # Its source may be declared otherwise by now: another address, or as a sample.
        request = plan.lookup.state(name).require_request()
        target = plan.lookup.store.folder(request.asset, request.fingerprint)
        shutil.copytree(artifact.path, target)
        given = {"asset": request.asset, "fingerprint": request.fingerprint}
        manifest = artifact.manifest.model_copy(
            update={**given, "ingredients": request.ingredients}
        )
        (target / MANIFEST).write_text(manifest.model_dump_json(indent=1), encoding="utf-8")


def list_differences(plan: RebuildPlan) -> list[str]:
    """List differences from the record: code, libraries, and settings outside the recipe."""
    found = []
    chain = plan.lookup.chain
    for name in plan.names:
        link, rule = plan.links.get(name), chain.rule(name)
        if link is None or link.ingredients is None:
            found.append(f"{name}: not recorded")
            continue
        today = Ingredients(
            code_version=rule.code_version,
            settings=chain.settings(name) | plan.lookup.find_revision(name),
            inputs=link.ingredients.inputs,
            libraries=library_versions(rule.libraries),
        )
        found += [f"{name}: {what}" for what in today.differences(link.ingredients)]
    return found


def _run(plan: RebuildPlan, target: str, folder: Path) -> None:
    """Build in a separate Dagster instance, independent of the project's history."""
    from ft_pipeline.assets.execution import execute

    (folder / "dagster").mkdir()
    settings = "telemetry: {enabled: false}\n"
    (folder / "dagster" / "dagster.yaml").write_text(settings, encoding="utf-8")
    os.environ["DAGSTER_HOME"] = str(folder / "dagster")
    outcome = execute(plan.lookup.chain, plan.names, (), plan.run_id)
    if outcome.failures:
        raise PipelineError(f"rebuilding {target}: {' '.join(outcome.failures)}")


def _compare(plan: RebuildPlan, model: Link) -> Rebuilt:
    versions: dict[str, tuple[str, str]] = {}
    difference = None
    for name in plan.names:
        then = plan.links[name]
        (now,) = plan.lookup.store.manifests(plan.lookup.chain.asset(name))
        versions[then.asset] = (then.data_version, now.data_version)
        if difference is None and now.data_version != then.data_version:
            entries = {n: entry.sha256 for n, entry in now.files.items()}
            names = [n for n in sorted(then.files.keys() | entries) if not n.startswith(META)]
            file = next((n for n in names if then.files.get(n) != entries.get(n)), "content")
            difference = (
                f"{then.asset}: {file}: was sha256 {then.files.get(file, 'no file')}, is now "
                f"{entries.get(file, 'no file')}"
            )
    return Rebuilt(f"{model.asset} {model.fingerprint}", versions, difference)
