"""Whole training runs side by side, in turn, each in a fresh process: misotune, TRL's SFTTrainer, and MISO against SFT.

    pip install trl
    misotune prepare crab --data rendered.jsonl.gz --mode para
    python benchmarks/train.py --model FOLDER --data data/crab-para

All contenders train the same rows of the dataset in the same order, with the same model, float32 weights under bfloat16
autocast (or --precision fp32), AdamW, no gradient checkpointing, and the loss on the response alone:

    sft          misotune, mode sft: rows packed
    trl          SFTTrainer, one row in a micro-batch, so that nothing is padded
    trl-packed   SFTTrainer, packing=True (padding-free)
    para, succ   misotune with MISO attention
    pairs        misotune, mode flat: one sample for each pair of an input with the output

The first step of each run warms up and is not counted. `same` is the largest relative difference between the losses of
`sft` and `trl`, step by step: that both did the same work. Tokens are those of the rows, inputs and outputs together;
`epoch_s` is the time for all rows once, from all their tokens and the speed.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CONTENDERS = ("sft", "trl", "trl-packed", "para", "succ", "pairs")
MODES = {"sft": "sft", "para": "para", "succ": "succ", "pairs": "flat"}


def make_recipe(options, mode: str, folder: str):
    from misotune.recipe.checking import check_recipe
    from misotune.recipe.schema import Recipe

    recipe = check_recipe(
        {
            "name": mode,
            "model": {"name": options.model},
            "data": {
                "path": options.rows,
                "max_length": options.max_length,
                "max_sample_length": options.max_sample_length,
                "max_dropped": 1.0,
            },
            "miso": {"mode": mode},
            "train": {
                "epochs": 1.0,
                "max_steps": options.steps,
                "batch_size": options.batch_size,
                "tokens_per_micro_batch": options.tokens_per_micro_batch,
                "learning_rate": options.learning_rate,
                "schedule": "constant",
                "warmup_ratio": 0.0,
                "precision": options.precision,
                "trial_save": False,
            },
            "output": {"runs_dir": folder},
        }
    )
    assert isinstance(recipe, Recipe), recipe
    return recipe


def run_misotune(options, mode: str) -> dict:
    from misotune.training.prepared import Watcher, prepare_run
    from misotune.training.run import train

    with tempfile.TemporaryDirectory() as folder:
        recipe = make_recipe(options, mode, folder)
        batches = prepare_run(recipe, num_devices=1, watcher=Watcher()).micro_batches
        counts = [batches.count(step) for step in range(batches.schedule.num_steps)]
        lines: list = []
        train(recipe, "name: benchmark\n", watcher=Watcher(on_metrics=lines.append))
    ends = [line.elapsed_s for line in lines]
    return {
        "seconds": [round(b - a, 3) for a, b in zip([0.0, *ends], ends, strict=False)],
        "tokens": [count.tokens for count in counts],
        "trained_tokens": [count.trained_tokens for count in counts],
        "epoch_tokens": sum(batches.schedule.lengths),
        "micro_batches": batches.schedule.accumulation,
        "losses": [line.loss for line in lines],
        "peak_gib": lines[-1].peak_memory_gib,
    }


def run_trl(options, *, packing: bool) -> dict:
    import torch
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from misotune.data.dataset import open_dataset
    from misotune.samples import select_inputs
    from misotune.training.prepared import Watcher, prepare_run
    from misotune.training.watching.memory import peak_memory_gib

    # misotune's own order of the rows that it would train on.
    batches = prepare_run(make_recipe(options, "sft", "unused"), num_devices=1, watcher=Watcher()).micro_batches
    by_id = {sample.id: sample for sample in open_dataset(Path(options.rows))}
    rows = []
    for step in range(batches.schedule.num_steps):
        for row_id in batches.sample_ids(step):
            (sample,) = select_inputs(by_id[row_id], "sft", ())
            messages = [dict(message) for message in sample.inputs[0].messages]
            rows.append({"prompt": messages, "completion": [{"role": "assistant", "content": sample.output}]})

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.ends, self.losses, self.peak = [], [], 0.0

        def on_train_begin(self, *_, **__):
            self.start = time.monotonic()

        def on_log(self, args, state, control, logs=None, **_):
            if "loss" in logs:
                self.ends.append(time.monotonic() - self.start)
                self.losses.append(logs["loss"])
                self.peak = peak_memory_gib()

    with tempfile.TemporaryDirectory() as folder:
        config = SFTConfig(
            output_dir=folder,
            max_steps=-1 if packing else batches.schedule.num_steps,
            num_train_epochs=1,
            per_device_train_batch_size=1,
            gradient_accumulation_steps=batches.schedule.accumulation if packing else options.batch_size,
            packing=packing,
            padding_free=packing,
            max_length=options.tokens_per_micro_batch if packing else None,
            completion_only_loss=True,
            train_sampling_strategy="sequential",
            learning_rate=options.learning_rate,
            lr_scheduler_type="constant",
            optim="adamw_torch_fused",
            bf16=options.precision == "bf16",
            gradient_checkpointing=False,
            model_init_kwargs={"dtype": "float32", "attn_implementation": "sdpa"},
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(),
            dataloader_pin_memory=torch.cuda.is_available(),
        )
        clock = Clock()
        trainer = SFTTrainer(
            model=options.model,
            args=config,
            train_dataset=Dataset.from_list(rows),
            processing_class=AutoTokenizer.from_pretrained(options.model),
            callbacks=[clock],
        )
        per_step: list[list[int]] = [[0, 0]]
        collate, seen = trainer.data_collator, 0

        def counting(examples):
            nonlocal seen
            batch = collate(examples)
            if seen and seen % config.gradient_accumulation_steps == 0:
                per_step.append([0, 0])
            seen += 1
            per_step[-1][0] += int(batch["input_ids"].numel())
            per_step[-1][1] += int((batch["labels"] != -100).sum())
            return batch

        trainer.data_collator = counting
        trainer.train()
    return {
        "seconds": [round(b - a, 3) for a, b in zip([0.0, *clock.ends], clock.ends, strict=False)],
        "tokens": [tokens for tokens, _ in per_step],
        "trained_tokens": [trained for _, trained in per_step],
        "micro_batches": config.gradient_accumulation_steps,
        "losses": clock.losses,
        "peak_gib": round(clock.peak, 3),
    }


def contend(name: str, argv: list[str]) -> dict:
    """Runs one contender in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, *argv, "--run", name],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path[1:]])},
    )
    if done.returncode:
        sys.exit(f"{name} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def first_rows(data: str, number: int | None, folder: str) -> str:
    """Returns a file with the dataset's first rows."""
    from misotune.data.dataset import open_dataset

    path = Path(folder, "rows.jsonl")
    with path.open("w", encoding="utf-8") as file:
        for i, sample in enumerate(open_dataset(Path(data))):
            if number is not None and i == number:
                break
            file.write(json.dumps(sample.to_row()) + "\n")
    return str(path)


def summary(results: list[dict]) -> dict:
    """Returns medians over rounds of one contender."""
    speeds = [sum(r["tokens"][1:]) / sum(r["seconds"][1:]) for r in results]
    trained = [sum(r["trained_tokens"][1:]) / sum(r["seconds"][1:]) for r in results]
    first = results[0]
    return {
        "tokens_per_s": round(statistics.median(speeds), 1),
        "trained_tokens_per_s": round(statistics.median(trained), 1),
        "peak_gib": round(max(r["peak_gib"] for r in results), 3),
        "steps": len(first["seconds"]),
        "tokens": sum(first["tokens"][1:]),
        "trained_tokens": sum(first["trained_tokens"][1:]),
        "micro_batches": first["micro_batches"],
        **{key: first[key] for key in ("epoch_tokens",) if key in first},
        "tokens_per_s_of_rounds": [round(speed, 1) for speed in speeds],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or hub id")
    parser.add_argument("--data", required=True, help="a dataset that `misotune prepare` wrote")
    parser.add_argument("--contenders", nargs="+", default=list(CONTENDERS), choices=CONTENDERS)
    parser.add_argument("--num-rows", type=int, help="the dataset's first rows alone")
    parser.add_argument("--rows", help=argparse.SUPPRESS)
    parser.add_argument("--run", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--tokens-per-micro-batch", type=int, default=2048)
    parser.add_argument("--max-length", type=int, default=2048)
    parser.add_argument("--max-sample-length", type=int, help="of multi-input samples, too")
    parser.add_argument("--learning-rate", type=float, default=1e-5)
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--out", type=Path, help="append the result to this JSONL file")
    options = parser.parse_args()
    if options.run:
        from misotune.cli.libraries import quiet_libraries

        quiet_libraries()
        trl = options.run.startswith("trl")
        result = (
            run_trl(options, packing=options.run == "trl-packed") if trl else run_misotune(options, MODES[options.run])
        )
        print(json.dumps(result))
        return

    import torch

    from attention import environment

    with tempfile.TemporaryDirectory() as folder:
        rows = first_rows(options.data, options.num_rows, folder)
        argv = [*sys.argv[1:], "--rows", rows]
        results: dict[str, list[dict]] = {name: [] for name in options.contenders}
        for _ in range(options.rounds):
            for name in options.contenders:
                results[name].append(contend(name, argv))
                last = summary(results[name][-1:])
                speed, memory = last["tokens_per_s"], last["peak_gib"]
                print(f"{name:<11}{speed:>9,.1f} tokens/s {memory:>7.2f} GiB", file=sys.stderr, flush=True)
    record = {
        **environment("cuda" if torch.cuda.is_available() else "cpu"),
        "options": {key: str(value) for key, value in vars(options).items() if value and key not in ("rows", "out")},
        "contenders": {name: summary(values) for name, values in results.items()},
    }
    figures = record["contenders"]
    if {"sft", "trl"} <= figures.keys():
        ours, theirs = results["sft"][0]["losses"], results["trl"][0]["losses"]
        record["same"] = round(max(abs(a / b - 1) for a, b in zip(ours, theirs, strict=True)), 5)
    for one, other in (("sft", "trl"), ("sft", "trl-packed"), ("para", "sft"), ("succ", "sft"), ("pairs", "sft")):
        if {one, other} <= figures.keys():
            ratio = figures[one]["tokens_per_s"] / figures[other]["tokens_per_s"]
            record[f"{one}_by_{other}"] = round(ratio, 3)
    if {"para", "pairs"} <= figures.keys():  # the pairs repeat the output, and so train more tokens for the same rows
        epochs = [figures[name]["epoch_tokens"] / figures[name]["tokens_per_s"] for name in ("para", "pairs")]
        record["epoch_s"] = dict(zip(("para", "pairs"), (round(s, 1) for s in epochs), strict=True))
        record["epoch_of_pairs_by_para"] = round(epochs[1] / epochs[0], 3)
    text = json.dumps(record)
    print(text)
    if options.out:
        with options.out.open("a", encoding="utf-8") as file:
            file.write(text + "\n")


if __name__ == "__main__":
    main()
