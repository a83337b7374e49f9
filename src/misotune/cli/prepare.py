"""`misotune prepare`: source rows -> multi-input dataset. A group whose unnamed form prepares a source."""

import difflib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from misotune.cli import prepare_backtranslate, prepare_indicator, prepare_mixture
from misotune.cli.command import Command, Group
from misotune.cli.prepare_options import (
    DATA_ROOT,
    DEDUPES,
    DEFAULT_MIN_CONFIDENCE,
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
    OutOption,
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

if TYPE_CHECKING:
    from misotune.chat.api import AskProgress
    from misotune.cli.prepare_report import Progress
    from misotune.data.prepare import Step

_UNNAMED = "source"
_DECOMPOSES = ("rules", "llm")
_PROGRESS_ANSWERS = 100
# One for all datasets: the same question to the same model is asked once.
ANSWERS = DATA_ROOT / ".cache" / "answers.sqlite"
_DECOMPOSITION = "Decomposition of instructions that list no constraints"


class _Group(Group):
    """A group that takes anything but the name of a subcommand as the arguments of its unnamed command."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args and ctx.resilient_parsing:  # the shell asks what may follow
            return super().parse_args(ctx, args)
        args = args or ["--help"]
        if args[0] in self.commands:
            return super().parse_args(ctx, args)
        near = difflib.get_close_matches(args[0], self.commands.keys() - {_UNNAMED}, n=1, cutoff=0.8)
        if near and not Path(args[0]).exists():
            raise UsageError(f"unknown source {args[0]!r}: did you mean misotune prepare {near[0]}?")
        return super().parse_args(ctx, [_UNNAMED, *args])

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        name, command, rest = super().resolve_command(ctx, args)
        return "" if name == _UNNAMED else name, command, rest

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        """Offers the sources and options of the unnamed command, too."""
        unnamed = self.commands[_UNNAMED]
        if incomplete.startswith("-"):
            return unnamed.shell_complete(ctx, incomplete)
        return [*unnamed.params[0].shell_complete(ctx, incomplete), *super().shell_complete(ctx, incomplete)]


class _UnnamedCommand(Command):
    """A command whose usage line does not show the name that it has not."""

    def get_usage(self, ctx: Any) -> str:
        return super().get_usage(ctx).replace("  [", " [")


app = typer.Typer(cls=_Group)


@app.command(_UNNAMED, cls=_UnnamedCommand, hidden=True)
def prepare(
    source: SourceArgument,
    mode: ModeOption = "para",
    data: DataOption = None,
    out: OutOption = None,
    split: SplitOption = "train",
    revision: RevisionOption = None,
    limit: LimitOption = None,
    join: JoinOption = None,
    columns: MapOption = None,
    think: ThinkOption = "input",
    keep_reverse: Annotated[
        bool, typer.Option("--keep-reverse", help="Keep Crab's rows of the auxiliary task, with one input.")
    ] = False,
    min_confidence: Annotated[
        float,
        typer.Option(
            metavar="SHARE", min=0, max=1, help="Crab rows that are split less surely than this keep one input."
        ),
    ] = DEFAULT_MIN_CONFIDENCE,
    seed: SeedOption = 0,
    workers: WorkersOption = None,
    as_json: JsonOption = False,
    decompose: Annotated[
        str | None,
        typer.Option(
            metavar="HOW",
            help="rules: lists, 'make sure', 'do not' and the like; llm: ask the model at --endpoint.",
            rich_help_panel=_DECOMPOSITION,
        ),
    ] = None,
    endpoint: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="An OpenAI-compatible server, as http://localhost:8000/v1.",
            rich_help_panel=_DECOMPOSITION,
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="The model on that server.", rich_help_panel=_DECOMPOSITION)
    ] = None,
    api_key_env: Annotated[
        str | None,
        typer.Option(
            metavar="VARIABLE", help="Environment variable with the server's key.", rich_help_panel=_DECOMPOSITION
        ),
    ] = None,
    concurrency: Annotated[
        int, typer.Option(metavar="N", min=1, help="Requests at a time.", rich_help_panel=_DECOMPOSITION)
    ] = 8,
    dedupe: DedupeOption = "exact",
    decontaminate: DecontaminateOption = None,
    fail_above: FailAboveOption = None,
    max_dropped: MaxDroppedOption = None,
) -> None:
    """Make a multi-input dataset out of instruction data.

    \b
    misotune prepare SOURCE                 the rows of a source, file or hub data set
    misotune prepare backtranslate SOURCE   plain pairs, with constraints that the responses already meet
    misotune prepare mixture RECIPE         several sources, by weights or as mixed instructions
    misotune prepare indicator DATASET      a scored dataset, its context-dependent turns marked
    """  # noqa: D301 (typer's mark for a paragraph that keeps its lines)
    chosen_mode = one_of("--mode", mode, MODES)
    chosen_join = None if join is None else one_of("--join", join, JOINS)
    thresholds = parse_thresholds(fail_above, max_dropped)
    chosen_decompose = None if decompose is None else one_of("--decompose", decompose, _DECOMPOSES)
    if (chosen_decompose == "llm") != (endpoint is not None and model is not None):
        raise UsageError("--decompose llm, --endpoint URL and --model NAME belong together")

    from misotune.cli.prepare_report import Progress, next_command, print_json, print_result
    from misotune.data.prepare import PrepareSettings, prepare_dataset
    from misotune.data.sources.registry import find_source

    found = find_source(
        source,
        data,
        columns=parse_map(columns),
        think=one_of("--think", think, THINKS),
        keep_reverse=keep_reverse,
        min_confidence=min_confidence,
        revision=revision,
    )
    settings = PrepareSettings(
        mode=chosen_mode,
        seed=seed,
        join=chosen_join,
        limit=limit,
        fail_above=thresholds,
        split=split,
        decompose_by_rules=chosen_decompose == "rules",
        dedupe=one_of("--dedupe", dedupe, DEDUPES),
        decontaminate=parse_evaluation_sets(decontaminate),
        workers=num_workers(workers),
    )
    target = out or DATA_ROOT / f"{found.name}-{mode}"
    with Progress(found.name) as progress:
        steps: list[Step] = []
        described: dict[str, Any] = {}
        if endpoint is not None and model is not None:
            steps.append(_llm_step(endpoint, model, api_key_env, concurrency, progress))
            described = {"decompose": "llm", "endpoint": endpoint, "model": model}
        prepared = prepare_dataset(
            found, target, settings, steps, progress.show_row, progress.show_dropped, described=described
        )
    if as_json:
        print_json(prepared)
    else:
        print_result(prepared, f"{found.name}, {mode}", next_command(target, found.name, chosen_mode))


def _llm_step(endpoint: str, model: str, api_key_env: str | None, concurrency: int, progress: "Progress") -> "Step":
    from misotune.chat.server import Server, read_api_key
    from misotune.data.decompose.llm import LlmDecomposition

    server = Server(endpoint, model, api_key=read_api_key(api_key_env), concurrency=concurrency)

    def show(asked: "AskProgress") -> None:
        if asked.done % _PROGRESS_ANSWERS == 0:
            progress.show(f"{asked.done:,} answers, {asked.cached:,} of them known, {asked.failed:,} failed")

    return LlmDecomposition(server, ANSWERS, on_progress=show)


app.command("backtranslate", cls=Command)(prepare_backtranslate.backtranslate)
app.command("mixture", cls=Command)(prepare_mixture.mixture)
app.command("indicator", cls=Command)(prepare_indicator.indicator)
