"""Build a model again from its record alone, in an empty store, and compare bit for bit.

The recipe is the one that was recorded, not today's. What came from outside (raw files, base
models) is taken from the store, at the recorded revision; all else is built again, the teacher's
answers too. Code versions, library versions, how sources are read and the lists of forgotten and
held-out rows must be those of then: what differs is named, and nothing is built.
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


@dataclass(frozen=True)
class RebuildPlan:
    """What is built again (`names`), and what is taken as it was (the links without inputs)."""

    lookup: Lookup
    links: Mapping[str, Link]
    names: tuple[str, ...]
    run_id: str

    @property
    def origins(self) -> dict[str, Link]:
        return {name: link for name, link in self.links.items() if not link.inputs}


def rebuild(chain: Chain, found: Found) -> Rebuilt:
    """Build an artifact again in a temporary store and compare.

    Raises PipelineError where it cannot be built as it was.
    """
    if not found.link.inputs:
        raise PipelineError(
            f"{found.link.asset}: came from outside and is not built here; `verify` checks it."
        )
    with tempfile.TemporaryDirectory(prefix="ft-pipeline-rebuild-") as folder:
        plan = plan_rebuild(chain, found, Path(folder))
        differences = list_differences(plan)
        if differences:
            raise PipelineError(
                f"{found.link.asset} {found.link.fingerprint} cannot be built again as it was "
                f"(recorded → today): {'; '.join(differences)}."
            )
        _run(plan, found.link.name, Path(folder))
        return _compare(plan, found.link)


def plan_rebuild(chain: Chain, found: Found, folder: Path) -> RebuildPlan:
    """Lay what came from outside into an empty store below `folder`, and say what is built on it.

    Raises PipelineError where the record does not suffice, or what it names is not stored.
    """
    links = _collect_behind(chain, found)
    plan = _make_plan(chain, found, links, folder)
    _lay_origins(open_store(chain), plan)
    return plan


def _collect_behind(chain: Chain, found: Found) -> dict[str, Link]:
    """Return an artifact and all behind it by name. Raises where an asset is there twice."""
    links = collect_links(Records(open_store(chain), found.receipt), found.link)
    twice = [name for name in links if " " in name]
    if twice:
        raise PipelineError(
            f"{found.link.asset} {found.link.fingerprint} was made of two builds of some assets "
            f"({', '.join(twice)} besides): the newer one left a split as it was. Only what has "
            "one build of each behind it can be built again; `ft-pipeline trace` shows them."
        )
    return links


def _make_plan(chain: Chain, found: Found, links: Mapping[str, Link], folder: Path) -> RebuildPlan:
    """Make the recorded recipe the only one of an empty store, with the revisions of then."""
    record = found.receipt.recipe if found.receipt else read_recipe(found.folder)
    if record is None:
        raise PipelineError(
            f"{found.link.asset} {found.link.fingerprint}: the recipe that it was built by is not "
            "recorded with it (an older version built it), so it cannot be built again."
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
    """Copy what came from outside into the empty store, as what is asked for today."""
    for name, link in plan.origins.items():
        artifact = store.find(*link.key)
        if artifact is None or artifact.data_version != link.data_version:
            raise PipelineError(
                f"{link.asset} {link.fingerprint} (data version {link.data_version}) is not in "
                f"{store.root}. It came from outside; without it nothing can be built again."
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
    """Name what is not as recorded: code, libraries, and settings outside the recipe."""
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
    """Build in a Dagster instance of its own, so that the history of the project has no part."""
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
                f"{then.asset}: {file}: then sha256 {then.files.get(file, 'no file')}, "
                f"now {entries.get(file, 'no file')}"
            )
    return Rebuilt(f"{model.asset} {model.fingerprint}", versions, difference)
