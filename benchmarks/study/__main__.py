"""The study: does MISO tuning follow constraints better than plain tuning on the same rows? By misotune's commands.

    python -m benchmarks.study --reduced                  # one model, four variants, one seed: two CPU cores
    python -m benchmarks.study                            # both models, all variants, three seeds: one GPU
    python -m benchmarks.study --dry-run                  # only prints the commands
    python -m benchmarks.study.table RESULTS              # the tables of docs/study.md, out of the result file

Rows are prepared once; each variant's learning rate is the best of one grid on the validation split; then every
variant and seed is trained and scored on IFEval and IFEval-Flatten, and compared with `sft` of the same seed, prompt
by prompt. Models are looked for in --models (`python -m benchmarks.study.fetch_models` puts them there).

A piece whose result stands in --out is left out, and a training that was killed goes on from its last checkpoint:
the same command goes on with the study. What a command said is in WORK/logs.
"""

import argparse
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.study.driver import Study
from benchmarks.study.forms import BASELINE, FOLDER, FULL, MODELS, PROBES, REDUCED, VARIANTS, Form
from benchmarks.study.runner import CommandError


def main(arguments: list[str] | None = None) -> None:
    options = parse_arguments(arguments)
    form = form_of(options)
    has_gpu_form = form.name.startswith(FULL.name)
    work = options.work or Path(f"study-{form.name}")
    out = options.out or FOLDER.parent / "results" / ("gpu" if has_gpu_form else "cpu") / "study.jsonl"
    study = Study(
        form, options.data.resolve(), options.models.resolve(), work.resolve(), out.resolve(), dry_run=options.dry_run
    )
    if not options.dry_run:
        signal.signal(signal.SIGTERM, _interrupt)
    try:
        study.run()
    except CommandError as error:
        sys.exit(f"error: {error}\nthe same command goes on from here")
    except KeyboardInterrupt:
        study.runner.stop()
        sys.exit("stopped; the same command goes on from here")
    if not options.dry_run:
        print(f"results: {out}\nnext: python -m benchmarks.study.table {out}")


def _interrupt(*_: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # `timeout` sends it twice; the first is being seen to
    raise KeyboardInterrupt


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.study", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--reduced", action="store_true", help="the form for two CPU cores")
    parser.add_argument("--dry-run", action="store_true", help="only print the commands")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="the folder of real samples")
    parser.add_argument("--models", type=Path, default=Path("models"), help="the folder of the models' folders")
    parser.add_argument("--work", type=Path, help="rows, datasets, runs, scores, logs (default: study-FORM)")
    parser.add_argument("--out", type=Path, help="result file (default: benchmarks/results/{cpu,gpu}/study.jsonl)")
    changes = parser.add_argument_group("in place of the form's own; its results are of a form `FORM-changed`")
    changes.add_argument("--rows", type=int, help="training rows")
    changes.add_argument("--rate-rows", type=int, help="training rows while a rate is tried")
    changes.add_argument("--rate-limit", type=int, help="validation prompts")
    changes.add_argument("--limit", type=int, help="prompts of IFEval, and of IFEval-Flatten")
    changes.add_argument("--max-new-tokens", type=int)
    changes.add_argument("--max-bytes", type=int, help="longest row")
    mixtures = sorted(path.stem for path in FOLDER.glob("mixture*.yaml"))
    changes.add_argument("--mixture", choices=mixtures, help="where rows come from: a YAML file of benchmarks/study")
    changes.add_argument("--rates", nargs="+", type=float, help="learning rates; one alone is taken without trying it")
    changes.add_argument(
        "--training", nargs="+", metavar="KEY=VALUE", help="recipe keys for all runs, beside the form's"
    )
    changes.add_argument("--evaluation", type=str.split, metavar="'OPTIONS'", help="of misotune eval, as one text")
    parts = parser.add_argument_group("parts; results of the same study")
    parts.add_argument("--only-models", dest="models_", nargs="+", choices=tuple(MODELS), metavar="NAME")
    parts.add_argument(
        "--variants", nargs="+", choices=(*VARIANTS, *PROBES), metavar="NAME", help=f"recipes, {BASELINE} among them"
    )
    parts.add_argument("--seeds", nargs="+", type=int)
    parts.add_argument("--jobs", type=int, help="pieces at a time")
    return parser.parse_args(arguments)


def form_of(options: argparse.Namespace) -> Form:
    """Returns the form that the options name, with what they change."""
    form = REDUCED if options.reduced else FULL
    sizes = ("rows", "rate_rows", "rate_limit", "limit", "max_new_tokens", "max_bytes", "mixture", "rates")
    sizes += ("training", "evaluation")
    changed = {name: _frozen(value) for name in sizes if (value := getattr(options, name)) is not None}
    keys = {name: (*getattr(form, name), *changed[name]) for name in ("training", "evaluation") if name in changed}
    parts = {"models": options.models_} | {name: getattr(options, name) for name in ("variants", "seeds", "jobs")}
    parts = {name: _frozen(value) for name, value in parts.items() if value is not None}
    if BASELINE not in parts.get("variants", VARIANTS):
        sys.exit(f"--variants: {BASELINE} must be among them, the others are compared with it")
    return replace(
        form, **(changed | keys), **parts, changed=changed, name=f"{form.name}-changed" if changed else form.name
    )


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


if __name__ == "__main__":
    main()
