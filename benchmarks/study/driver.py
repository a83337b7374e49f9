"""The study at work: what is left to do, by misotune's commands, and one result for each piece that is done."""

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path

import yaml
from benchmarks.study import rows
from benchmarks.study.forms import BASE, BASELINE, FOLDER, PROBES, RATE_SEED, VARIANTS, Form
from benchmarks.study.pieces import IFEVAL, TASKS, Training, read_comparison, read_scores, read_training
from benchmarks.study.responses import read_responses
from benchmarks.study.results import Record, ResultFile, choose_rate
from benchmarks.study.runner import Runner

ROOT = FOLDER.parents[1]
# Fields of a form that do not change what one of its pieces scores.
_MAY_GROW = ("models", "variants", "seeds", "jobs", "changed")


class Study:
    """A study of one form in one folder.

    Args:
        form: How much of everything.
        data: The real samples.
        models: The folder of the models' folders.
        work: Where rows, datasets, runs, scores and logs go.
        out: The result file.
        dry_run: Only print the commands.
    """

    def __init__(self, form: Form, data: Path, models: Path, work: Path, out: Path, *, dry_run: bool = False) -> None:
        self.form, self.data, self.models, self.work = form, data, models, work
        environment = {"HF_HUB_OFFLINE": "1"}  # everything is on the disk
        if "NLTK_DATA" not in os.environ and (data / "nltk_data").is_dir():
            environment["NLTK_DATA"] = str(data / "nltk_data")
        self.runner = Runner(work, form.jobs, environment, dry_run=dry_run)
        self.results = ResultFile(out)
        self.id = ""

    @property
    def ifeval(self) -> Path:
        return self.data / "ifeval" / "input_data.jsonl"

    @property
    def records(self) -> list[Record]:
        """The records of this very study."""
        return [record for record in self.results.records if record["study"] == self.id]

    def run(self) -> None:
        """Does what is left to do."""
        if not self.runner.dry_run:
            self._check_folder()
        self.prepare()
        self.id = self.identity()
        both = [(model, variant) for model in self.form.models for variant in self.form.variants]
        if len(self.form.rates) > 1:
            tried = [each for each in both if each[1] not in PROBES]
            self._train_all([Training("rate", *each, RATE_SEED, rate) for each in tried for rate in self.form.rates])
        rates = {each: self._best_rate(*each) for each in both}
        # Seed by seed: a study that is stopped for good has whole tables of fewer seeds.
        for seed in self.form.seeds:
            self._train_all([Training("run", *each, seed, rates[each]) for each in both])
            self.runner.run_all(
                (f"{model}-seed-{seed}-{task}-compared", lambda place=(model, seed, task): self.compare(*place))
                for model in self.form.models
                for task in TASKS
            )
            for each in both:
                self.describe(*each, seed)

    def prepare(self) -> None:
        """Makes the datasets `train` and `rate` and the validation prompts, where they are not there."""
        folder, max_bytes = self.work / "rows", self.form.max_bytes
        steps: list[tuple[str, list[object], Callable[[], None]]] = [
            (
                "verifiable",
                ["prepare", "rows/verifiable.jsonl", "--mode", "para", "--out", "data/verifiable"],
                lambda: rows.write_verifiable(self.data, folder, max_bytes),
            ),
            ("train", self._mixture_command("train", self.form.rows), self._write_sources),
            ("rate", self._mixture_command("rate", self.form.rate_rows), lambda: None),
        ]
        for name, command, write in steps:
            if (self.work / "data" / name / "manifest.json").exists():
                continue
            if not self.runner.dry_run:
                write()
            self.runner.misotune("prepare", *command)

    def _mixture_command(self, name: str, num_rows: int | None) -> list[object]:
        some = [] if num_rows is None else [f"rows={num_rows}"]
        file = FOLDER / f"{self.form.mixture}.yaml"
        return ["prepare", "mixture", file, "data_dir=rows", *some, "--out", f"data/{name}"]

    def _write_sources(self) -> None:
        rows.split(self.work / "rows", self.work / "data" / "verifiable")
        rows.write_chats(self.data, self.work / "rows", self.form.max_bytes)

    def _train_all(self, trainings: list[Training]) -> None:
        left = [training for training in trainings if not self._is_done(training)]
        self.runner.run_all((training.name, lambda training=training: self.train(training)) for training in left)

    def _is_done(self, training: Training) -> bool:
        """Whether a piece can be left out: its result is there, and its responses where they are yet to be compared."""
        if not self.results.find(training.name, self.id):
            return False
        others = self.form.variants if training.variant == BASELINE else (training.variant,)
        place = (training.model, training.seed)
        is_compared = all(
            self.results.find(comparison_name(*place, variant, task), self.id)
            for variant in others
            for task in replace(training, variant=variant).tasks(self.form)
            if variant != BASELINE
        )
        folders = training.score_folders(self.form).values()
        return training.kind == "rate" or is_compared or all(map(self._has_scores, folders))

    def _has_scores(self, folder: Path) -> bool:
        return (self.work / folder / "scores.json").exists()

    def train(self, training: Training) -> None:
        """Trains and scores a model, and writes its result, and that of the model it started from where it is asked."""
        run = self.work / "runs" / training.name
        command_s: dict[str, float] = {}
        if not (run / "final" / "config.json").exists():
            command = training.train_command(self.form, self.models)
            started = ["--resume"] if (run / "recipe.yaml").exists() else []
            command_s["train"] = self.runner.misotune(training.name, *command, *started)[1]
        folders, base = training.score_folders(self.form), training.base_folders(self.form)
        wanted = [*folders.values(), *(base.values() if training.scores_base(self.form) else ())]
        if not all(map(self._has_scores, wanted)):
            command = training.eval_command(self.form, self.ifeval)
            command_s["eval"] = self.runner.misotune(training.name, *command)[1]
        if self.runner.dry_run:
            return
        if training.scores_base(self.form):
            self._write_base(training, base)
        values = yaml.safe_load(training.recipe.read_text(encoding="utf-8"))
        self.results.append(
            self._record(training.name, training.kind, training.model, training.variant)
            | {
                "recipe": str(training.recipe.relative_to(ROOT)),
                "miso": values["miso"],
                "recipe_keys": list(self.form.training),
                "seed": training.seed,
                "learning_rate": training.rate,
                "dataset_sha256": self._dataset_hash("rate" if training.kind == "rate" else "train"),
                "training": read_training(run),
                "scores": {name: read_scores(self.work / folder) for name, folder in folders.items()},
                "command_s": {name: round(seconds, 1) for name, seconds in command_s.items()},
            }
        )
        shutil.rmtree(run / "checkpoints", ignore_errors=True)
        if training.kind == "rate":
            shutil.rmtree(run / "final")  # its score is all that was wanted

    def _write_base(self, training: Training, folders: dict[str, Path]) -> None:
        name = f"{training.model}-{BASE}"
        if not self.results.find(name, self.id):
            scores = {task: read_scores(self.work / folder) for task, folder in folders.items()}
            self.results.append(self._record(name, BASE, training.model, BASE) | {"scores": scores})

    def _best_rate(self, model: str, variant: str) -> float | None:
        """The best rate, of a probe that of its variant; None in a dry run that cannot know it."""
        if len(self.form.rates) == 1:
            return self.form.rates[0]
        try:
            return choose_rate(self.records, model, PROBES.get(variant, variant), self.form.rates)
        except KeyError:
            if self.runner.dry_run:
                return None
            raise

    def compare(self, model: str, seed: int, task: str) -> None:
        """Compares all with the baseline of the same seed, and with the base model, and writes a result for each."""
        runs = [Training("run", model, variant, seed, None) for variant in self.form.variants]
        folders = {run.variant: run.score_folders(self.form)[task] for run in runs if task in run.tasks(self.form)}
        if BASELINE not in folders:
            return
        first = Training("run", model, BASELINE, self.form.seeds[0], None)
        base = first.base_folders(self.form)[task]
        if self._has_scores(base) or (self.runner.dry_run and first.scores_base(self.form)):
            folders = {BASE: base} | folders
        for against in (BASELINE, BASE):
            if against in folders:
                self._compare(model, seed, task, folders, against)

    def _compare(self, model: str, seed: int, task: str, folders: dict[str, Path], against: str) -> None:
        names = {variant: comparison_name(model, seed, variant, task, against) for variant in folders}
        left = [name for name in folders if name != against and not self.results.find(names[name], self.id)]
        if against == BASE and not self.runner.dry_run:
            # What was compared with its baseline elsewhere is left out of this: its responses are not here.
            left = [name for name in left if self._has_scores(folders[name])]
        if not left:
            return
        paths = [folders[name] for name in (against, *left)]
        printed, _ = self.runner.misotune(f"{model}-seed-{seed}-compared", "compare", *paths, "--json")
        if self.runner.dry_run:
            return
        for variant, found in read_comparison(printed, left).items():
            record = self._record(names[variant], "comparison", model, variant)
            self.results.append(record | {"seed": seed, "against": against, **found})

    def describe(self, model: str, variant: str, seed: int) -> None:
        """Writes a result on how the responses of a run read, and with the first baseline those of the base model."""
        run = Training("run", model, variant, seed, None)
        folders = {variant: run.score_folders(self.form)[IFEVAL]}
        if run.scores_base(self.form):
            folders[BASE] = run.base_folders(self.form)[IFEVAL]
        for name, folder in folders.items():
            # The base model has no seed: it was scored beside some baseline.
            piece = f"{model}-{name}-responses" if name == BASE else f"{model}-{name}-seed-{seed}-responses"
            if not self.results.find(piece, self.id) and (self.work / folder / "samples.jsonl").exists():
                found = read_responses(self.work / folder)
                self.results.append(self._record(piece, "responses", model, name) | {"seed": seed, **found})

    def _record(self, piece: str, kind: str, model: str, variant: str) -> Record:
        """What every result has: where and with what it was taken."""
        import torch
        from benchmarks.attention import environment

        found = environment("cuda" if torch.cuda.is_available() else "cpu")
        found["commit"] = os.environ.get("COMMIT") or found["commit"]  # where there is no repository
        place = {
            "piece": piece,
            "study": self.id,
            "form": self.form.name,
            "changed": self.form.changed,
            "kind": kind,
            "model": model,
            "variant": variant,
        }
        return place | found | {"jobs": self.form.jobs, "model_from": model_origin(self.models / model)}

    def _dataset_hash(self, name: str) -> str:
        manifest = self.work / "data" / name / "manifest.json"
        return json.loads(manifest.read_text(encoding="utf-8"))["data_sha256"]

    def identity(self) -> str:
        """What results belong together: the same settings, rows and recipes. Empty while there are no rows."""
        if not (self.work / "data" / "rate" / "manifest.json").exists():
            return ""
        settings = {key: value for key, value in asdict(self.form).items() if key not in _MAY_GROW}
        recipes = [
            yaml.safe_load((FOLDER / "recipes" / f"{name}.yaml").read_text(encoding="utf-8"))
            for name in (*VARIANTS, *PROBES)
        ]
        validation = (self.work / "rows" / "validation.jsonl").read_text(encoding="utf-8")
        content = [settings, recipes, self._dataset_hash("train"), self._dataset_hash("rate"), validation]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]

    def _check_folder(self) -> None:
        """Refuses a folder that holds the runs of other settings: their names are the same."""
        self.work.mkdir(parents=True, exist_ok=True)
        for model in self.form.models:
            if not (self.models / model / "config.json").exists():
                sys.exit(f"{self.models / model}: no model; run python -m benchmarks.study.fetch_models {self.models}")
        kept = self.work / "settings.json"
        settings = {key: value for key, value in asdict(self.form).items() if key not in _MAY_GROW}
        text = json.dumps(settings, indent=2) + "\n"
        if kept.exists() and kept.read_text(encoding="utf-8") != text:
            sys.exit(f"{kept}: this folder holds a study of other settings; name another --work")
        kept.write_text(text, encoding="utf-8")


def comparison_name(model: str, seed: int, variant: str, task: str, against: str = BASELINE) -> str:
    return f"{model}-{variant}-seed-{seed}-{task}-against-{against}"


@cache
def model_origin(folder: Path) -> str:
    """Returns where a model came from, as `fetch_models` noted it, and the hash of its weights."""
    note = folder / "ORIGIN.txt"
    origin = note.read_text(encoding="utf-8").strip() if note.exists() else "unknown"
    with (folder / "model.safetensors").open("rb") as weights:
        return f"{origin}, sha256 {hashlib.file_digest(weights, 'sha256').hexdigest()[:16]}"
