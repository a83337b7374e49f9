"""The plan's memory estimate against the memory that training really takes, case by case, each in a fresh process.

    python benchmarks/memory.py --model FOLDER                        # the table, with SmolLM2-135M in FOLDER
    python benchmarks/memory.py --model FOLDER --only full-bf16       # the cases whose name holds this

Each case is `misotune train` with a recipe of its own, two optimizer steps on rows of one length: in the second the
optimizer's state is in memory too. Measured is the most that the process held resident (VmHWM; of two ranks
the larger), from start to end, with loading and saving. The estimate is the one in the run's `plan.json`, made before a
weight was loaded. How busy the machine is does not matter. Lines of JSON go to --out.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from attention import environment

TEXT = "the river keeps its own slow time and nobody who lives beside it asks why it bends where it bends"
WORDS = TEXT.split(" ")

# name: mode, tokens of a row, recipe
CASES: dict[str, tuple[str, int, dict[str, Any]]] = {
    "full-fp32-sft-512": ("sft", 512, {}),
    "full-fp32-sft-2048": ("sft", 2048, {}),
    "full-fp32-para-1024": ("para", 1024, {}),
    "full-fp32-para-1024-checkpointing": ("para", 1024, {"train": {"gradient_checkpointing": True}}),
    "full-fp32-para-512-accumulated": ("para", 512, {"train": {"batch_size": 2}}),
    "full-fp32-sft-1024-chunked": ("sft", 1024, {"train": {"cross_entropy": "chunked"}}),
    "full-bf16-sft-512": ("sft", 512, {"train": {"precision": "bf16"}}),
    "full-bf16-sft-1024": ("sft", 1024, {"train": {"precision": "bf16"}}),
    "full-bf16-para-2048": ("para", 2048, {"train": {"precision": "bf16"}}),
    "full-bf16-para-1024-checkpointing": (
        "para",
        1024,
        {"train": {"precision": "bf16", "gradient_checkpointing": True}},
    ),
    "lora-fp32-sft-512": ("sft", 512, {"lora": {"rank": 16}}),
    "lora-fp32-para-1024": ("para", 1024, {"lora": {"rank": 16}}),
    "lora-bf16-sft-1024": ("sft", 1024, {"lora": {"rank": 16}, "train": {"precision": "bf16"}}),
    "lora-bf16-para-2048": ("para", 2048, {"lora": {"rank": 16}, "train": {"precision": "bf16"}}),
    "lora-bf16-para-1024-checkpointing": (
        "para",
        1024,
        {"lora": {"rank": 16}, "train": {"precision": "bf16", "gradient_checkpointing": True}},
    ),
    "ddp-2-fp32-sft-512": ("sft", 512, {"ranks": 2}),
    "zero-2-2-fp32-sft-512": ("sft", 512, {"ranks": 2, "deepspeed": {"stage": 2}}),
    "zero-2-2-bf16-para-512": (
        "para",
        512,
        {"ranks": 2, "deepspeed": {"stage": 2}, "train": {"precision": "bf16"}},
    ),
    "zero-3-2-fp32-sft-512": ("sft", 512, {"ranks": 2, "deepspeed": {"stage": 3}}),
}


def write_rows(path: Path, mode: str, num_tokens: int, tokenizer: Any) -> None:
    """Writes rows whose samples have about `num_tokens` tokens; of them a third is the response's."""
    num_inputs = 5 if mode == "para" else 1

    def text(count: int, seed: int) -> str:
        return " ".join(WORDS[(seed + i) % len(WORDS)] for i in range(count))

    def row_of(number: int, scale: float) -> dict[str, Any]:
        output = int(num_tokens / 3 * scale)
        each = int((num_tokens * scale - output) / num_inputs)
        roles = ["full", "constraint", "constraint", "constraint", "base"][:num_inputs]
        inputs = [
            {"role": role, "messages": [{"role": "user", "content": text(each, number + i)}], "constraint": None}
            for i, role in enumerate(roles)
        ]
        return {"id": f"row-{number}", "inputs": inputs, "output": text(output, number)}

    def length(row: dict[str, Any]) -> int:
        rendered = [
            tokenizer.apply_chat_template([*x["messages"]], add_generation_prompt=True, tokenize=False)
            for x in row["inputs"]
        ]
        return len(tokenizer([*rendered, row["output"]])["input_ids"][-1]) + sum(
            len(ids) for ids in tokenizer(rendered)["input_ids"]
        )

    scale = 1.0
    while length(row_of(0, scale)) > num_tokens - 4:
        scale *= 0.98
    path.write_text("".join(json.dumps(row_of(i, scale)) + "\n" for i in range(8)), encoding="utf-8")


