"""The command `ft-pipeline`: run, status, generate, doctor, refresh, trace, forget, …"""

import gc
import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from ft_pipeline.base.errors import PipelineError, suggest
from ft_pipeline.base.project import DEFAULT_RECIPE, find_project
from ft_pipeline.base.records import write_atomically
from ft_pipeline.base.settings import read_yaml
from ft_pipeline.cli.data import data_app
from ft_pipeline.cli.options import JsonOption, RecipeOption, SetOption, load, require_recipe
from ft_pipeline.cli.show import lineage as lineage_console
from ft_pipeline.cli.show import run as console
from ft_pipeline.cli.show.closing import show_closing
from ft_pipeline.cli.store import store_app
from ft_pipeline.config.recipe import Recipe, check_recipe_name, copy_recipe, parse_recipe
from ft_pipeline.config.sources import load_sources
from ft_pipeline.graph.lookup import Lookup
from ft_pipeline.graph.plan import make_plan

app = typer.Typer(
    name="ft-pipeline",
    help="Fine-tuning as a build: every artifact is versioned by content and rebuilt only when "
    "needed.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
recipe_app = typer.Typer(help="Check, create and describe recipes.", no_args_is_help=True)
app.add_typer(recipe_app, name="recipe")
app.add_typer(data_app)
app.add_typer(store_app)


@app.command()
def run(
    recipe: RecipeOption = DEFAULT_RECIPE,
    to: Annotated[
        str | None,
        typer.Option("--to", help="Build this asset and what it needs; default: the whole chain."),
    ] = None,
    force: Annotated[
        list[str] | None,
        typer.Option("--force", help="Rebuild this asset even if it is up to date."),
    ] = None,
    overrides: SetOption = None,
    no_train: Annotated[
        bool, typer.Option("--no-train", help="Fail instead of training (CI without a GPU).")
    ] = False,
    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="Fail instead of waiting for a busy GPU.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be rebuilt and why; build nothing.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Rebuild what changed in a recipe's chain and show the result."""
    chain = load(recipe, overrides)
    names = chain.upstream(to) if to else chain.names
    for name in force or []:
        chain.rule(name)
        if name not in names:
            raise PipelineError(
                f"--force {name}: --to {to} does not build it. Assets to build: {', '.join(names)}."
            )
    if dry_run:
        from ft_pipeline.graph.estimate import estimate_asset

        states = make_plan(chain, to)
        console.show_plan(states, as_json, forced=tuple(force or ()))
        if not as_json:  # which is the plan alone
            lookup = Lookup(chain)
            for name in chain.trained:
                if name in names:
                    console.show_estimate(name, estimate_asset(lookup, name))
            console.show_teacher(chain, states)
        return
    from ft_pipeline.assets.execution import RunStopped, execute

    if no_train:
        os.environ["FT_NO_TRAIN"] = "1"
    if no_wait:
        os.environ["FT_NO_WAIT"] = "1"
    here = Path.cwd()  # a run goes to the project's root
    try:
        outcome = execute(chain, names, tuple(force or ()))
    except RunStopped as error:
        console.say_stopped(error)
        raise typer.Exit(130) from error  # what a shell has for Ctrl-C
    states = make_plan(chain, to)
    console.show_outcome(chain, outcome, states, as_json)
    if not as_json:
        lineage_console.show_forgotten(chain)
        if not outcome.failures:
            show_closing(chain, states, overrides or (), here)
    if outcome.failures:
        raise typer.Exit(1)


@app.command()
def status(
    recipe: RecipeOption = DEFAULT_RECIPE, overrides: SetOption = None, as_json: JsonOption = False
) -> None:
    """Show each asset: fresh, or stale and why; build time; size."""
    console.show_status(make_plan(load(recipe, overrides)), as_json)


@app.command()
def generate(
    adapters: Annotated[
        list[str] | None,
        typer.Option(
            "--adapter",
            help="ADAPTER[=WEIGHT]: a folder, finetuned_model or RECIPE/finetuned_model; repeat "
            "to combine several. Default: the recipe's finetuned_model.",
        ),
    ] = None,
    base: Annotated[
        bool, typer.Option("--base", help="Use the base model without an adapter.")
    ] = False,
    prompt: Annotated[
        str | None, typer.Option("--prompt", "-p", help="The prompt; default: read standard input.")
    ] = None,
    system: Annotated[
        str | None, typer.Option("--system", help="System turn before the prompt.")
    ] = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            "--max-new-tokens",
            help="Longest answer, in tokens; default, here and below: the recipe's value.",
        ),
    ] = None,
    temperature: Annotated[
        float | None, typer.Option("--temperature", help="0: greedy decoding.")
    ] = None,
    top_p: Annotated[float | None, typer.Option("--top-p", help="Nucleus sampling.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Seed of the sampling.")] = None,
    recipe: RecipeOption = DEFAULT_RECIPE,
    overrides: SetOption = None,
) -> None:
    """Answer a prompt, streaming, with the recipe's model, other adapters or a combination."""
    from ft_pipeline.cli import generate as generation

    chain = load(recipe, overrides)
    sampling = {"max_new_tokens": max_new_tokens, "temperature": temperature}
    sampling |= {"top_p": top_p, "seed": seed}
    asked = generation.read_prompt() if prompt is None else prompt
    task = generation.define_task(chain, tuple(adapters or ()), base, asked, system, sampling)
    if generation.run_in_foreground(task) != 0:
        raise typer.Exit(1)  # the worker has said why


