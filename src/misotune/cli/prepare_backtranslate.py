"""`misotune prepare backtranslate`: plain instruction-response pairs -> rows with constraints they already meet."""

from pathlib import Path
from typing import Annotated

import typer

from misotune.cli.prepare_options import (
    DATA_ROOT,
    DEDUPES,
    JOINS,
    THINKS,
    DataOption,
    DecontaminateOption,
    DedupeOption,
    FailAboveOption,
    JoinOption,
    JsonOption,
    LimitOption,
    MapOption,
    MaxDroppedOption,
    ModeOption,
    RevisionOption,
    SeedOption,
    SourceArgument,
    SplitOption,
    ThinkOption,
    WorkersOption,
    num_workers,
    one_of,
    parse_evaluation_sets,
    parse_map,
    parse_thresholds,
)
from misotune.errors import UsageError
from misotune.samples import MODES


def backtranslate(
    source: SourceArgument,
    mode: ModeOption = "para",
    data: DataOption = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder to write. (default: data/NAME-backtranslated-MODE)")
    ] = None,
    split: SplitOption = "train",
    revision: RevisionOption = None,
    limit: LimitOption = None,
    join: JoinOption = None,
    columns: MapOption = None,
    think: ThinkOption = "output",
    min_constraints: Annotated[
        int, typer.Option(metavar="N", min=1, help="Rows whose response meets fewer constraints keep one input.")
    ] = 2,
    max_constraints: Annotated[int, typer.Option(metavar="N", min=1, help="Constraints of a row at most.")] = 5,
    seed: SeedOption = 0,
    workers: WorkersOption = None,
    as_json: JsonOption = False,
    dedupe: DedupeOption = "exact",
    decontaminate: DecontaminateOption = None,
    fail_above: FailAboveOption = None,
    max_dropped: MaxDroppedOption = None,
) -> None:
    """Add constraints that the responses already meet, each verified, to plain instruction-response pairs."""
    chosen_mode = one_of("--mode", mode, MODES)
    chosen_join = None if join is None else one_of("--join", join, JOINS)
    if min_constraints > max_constraints:
        raise UsageError(f"--min-constraints {min_constraints}: is more than --max-constraints {max_constraints}")
    thresholds = parse_thresholds(fail_above, max_dropped)

    from misotune.cli.prepare_report import Progress, next_command, print_json, print_result
    from misotune.data.backtranslate.build import Backtranslation
    from misotune.data.prepare import PrepareSettings, prepare_dataset
    from misotune.data.sources.registry import find_source

    found = find_source(
        source, data, columns=parse_map(columns), think=one_of("--think", think, THINKS), revision=revision
    )
    settings = PrepareSettings(
        mode=chosen_mode,
        seed=seed,
        join=chosen_join,
        limit=limit,
        fail_above=thresholds,
        split=split,
        dedupe=one_of("--dedupe", dedupe, DEDUPES),
        decontaminate=parse_evaluation_sets(decontaminate),
        workers=num_workers(workers),
    )
    step = Backtranslation(seed, min_constraints, max_constraints, chosen_join, settings.workers)
    described = {
        "constraints": "backtranslate",
        "min_constraints": min_constraints,
        "max_constraints": max_constraints,
    }
    target = out or DATA_ROOT / f"{found.name}-backtranslated-{mode}"
    with Progress(found.name) as progress:
        prepared = prepare_dataset(
            found, target, settings, [step], progress.show_row, progress.show_dropped, described=described
        )
        for note in step.notes:
            progress.show(note)
    if as_json:
        print_json(prepared)
    else:
        print_result(prepared, f"{found.name}, back-translated, {mode}", next_command(target, source, chosen_mode))