def run_case(name: str, model: str, folder: Path) -> dict[str, Any]:
    """Trains one case in a process (or two) of its own."""
    from transformers import AutoTokenizer

    mode, num_tokens, settings = CASES[name]
    ranks = settings.get("ranks", 1)
    write_rows(folder / "rows.jsonl", mode, num_tokens, AutoTokenizer.from_pretrained(model))
    train = {"max_steps": 2, "batch_size": ranks, "learning_rate": 1e-5, "precision": "fp32"}
    train |= {"tokens_per_micro_batch": num_tokens} | settings.get("train", {})
    recipe = {
        "name": name,
        "model": {"name": str(Path(model).resolve())},
        "data": {"path": str(folder / "rows.jsonl"), "max_length": num_tokens},
        "miso": {"mode": mode},
        "train": train,
        "output": {"runs_dir": str(folder / "runs")},
        **{key: settings[key] for key in ("lora", "deepspeed") if key in settings},
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")  # JSON is YAML
    command = [sys.executable, __file__, "--child", str(folder / "recipe.yaml")]
    if ranks > 1:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
        command = [*launcher, *command[1:]]
    done = subprocess.run(
        command,
        env={**os.environ, "DS_ACCELERATOR": "cpu", "MISOTUNE_CACHE": "off"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{name}: {done.stderr[-3000:]}")
    peaks = [json.loads(path.read_text()) for path in folder.glob("peak-*.json")]
    plan = json.loads((folder / "runs" / name / "plan.json").read_text(encoding="utf-8"))
    memory, measured = plan["memory"], max(peaks)
    return {
        "case": name,
        "row": memory["row"],
        "components_mib": {key: round(size / 2**20) for key, size in memory["components"].items()},
        "estimate_mib": round(memory["total"] / 2**20),
        "measured_mib": round(measured / 2**20),
        "estimate_by_measured": round(memory["total"] / measured, 3),
    }


def child(recipe: Path) -> None:
    """Trains, and leaves the peak of this process beside the recipe."""
    from misotune.__main__ import main

    sys.argv = ["misotune", "train", str(recipe)]
    code: Any = 0
    try:
        main()
    except SystemExit as end:
        code = end.code
    if not code:
        lines = Path("/proc/self/status").read_text().splitlines()
        (peak,) = [int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")]
        (recipe.parent / f"peak-{os.environ.get('RANK', '0')}.json").write_text(json.dumps(peak))
    sys.exit(code)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder of SmolLM2-135M-Instruct, or of another small chat model")
    parser.add_argument("--only", help="run the cases whose name holds this")
    parser.add_argument("--out", type=Path, help="JSONL file to append to")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child)
    if not arguments.model:
        parser.error("--model is needed")
    print(f"{'case':40} {'estimate':>10} {'measured':>10} {'ratio':>7}")
    for name in [name for name in CASES if not arguments.only or arguments.only in name]:
        folder = Path(tempfile.mkdtemp(prefix="misotune-memory-"))
        try:
            result = run_case(name, arguments.model, folder)
        finally:
            shutil.rmtree(folder)
        ratio = result["estimate_by_measured"]
        print(f"{name:40} {result['estimate_mib']:>6} MiB {result['measured_mib']:>6} MiB {ratio:>7.3f}", flush=True)
        if arguments.out:
            with arguments.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps({**environment("cpu"), **result}) + "\n")


if __name__ == "__main__":
    main()
