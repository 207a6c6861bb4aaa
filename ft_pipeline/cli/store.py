"""The store's command: gc."""

from typing import Annotated

import typer

from ft_pipeline.base.errors import PipelineError
from ft_pipeline.cli.options import JsonOption, load_all, require_recipe
from ft_pipeline.cli.show import run as console
from ft_pipeline.graph.lookup import open_store

store_app = typer.Typer()


@store_app.command(name="gc")
def collect_garbage(
    keep: Annotated[
        int,
        typer.Option(
            "--keep", min=0, help="How many of the newest unneeded artifacts of each asset to keep."
        ),
    ] = 1,
    forgotten: Annotated[
        bool,
        typer.Option("--forgotten", help="List instead what holds rows named in data/forget.txt."),
    ] = False,
    yes: Annotated[
        bool, typer.Option("--yes", help="Remove the items that go; without this, only list them.")
    ] = False,
    recipe: Annotated[
        str | None,
        typer.Option("--recipe", "-r", help="Consider only this recipe's artifacts; default: all."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List what no recipe needs any more, and why the rest stays; with --yes, remove it."""
    from ft_pipeline.gc import forgotten as purge
    from ft_pipeline.gc import plan as garbage

    chains = load_all()
    if recipe is not None:
        require_recipe(chains[0].project, recipe)
        if forgotten:
            raise PipelineError("gc: --forgotten covers all recipes; leave out --recipe.")
    store = open_store(chains[0])
    items = purge.plan_purge(chains) if forgotten else garbage.plan_removal(chains, keep, recipe)
    pushed = purge.list_pushed(store, items) if forgotten else []  # known before it is removed
    refused = (purge.purge if forgotten else garbage.remove)(store, items) if yes else []
    console.show_garbage(items, refused, yes, as_json, pushed)
    if forgotten and not as_json:
        for place in pushed:
            console.say(f"Still in the remote, where ft-pipeline deletes nothing: {place}")
        console.say(
            "Rows may also be outside the store: in previews in Dagster's history (`dagster run "
            "wipe` clears it), in trackers, and in copies that someone made."
        )
