"""`misotune prepare mixture`: several sources -> one dataset, by weights or as mixed instructions."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from misotune.cli import completion
from misotune.cli.prepare_options import (
    DATA_ROOT,
    DEDUPES,
    DecontaminateOption,
    DedupeOption,
    FailAboveOption,
    JsonOption,
    MaxDroppedOption,
    WorkersOption,
    num_workers,
    one_of,
    parse_evaluation_sets,
    parse_thresholds,
)

if TYPE_CHECKING:
    from misotune.data.account import Account


def mixture(
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE",
            help="A mixture file, or the name of a shipped one: chat_code_math_tools.",
            autocompletion=completion.mixtures,
        ),
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Values in place of the file's, as seed=1.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder to write. (default: data/NAME, NAME the mixture's)")
    ] = None,
    workers: WorkersOption = None,
    as_json: JsonOption = False,
    dedupe: DedupeOption = "exact",
    decontaminate: DecontaminateOption = None,
    fail_above: FailAboveOption = None,
    max_dropped: MaxDroppedOption = None,
) -> None:
    """Mix several sources into one dataset, by weights or in chunks of one instruction of each domain."""
    thresholds = parse_thresholds(fail_above, max_dropped)
    chosen_dedupe = one_of("--dedupe", dedupe, DEDUPES)
    sets = parse_evaluation_sets(decontaminate)

    from misotune.cli.prepare_report import Progress, print_json, print_mixture
    from misotune.data.mixture.build import prepare_mixture
    from misotune.data.mixture.spec import load_mixture
    from misotune.data.prepare import PrepareSettings
    from misotune.recipe.loading import find_mixture

    found = load_mixture(find_mixture(recipe), overrides or [])
    settings = PrepareSettings(
        mode=found.file.mode,
        seed=found.file.seed,
        fail_above=thresholds,
        dedupe=chosen_dedupe,
        decontaminate=sets,
        workers=num_workers(workers),
    )
    with Progress(found.file.name) as progress:

        def show_row(source: str, account: "Account") -> None:
            progress.show_row(account, source)

        prepared = prepare_mixture(found, out or DATA_ROOT / found.file.name, settings, show_row, progress.show_dropped)
    if as_json:
        print_json(prepared, mixture=prepared.shares.to_dict())
    else:
        print_mixture(prepared, f"{found.file.name}, {found.file.mode}")
