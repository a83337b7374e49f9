"""The options of `misotune eval`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from misotune.cli import completion

Language = Literal["zh", "en"]

_JUDGE = "ComplexBench's judge"
_NEEDLE = "The needle test"
_ENDPOINT = "Another server's model"
_HARNESS = "Tasks of lm-eval"

Tasks = Annotated[
    list[str],
    typer.Argument(
        metavar="TASK",
        help="ifeval, ifeval-flatten, complexbench, needle, squad, squad_v2, quac, drop, starter; or any task of "
        "lm-eval, such as gsm8k, mmlu, humaneval_instruct.",
        autocompletion=completion.tasks,
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        metavar="MODEL",
        help="A run (its name in runs/, or its folder), a folder with a model or adapter, or a hub id. "
        "(default: the newest finished run)",
        autocompletion=completion.runs,
    ),
]
Data = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="The task's prompts: its published file, .gz too. (default: the hub's; complexbench and needle need it)",
    ),
]
Responses = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Score these responses, no model: JSONL of prompt or key, and response; ComplexBench's published files.",
    ),
]
Limit = Annotated[int | None, typer.Option(metavar="N", min=1, help="Only the first so many prompts. (default: all)")]
Out = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Result folder. (default: RUN/scores/TASK or scores/MODEL/TASK)"),
]
MaxNewTokens = Annotated[
    int | None,
    typer.Option(metavar="N", min=1, help="Longest response in tokens. (default: the task's own)"),
]
BatchSize = Annotated[int | None, typer.Option(metavar="N", min=1, help="Prompts generated at once. (default: 128)")]
NumProcesses = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=1,
        help="Processes, each with the whole model on a GPU of its own; on a CPU they share the cores. "
        "(default: as many as GPUs can be seen; 1 on a CPU)",
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option(metavar="TYPE", help="auto (as the weights are stored), bfloat16 or float32. (default: auto)"),
]
Fresh = Annotated[
    bool, typer.Option("--fresh", help="Generate all responses anew, those kept from an interrupted evaluation too.")
]
Endpoint = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="Ask --model NAME on this OpenAI-compatible server, as http://127.0.0.1:8000.",
        rich_help_panel=_ENDPOINT,
    ),
]
ApiKeyEnv = Annotated[
    str | None,
    typer.Option(metavar="VARIABLE", help="Environment variable with the server's key.", rich_help_panel=_ENDPOINT),
]
Concurrency = Annotated[
    int | None, typer.Option(metavar="N", min=1, help="Requests at a time. (default: 8)", rich_help_panel=_ENDPOINT)
]
Base = Annotated[
    bool,
    typer.Option(
        "--base",
        help="Score the model that the run started from, too, and say what training gained or lost. Its scores are "
        "kept in the run.",
    ),
]
NumFewshot = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=0,
        help="Examples in front of each question. (default: the task's own number)",
        rich_help_panel=_HARNESS,
    ),
]
IncludePath = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Your own tasks, as YAML files.", rich_help_panel=_HARNESS),
]
RunModelCode = Annotated[
    bool,
    typer.Option(
        "--run-model-code",
        help="Agree that programs which the model writes are run on this machine, without a sandbox (humaneval, mbpp).",
        rich_help_panel=_HARNESS,
    ),
]
Flatten = Annotated[bool, typer.Option("--flatten", help="With ifeval: also score IFEval-Flatten.")]
Indicator = Annotated[
    bool,
    typer.Option(
        "--indicator", help="Mark every prompt's last user turn with the indicator, of a model trained with it."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the scores as JSON.")]
Offline = Annotated[bool, typer.Option("--offline", help="Do not use the network.")]
Compare = Annotated[
    list[Path] | None,
    typer.Option(metavar="RESULT", help="Also compare with these results, or evaluated runs; may be repeated."),
]
JudgeEndpoint = Annotated[
    str | None, typer.Option(metavar="URL", help="OpenAI-compatible server of the judge.", rich_help_panel=_JUDGE)
]
JudgeModel = Annotated[
    str | None, typer.Option(metavar="NAME", help="The judge, as its server calls it.", rich_help_panel=_JUDGE)
]
JudgeApiKeyEnv = Annotated[
    str | None,
    typer.Option(metavar="VARIABLE", help="Environment variable with the judge's key.", rich_help_panel=_JUDGE),
]
JudgeCache = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Where its answers are kept. (default: scores/.cache/judge.sqlite)", rich_help_panel=_JUDGE
    ),
]
JudgePrompts = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="ComplexBench's evaluation/prompts. (default: in the repository of --data)",
        rich_help_panel=_JUDGE,
    ),
]
JudgeConcurrency = Annotated[
    int | None, typer.Option(metavar="N", min=1, help="Questions at a time. (default: 8)", rich_help_panel=_JUDGE)
]
LanguageName = Annotated[
    str,
    typer.Option(
        "--language", metavar="NAME", help="Of ComplexBench's instructions: zh or en.", rich_help_panel=_JUDGE
    ),
]
NeedleLengths = Annotated[
    int,
    typer.Option(metavar="N", min=2, help="Number of document lengths; the paper has 20.", rich_help_panel=_NEEDLE),
]
NeedleDepths = Annotated[
    int, typer.Option(metavar="N", min=2, help="Number of depths; the paper has 20.", rich_help_panel=_NEEDLE)
]
NeedleMinLength = Annotated[
    int,
    typer.Option(metavar="N", min=1, help="Shortest document in the model's tokens.", rich_help_panel=_NEEDLE),
]
NeedleMaxLength = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=1,
        help="Longest document. (default: what the context leaves, at most 8000)",
        rich_help_panel=_NEEDLE,
    ),
]
Tokenizer = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Counts lengths where --endpoint or --responses answer: a folder, a run or a hub id.",
        rich_help_panel=_NEEDLE,
    ),
]
