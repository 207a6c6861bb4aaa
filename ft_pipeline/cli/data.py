"""Commands about data and where it went: trace, verify, forget, examples show."""

from pathlib import Path
from typing import Annotated

import typer

from ft_pipeline.base.errors import PipelineError
from ft_pipeline.base.project import DEFAULT_RECIPE
from ft_pipeline.cli.options import JsonOption, RecipeOption, SetOption, load, load_all
from ft_pipeline.cli.show import data as data_console
from ft_pipeline.cli.show import lineage as lineage_console
from ft_pipeline.cli.show import run as console

data_app = typer.Typer()
examples_app = typer.Typer(help="Look at examples.", no_args_is_help=True)
data_app.add_typer(examples_app, name="examples")


@data_app.command()
def trace(
    artifact: Annotated[
        str | None,
        typer.Argument(help="Asset, fingerprint (or a prefix of it), or path of a model."),
    ] = None,
    other: Annotated[
        str | None, typer.Argument(help="With --diff: the artifact to compare with.")
    ] = None,
    row: Annotated[
        str | None, typer.Option("--row", help="A row_id: list everything that saw this row.")
    ] = None,
    diff: Annotated[
        bool, typer.Option("--diff", help="Show what differs between two artifacts and their rows.")
    ] = False,
    rows: Annotated[
        Path | None,
        typer.Option("--rows", help="Write the rows to a .csv, .jsonl or .parquet file."),
    ] = None,
    recipe: RecipeOption = DEFAULT_RECIPE,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Trace a model back to its rows, or a row to everything that saw it; compare two models."""
    from ft_pipeline.lineage import records
    from ft_pipeline.lineage import trace as tracing

    given = (artifact is not None, other is not None, row is not None)
    if given != ((True, True, False) if diff else (row is None, False, row is not None)):
        raise PipelineError(
            "trace: give an asset, --row with a row_id, or --diff with two artifacts."
        )
    chain = load(recipe, overrides)
    if row is not None:
        from ft_pipeline.lineage.rows import trace_row

        lineage_console.show_row(row, trace_row(chain, row), as_json)
        return
    found = [records.find_named(chain, word) for word in (artifact, other) if word is not None]
    for named in found:
        if named.note:
            console.note(named.note)
    if diff:
        from ft_pipeline.lineage.diff import compare

        lineage_console.show_difference(compare(chain, found[0], found[1], rows), as_json)
    elif rows is not None:
        console.say(f"Wrote {tracing.export_rows(chain, found[0], rows)} rows to {rows}.")
    else:
        lineage_console.show_artifact(tracing.trace_artifact(chain, found[0]), as_json)


@data_app.command("verify")
def verify_model(
    model: Annotated[
        str, typer.Argument(help="Asset, fingerprint (or a prefix of it), or path of a model.")
    ],
    rebuild: Annotated[
        bool,
        typer.Option(
            "--rebuild", help="Rebuild the model in an empty store and compare every bit."
        ),
    ] = False,
    recipe: RecipeOption = DEFAULT_RECIPE,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Recompute every hash of a model's history, back to the raw files; name any broken link."""
    from ft_pipeline.lineage.records import find_named
    from ft_pipeline.lineage.verify import verify

    chain = load(recipe, overrides)
    found = find_named(chain, model, intact=False)
    if rebuild:
        from ft_pipeline.assets import rebuild as rebuilding

        rebuilt = rebuilding.rebuild(chain, found)
        lineage_console.show_rebuilt(rebuilt, as_json)
        raise typer.Exit(0 if rebuilt.difference is None else 1)
    verdict = verify(chain, found)
    lineage_console.show_verdict(verdict, as_json)
    if verdict.broken:
        raise typer.Exit(1)


@data_app.command()
def forget(
    match: Annotated[
        str, typer.Option("--match", help="Text to find in rows; case does not matter.")
    ],
    source: Annotated[str | None, typer.Option("--source", help="Search only this source.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Write the rows to data/forget.txt.")] = False,
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe", "-r", help="Search only what this recipe reads; default: all recipes."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Find rows by their text; with --yes, exclude them from all future builds."""
    from ft_pipeline.examples.select.forget import FORGET_FILE, add_forgotten
    from ft_pipeline.lineage.row_search import search_rows

    if not match.strip():
        raise PipelineError("forget: --match is empty; it would match every row.")
    chains = load_all() if recipe is None else [load(recipe, None)]
    found, unsearched = search_rows(chains, match, source)
    data_console.show_found_rows(found, as_json)
    if unsearched:
        console.note(f"Not searched, because the store does not have them: {', '.join(unsearched)}")
    if yes and found:
        added = add_forgotten(chains[0].project.root, [row["row_id"] for row in found])
        console.note(f"Added {added} rows to {FORGET_FILE}; the next run leaves them out.")
        if not as_json:
            lineage_console.show_forgotten(chains[0])
    elif found and not as_json:
        console.say(f"Nothing written. Add --yes to write them to {FORGET_FILE}.")


@examples_app.command("show")
def show_examples(
    task: Annotated[
        str | None,
        typer.Option(
            "--task", help="Show only this task: its name, a part of it, or its initials (cot)."
        ),
    ] = None,
    n: Annotated[int, typer.Option("--n", min=1, help="Number of examples per task.")] = 5,
    split: Annotated[
        str | None, typer.Option("--split", "--side", help="Split to show: train or val.")
    ] = None,
    ids: Annotated[
        list[str] | None, typer.Option("--id", help="An example_id, or a prefix of it.")
    ] = None,
    recipe: RecipeOption = DEFAULT_RECIPE,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print prompts and completions; once tokens exist, show the trained ones in colour."""
    from ft_pipeline.lineage.samples import collect_samples

    chain = load(recipe, overrides)
    data_console.show_samples(collect_samples(chain, task, n, split, ids or ()), as_json)
