"""The chain of docs/context-awareness.md, end to end, by misotune's own commands: score, mark, train, evaluate.

    python benchmarks/context_awareness.py --model FOLDER --data ../shared/data --threshold 0.35

Rows of Alpaca and ShareGPT are scored with the model that is trained afterwards; two runs of
recipes/context_awareness.yaml, without (`plain`) and with the indicator (`marked`), differ in nothing else. The model
as it was (`base`), `plain`, and `marked` without and with `--indicator` answer the needle test, SQuAD, QuAC, DROP; the
needle test also steered. A step whose result is there is left out, so that a stopped chain goes on. One JSON line for
each result goes to --out, and `misotune compare` writes its pages below --work.
"""

import argparse
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from attention import environment

TASKS = {
    "needle": "haystack/paul_graham_essays.jsonl.gz",
    "squad_v2": "qa/squad_v2_dev_subset.json.gz",
    "quac": "qa/quac_sample.json",
    "drop": "qa/drop_sample.json",
}
ALPACA, SHAREGPT = "chat/alpaca_en_demo.json.gz", "chat/sharegpt_sample.jsonl.gz"
# Other than in recipes/context_awareness.yaml: for a chat model of 135 million parameters and hundreds of rows.
CHANGES = (
    *("model.chat_template=null", "data.max_length=1024", "train.epochs=1", "train.batch_size=16"),
    *("train.learning_rate=1e-4", "train.gradient_checkpointing=false", "train.save_every_steps=null"),
)


@dataclass(frozen=True)
class Answering:
    """Who answers: its name here, the model for `misotune eval`, and options."""

    name: str
    model: str
    options: tuple[str, ...] = ()


def main() -> None:
    options = parse_arguments()
    options.work.mkdir(parents=True, exist_ok=True)
    files = {name: (options.data / path).resolve() for name, path in TASKS.items()}
    mark(options)
    for name, rows in (("plain", "rows.jsonl"), ("marked", "marked")):
        train(options, name, rows)
    base = Answering("base", options.model)
    plain, marked = Answering("plain", "runs/plain"), Answering("marked", "runs/marked")
    indicated = Answering("marked-indicator", "runs/marked", ("--indicator",))
    for answering in (base, plain, marked, indicated):
        for task in TASKS:
            evaluate(options, answering, task, files[task])
    for alpha in options.steer:
        evaluate(
            options, Answering(f"base-steer-{alpha}", options.model, ("--steer", alpha)), "needle", files["needle"]
        )
        evaluate(
            options, Answering(f"plain-steer-{alpha}", "runs/plain", ("--steer", alpha)), "needle", files["needle"]
        )
    for task in TASKS:
        compare(options, task)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a chat model's folder: it scores, and it is trained")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--work", type=Path, default=Path("context-awareness"), help="runs, datasets, scores")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/cpu/context_awareness.jsonl"))
    parser.add_argument("--threshold", required=True, help="of the scores of this model; look at them first")
    parser.add_argument("--layers", default=None, help="as of misotune inspect dependency")
    parser.add_argument("--alpaca", type=int, default=400, help="rows")
    parser.add_argument("--sharegpt", type=int, default=24, help="rows")
    parser.add_argument("--limit", type=int, default=120, help="questions of a task")
    parser.add_argument("--needle", nargs=3, type=int, default=(4, 5, 2000), metavar=("LENGTHS", "DEPTHS", "MAX"))
    parser.add_argument("--steer", nargs="*", default=["0.95"], metavar="ALPHA")
    options = parser.parse_args()
    if Path(options.model).is_dir():
        options.model = str(Path(options.model).resolve())
    options.out, options.work = options.out.resolve(), options.work.resolve()
    options.recipe = str(Path("recipes/context_awareness.yaml").resolve())
    return options


def misotune(options: argparse.Namespace, *arguments: object) -> float:
    """Runs a command in the working folder, and returns the seconds that it took."""
    words = [str(argument) for argument in arguments]
    print("$ misotune", *words, flush=True)
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "misotune", *words], cwd=options.work, check=True)
    return time.perf_counter() - start


def mark(options: argparse.Namespace) -> None:
    """Makes `rows.jsonl`, scored, and `marked`, the same with the indicator."""
    for name, path, limit in (("alpaca", ALPACA, options.alpaca), ("sharegpt", SHAREGPT, options.sharegpt)):
        scored = options.work / f"{name}.jsonl"
        if scored.exists():
            continue
        source = (options.data / path).resolve()
        misotune(
            options, "prepare", source, "--mode", "sft", "--limit", limit, "--out", f"data/{name}", "--max-dropped", 1
        )
        layers = () if options.layers is None else ("--layers", options.layers)
        misotune(
            *(options, "inspect", "dependency", options.model, f"data/{name}", "--out", f"inspect/{name}"),
            *("--write", scored.name, "--max-length", 1024, "--threshold", options.threshold, *layers),
        )
    rows = options.work / "rows.jsonl"
    rows.write_text("".join((options.work / f"{name}.jsonl").read_text() for name in ("alpaca", "sharegpt")))
    if not (options.work / "marked").exists():
        misotune(options, "prepare", "indicator", "rows.jsonl", "--threshold", options.threshold, "--out", "marked")


def train(options: argparse.Namespace, name: str, rows: str) -> None:
    if (options.work / "runs" / name / "final").exists():
        return
    keys = (f"name={name}", f"model.name={options.model}", f"data.path={rows}", *CHANGES)
    started = ("--resume",) if (options.work / "runs" / name / "checkpoints").exists() else ()
    misotune(options, "train", options.recipe, *keys, *started)


def evaluate(options: argparse.Namespace, answering: Answering, task: str, file: Path) -> None:
    folder = options.work / "scores" / answering.name / task
    if (folder / "scores.json").exists():
        return
    limits = ("--limit", options.limit)
    if task == "needle":
        num_lengths, num_depths, longest = options.needle
        limits = ("--needle-lengths", num_lengths, "--needle-depths", num_depths, "--needle-max-length", longest)
    command = ("eval", task, "--model", answering.model, "--data", file, "--out", folder, *limits, *answering.options)
    seconds = misotune(options, *command)
    scores = json.loads((folder / "scores.json").read_text())
    kept = ("task", "num_prompts", "figures", "settings", "generation", "prompts_sha256", "versions")
    record = {
        **environment("cpu" if scores["settings"]["device"] == "cpu" else "cuda"),
        "model": Path(options.model).name,
        "answers": answering.name,
        "threshold": float(options.threshold),
        "rows": {"alpaca": options.alpaca, "sharegpt": options.sharegpt},
        "training": list(CHANGES),
        **{key: scores[key] for key in kept},
        "command_s": round(seconds, 1),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with options.out.open("a") as out:
        out.write(json.dumps(record, ensure_ascii=False) + "\n")


def compare(options: argparse.Namespace, task: str) -> None:
    """Writes the comparisons that the page tells of: what training, the indicator and steering changed."""
    pairs = [("base", "plain"), ("plain", "marked-indicator"), ("marked", "marked-indicator")]
    if task == "needle":
        pairs += [(name, f"{name}-steer-{alpha}") for name in ("base", "plain") for alpha in options.steer]
    for one, other in pairs:
        folder = options.work / "compared" / f"{task}-{one}-{other}"
        if not folder.exists():
            misotune(options, "compare", f"scores/{one}/{task}", f"scores/{other}/{task}", "--out", folder)


if __name__ == "__main__":
    main()
