"""The data stage on many rows: how fast `prepare`, tokenising and packing are, what they need, what packing wastes.

    python benchmarks/data.py --data ../shared/data --model FOLDER            # 100,000 rows; FOLDER: a tokenizer
    python benchmarks/data.py --data ../shared/data --model FOLDER --parts packing
    python benchmarks/data.py --rows 10000 --workers 1 2                      # tokenising by one and two processes

The rows are those of real files (Crab's format: half of them with constraints, a quarter conversations, a quarter
plain pairs), gone through again and again until there are enough; from the second time on, a row's last question
begins with the number of the round, so that no two rows are the same.

    prepare    misotune prepare crab, as a command of its own, with its guards
    tokens     the encoded corpus, made anew by so many workers, then opened from the cache
    packing    best-fit decreasing: room that rows leave empty, and how much longer than the mean the longest of
               the rows is that devices compute side by side (`balance`; 1 is ideal)

Peak memory is what all processes of a part hold together, shared pages counted once (PSS). Lines of JSON go to
--out.
"""

import argparse
import gzip
import itertools
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from attention import environment
from misotune.layout import pack
from misotune.training.corpus import read_corpus
from misotune.training.model import ModelSource, load_template
from misotune.training.schedule import make_schedule
from misotune.training.shards import Limits

MAX_LENGTH = 16384
CAPACITIES = (2048, 4096, 8192)
BATCH_SIZE = 128


def read_file(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file] if ".jsonl" in path.name else json.load(file)


def pair(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def conversation(turns: list[dict[str, str]]) -> list[dict[str, str]]:
    """Returns a ShareGPT conversation from its first question to its last answer."""
    names = {"human": "user", "gpt": "assistant", "system": "system"}
    messages = [{"role": names[turn["from"]], "content": turn["value"]} for turn in turns if turn["from"] in names]
    while messages and messages[0]["role"] == "assistant":
        messages.pop(0)
    while messages and messages[-1]["role"] != "assistant":
        messages.pop()
    return messages


def real_conversations(data: Path) -> dict[str, list[list[dict[str, str]]]]:
    """Returns the messages of real rows, by kind."""
    crab = [row["messages"] for row in read_file(data / "crab/rendered.jsonl.gz")]
    follow = read_file(data / "follow_complex_instruction/ift_train.jsonl.gz")
    chats = [conversation(row["conversations"]) for row in read_file(data / "chat/sharegpt_sample.jsonl.gz")]
    alpaca = read_file(data / "chat/alpaca_en_demo.json.gz")
    return {
        "constraints": [*crab, *(pair(row["instruction"], row["output"]) for row in follow)],
        "chat": [chat for chat in chats if chat],
        "pairs": [pair(f"{row['instruction']}\n{row['input']}".strip(), row["output"]) for row in alpaca]
        + [pair(row["question"], row["answer"]) for row in read_file(data / "math/gsm8k_train.jsonl.gz")],
    }


def rows_of(kinds: dict[str, list[list[dict[str, str]]]], number: int) -> Iterator[dict[str, Any]]:
    """Yields rows of Crab's format, no two the same."""
    endless = {name: enumerate(itertools.cycle(rows)) for name, rows in kinds.items()}
    turns = itertools.cycle(("constraints", "chat", "constraints", "pairs"))
    for at, kind in enumerate(itertools.islice(turns, number)):
        index, messages = next(endless[kind])
        again = index // len(kinds[kind])
        if again:
            asked = messages[-2]
            messages = [*messages[:-2], {**asked, "content": f"{again}. {asked['content']}"}, messages[-1]]
        yield {"id": f"row-{at}", "source": kind, "messages": messages}


def measure(work: Callable[[], Any]) -> tuple[Any, float, float]:
    """Returns the result, the seconds, and the peak memory of this process and its children in GiB."""
    done = threading.Event()
    peak = 0

    def watch() -> None:
        nonlocal peak
        me = psutil.Process()
        while not done.wait(0.1):
            total = 0
            for process in (me, *me.children(recursive=True)):
                try:
                    total += process.memory_full_info().pss
                except psutil.Error:  # it has just ended
                    continue
            peak = max(peak, total)

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    try:
        result = work()
    finally:
        seconds = time.perf_counter() - start
        done.set()
        watcher.join()
    return result, seconds, peak / 2**30


def measure_prepare(source: Path, out: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, "-m", "misotune", "prepare", "crab", "--data", str(source), "--out", str(out)]
    before = psutil.Process().memory_full_info().pss / 2**30
    done, seconds, peak = measure(lambda: subprocess.run(command, capture_output=True, text=True, check=False))
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr}")
    size = source.stat().st_size / 2**20
    return {
        "part": "prepare",
        "rows": arguments.rows,
        "mib": round(size, 1),
        "seconds": round(seconds, 1),
        "rows_per_s": round(arguments.rows / seconds),
        "peak_gib": round(peak - before, 2),
    }