@app.command()
def refresh(
    source: Annotated[
        str | None,
        typer.Argument(help="A source in sources.yaml; default: all sources of the recipe."),
    ] = None,
    recipe: RecipeOption = DEFAULT_RECIPE,
) -> None:
    """Look up the newest revision of sources; the next run builds from it."""
    from ft_pipeline.graph.revisions import resolve_revision

    project = find_project()
    sources = load_sources(project.root)
    if source is not None and source not in sources:
        raise PipelineError(
            f"no source `{source}` in sources.yaml. Declared: {', '.join(sources)}."
            f"{suggest(source, tuple(sources))}"
        )
    asked = load(recipe, None).recipe
    if source is None and asked.use_samples:
        raise PipelineError(
            f"refresh: recipe {recipe} reads the bundled samples (use_samples), which every run "
            "checks anyway. To look up a source's newest revision, name the source: "
            f"{', '.join(asked.sources)}."
        )
    failed = False
    for name in (source,) if source else asked.sources:
        try:
            console.say(f"{name}: {resolve_revision(project, name, sources[name])}")
        except PipelineError as error:
            failed = True
            console.complain(str(error))
    if failed:
        raise typer.Exit(1)


@app.command()
def doctor(as_json: JsonOption = False) -> None:
    """Check Python, library versions, GPU, disk, store, and whether credentials are present."""
    from ft_pipeline.cli.doctor import examine

    findings = examine()
    console.show_findings(findings, as_json)
    if any(finding.state == "error" for finding in findings):
        raise typer.Exit(1)


@recipe_app.command("check")
def check_recipe(
    file: Annotated[
        Path, typer.Argument(help="A recipe file, or the name of a recipe in recipes/.")
    ],
) -> None:
    """Validate a recipe file; build nothing."""
    project = find_project()
    path = file if file.suffix or file.exists() else project.recipe_file(str(file))
    recipe = parse_recipe(read_yaml(path, str(file)), str(file), tuple(load_sources(project.root)))
    console.say(f"{file}: valid. {recipe.description}")


@recipe_app.command("schema")
def print_schema() -> None:
    """Print the JSON Schema of recipes (recipes/schema.json, for completion in editors)."""
    sys.stdout.write(json.dumps(Recipe.model_json_schema(), indent=1) + "\n")


@recipe_app.command("settings")
def print_settings() -> None:
    """Print all settings of recipes and sources as Markdown (docs/settings.md)."""
    from ft_pipeline.config.settings_page import write_page

    sys.stdout.write(write_page())


@recipe_app.command("new")
def new_recipe(
    name: Annotated[str, typer.Argument(help="Name of the new recipe, and prefix of its assets.")],
    original: Annotated[
        str, typer.Option("--from", help="The recipe to copy, such as quiz_llama32_3b for a GPU.")
    ] = DEFAULT_RECIPE,
) -> None:
    """Create recipes/NAME.yaml as a copy of a recipe, without its automation."""
    project = find_project()
    check_recipe_name(name)
    require_recipe(project, original)
    target = project.recipe_file(name)
    if target.exists():
        raise PipelineError(f"{target} already exists. Choose another name, or edit that file.")
    text = project.recipe_file(original).read_text(encoding="utf-8")
    write_atomically(target, copy_recipe(text, name, original))
    console.say(f"Wrote {target}. Edit it, then run: ft-pipeline run --recipe {name} --dry-run")


def main() -> None:
    """Entry point; a PipelineError prints only its message and exits with code 1."""
    # Python's 700 has it search for garbage a tenth of a short run: Dagster's modules and
    # definitions are many objects, and nearly all of them live to the end.
    gc.set_threshold(5_000)
    try:
        app()
    except PipelineError as error:
        console.complain(str(error))
        sys.exit(1)


if __name__ == "__main__":
    main()
