"""The pieces of the study: what each is called, its commands, and what is read from the folders that they leave."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks.study.forms import BASE, BASELINE, FOLDER, MODELS, PROBES, Form
from benchmarks.study.rows import read_jsonl

IFEVAL, FLATTEN = TASKS = ("ifeval", "ifeval-flatten")
CONSTRAINT_TYPE = "constraint type"
# In the commands of a dry run, where the rate is not known yet.
BEST = "BEST"


@dataclass(frozen=True)
class Training:
    """A model that is trained and scored.

    Attributes:
        kind: `rate` is scored on the validation split, `run` on IFEval's prompts.
        model: Its name.
        variant: The recipe's name.
        seed: Of the run.
        rate: The learning rate; None: the best, which is not known yet.
    """

    kind: Literal["rate", "run"]
    model: str
    variant: str
    seed: int
    rate: float | None

    @property
    def name(self) -> str:
        what = f"rate-{self.rate:g}" if self.kind == "rate" else f"seed-{self.seed}"
        return f"{self.model}-{self.variant}-{what}"

    @property
    def recipe(self) -> Path:
        return FOLDER / "recipes" / f"{self.variant}.yaml"

    def scores_base(self, form: Form) -> bool:
        """Whether the model that training starts from is scored in the same go: with the first baseline."""
        is_first = self.kind == "run" and self.variant == BASELINE and self.seed == form.seeds[0]
        return is_first and form.scores_base

    def tasks(self, form: Form) -> tuple[str, ...]:
        """Returns what a run is scored on: IFEval and IFEval-Flatten, a probe IFEval alone."""
        return TASKS[:1] if form.is_probe or self.variant in PROBES else TASKS

    def train_command(self, form: Form, models: Path) -> list[str]:
        """Returns the command that trains it; `--resume` is for the caller to add."""
        return [
            *("train", str(self.recipe), f"name={self.name}", f"seed={self.seed}"),
            *(f"model.name={models / self.model}", *MODELS[self.model]),
            f"data.path=data/{'rate' if self.kind == 'rate' else 'train'}",
            f"train.learning_rate={BEST if self.rate is None else f'{self.rate:g}'}",
            *form.training,
        ]

    def eval_command(self, form: Form, ifeval: Path) -> list[str]:
        """Returns the command that scores it."""
        options = ["--model", f"runs/{self.name}", "--max-new-tokens", str(form.max_new_tokens), *form.evaluation]
        if self.kind == "rate":
            task = ["eval", "ifeval", "--data", "rows/validation.jsonl", "--out", f"scores/validation/{self.name}"]
            limit = form.rate_limit
        else:
            task = ["eval", "ifeval", *(["--flatten"] if len(self.tasks(form)) > 1 else []), "--data", str(ifeval)]
            limit = form.limit
        base = ["--base"] if self.scores_base(form) else []
        return [*task, *options, *base, *([] if limit is None else ["--limit", str(limit)])]

    def score_folders(self, form: Form) -> dict[str, Path]:
        """Returns the result folder of each task, below the study's folder."""
        if self.kind == "rate":
            return {"validation": Path("scores", "validation", self.name)}
        return {task: Path("runs", self.name, "scores", task) for task in self.tasks(form)}

    def base_folders(self, form: Form) -> dict[str, Path]:
        """Returns the same for the model that the run started from."""
        return {task: Path("runs", self.name, "scores", BASE, task) for task in self.tasks(form)}


def read_training(run: Path) -> dict[str, Any]:
    """Returns what a run was trained on and what it cost, out of its `plan.json` and `metrics.jsonl`.

    `train_s` is the time from the first step's start to the last step's end, of all processes of a run that was
    stopped and went on; what was done again after the last checkpoint counts twice.
    """
    plan = json.loads((run / "plan.json").read_text(encoding="utf-8"))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    clocks = [line["elapsed_s"] for line in lines]
    ends = [now for now, after in zip(clocks, [*clocks[1:], 0.0], strict=True) if after < now]
    return {
        "rows": plan["data"]["rows"],
        "samples": plan["data"]["samples"],
        "dropped": plan["data"]["dropped"],
        "inputs_per_sample": plan["inputs_per_sample"]["mean"],
        "steps": plan["steps"],
        "tokens": plan["tokens"],
        "trained_tokens": plan["trained_tokens"],
        "kernel": plan["kernel"],
        "last_loss": lines[-1]["loss"],
        "train_s": round(sum(ends), 1),
        "peak_memory_gib": max(line["peak_memory_gib"] for line in lines),
    }


def read_scores(folder: Path) -> dict[str, Any]:
    """Returns what the result keeps of a `scores.json`, and the verdicts that every other test can be made of.

    `verdicts` has a word for each prompt in the order of the file of prompts, a digit for each of its constraints.
    """
    scores = json.loads((folder / "scores.json").read_text(encoding="utf-8"))
    kept = ("num_prompts", "figures", "settings", "generation", "prompts_sha256", "versions", "notes")
    samples = list(read_jsonl(folder / "samples.jsonl"))
    verdicts = {
        kind: " ".join("".join(str(int(met)) for met in sample[kind]) for sample in samples)
        for kind in ("strict", "loose")
    }
    types = scores["groups"][CONSTRAINT_TYPE]
    return {key: scores[key] for key in kept} | {"types": types, "verdicts": verdicts}


def read_comparison(printed: str, variants: list[str]) -> dict[str, dict[str, Any]]:
    """Returns, by variant, what is kept of the JSON that `misotune compare` printed against the first result."""
    comparison = json.loads(printed)
    return {
        variant: {
            "task": comparison["task"],
            "method": comparison["method"],
            "num_prompts": pair["num_prompts"],
            "overall": pair["overall"],
            "types": [
                line for line in pair["tables"].get(CONSTRAINT_TYPE, []) if line["metric"] == "inst_level_strict_acc"
            ],
            "notes": pair["notes"],
        }
        for variant, pair in zip(variants, comparison["pairs"], strict=True)
    }