def measure_tokens(dataset: Path, workers: int | None, template: Any, *, is_cached: bool) -> tuple[Any, dict[str, Any]]:
    def read() -> Any:
        return read_corpus(
            dataset,
            template,
            mode="para",
            roles=("full", "constraint", "base"),
            limits=Limits(MAX_LENGTH, "drop"),
            max_dropped=1.0,
            workers=workers,
        )

    corpus, seconds, peak = measure(read)
    assert corpus.from_cache == is_cached, "the cache was to be empty first, and full then"
    record = {
        "part": "tokens",
        "workers": "cache" if is_cached else workers or len(os.sched_getaffinity(0)),
        **{key: value for key, value in corpus.account().items() if key != "dropped"},
        "dropped": corpus.num_dropped,
        "tokens": int(corpus.samples.num_tokens.sum()),
        "seconds": round(seconds, 2),
        "rows_per_s": round(corpus.num_rows / seconds),
        "peak_gib": round(peak, 2),
    }
    return corpus, record


def measure_packing(name: str, lengths: np.ndarray, number: int, capacity: int) -> dict[str, Any]:
    """Packs so many lengths, drawn from the real ones, at once, and by steps of a run on eight devices."""
    draw = random.Random(f"{name}:{number}")
    chosen = draw.choices(lengths[lengths <= capacity].tolist(), k=number)
    start = time.perf_counter()
    rows = pack(chosen, capacity)
    seconds = time.perf_counter() - start
    assert sorted(itertools.chain(*rows)) == list(range(number))
    schedule = make_schedule(
        chosen, batch_size=BATCH_SIZE, epochs=1, max_steps=None, num_devices=8, capacity=capacity, seed=0
    )
    record = {
        "part": "packing",
        "lengths": name,
        "rows": number,
        "capacity": capacity,
        "mean_length": round(sum(chosen) / number, 1),
        "seconds": round(seconds, 2),
        "waste": round(1 - sum(chosen) / (len(rows) * capacity), 5),
    }
    steps = schedule.packing
    return record | {
        "batch_size": BATCH_SIZE,
        "devices": schedule.num_devices,
        "waste_of_steps": round(steps.waste, 4),
        "balance": round(steps.balance, 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the real files")
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct", help="whose tokenizer is taken")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--workers", type=int, nargs="+", help="processes that tokenise, one run each")
    parser.add_argument("--parts", nargs="+", default=["prepare", "tokens", "packing"])
    parser.add_argument("--out", type=Path, help="JSON lines are appended to this file too")
    arguments = parser.parse_args()
    if not (arguments.data / "crab").is_dir():
        sys.exit(f"{arguments.data}: the real files are not there; name their folder with --data")
    kinds = real_conversations(arguments.data)
    facts = environment("cpu") | {"cores": len(os.sched_getaffinity(0)), "model": arguments.model}

    def tell(record: dict[str, Any]) -> None:
        line = json.dumps(facts | record)
        print(line, flush=True)
        if arguments.out:
            with arguments.out.open("a", encoding="utf-8") as file:
                file.write(line + "\n")

    with tempfile.TemporaryDirectory(prefix="misotune-bench-") as place:
        folder = Path(place)
        os.environ["MISOTUNE_CACHE"] = str(folder / "cache")
        number = arguments.rows if set(arguments.parts) & {"prepare", "tokens"} else sum(map(len, kinds.values()))
        source = folder / "rows.jsonl"
        with source.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows_of(kinds, number))
        prepared = measure_prepare(source, folder / "dataset", arguments)
        if "prepare" in arguments.parts:
            tell(prepared)
        template = load_template(ModelSource(arguments.model))
        corpus = None
        for workers in arguments.workers or [None]:
            shutil.rmtree(os.environ["MISOTUNE_CACHE"], ignore_errors=True)
            corpus, record = measure_tokens(folder / "dataset", workers, template, is_cached=False)
            if "tokens" in arguments.parts:
                tell(record)
        corpus, record = measure_tokens(folder / "dataset", None, template, is_cached=True)
        if "tokens" in arguments.parts:
            tell(record)
        if "packing" in arguments.parts:
            for capacity, size in itertools.product(CAPACITIES, (10_000, 100_000)):
                tell(measure_packing("para", corpus.samples.num_tokens, size, capacity))


if __name__ == "__main__":
    main()
