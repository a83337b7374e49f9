"""Times and memory of the guards of `prepare` on rows made of real ones: python benchmarks/guards.py [ROWS]

Rows are drawn from the chats, instruction pairs and Crab rows of ../shared/data; each beyond the first draw has a
tenth of its sentences taken from other rows, so that it is neither a duplicate nor invented text.
"""

import functools
import gzip
import json
import os
import random
import resource
import subprocess
import sys
import time
from pathlib import Path

from misotune.data.guards.duplicates import Deduplication
from misotune.data.guards.overlap import Decontamination
from misotune.data.guards.statistics import TextStatistics
from misotune.data.records import Record

SHARED = Path(os.environ.get("MISOTUNE_SHARED", Path(__file__).parents[2] / "shared")) / "data"
PARTS = ("exact", "near", "overlap", "statistics")


def lines(name):
    with gzip.open(SHARED / name, "rt", encoding="utf-8") as file:
        text = file.read()
    return json.loads(text) if name.endswith(".json.gz") else [json.loads(line) for line in text.split("\n") if line]


@functools.cache
def real_rows():
    return list(read_real_rows())


def read_real_rows():
    for row in lines("chat/sharegpt_sample.jsonl.gz"):
        turns = [turn["value"] for turn in row["conversations"] if turn["from"] in ("human", "gpt")]
        yield from ((turns[at], turns[at + 1], ()) for at in range(0, len(turns) - 1, 2) if all(turns[at : at + 2]))
    for row in lines("chat/alpaca_en_demo.json.gz"):
        yield f"{row['instruction']}\n{row['input']}", row["output"], ()
    for row in lines("follow_complex_instruction/joined_train.jsonl.gz"):
        yield row["instruction"], row["output"], tuple(row["constraints"])
    for row in lines("crab/rendered.jsonl.gz"):
        yield row["messages"][-2]["content"], row["messages"][-1]["content"], ()


def records(num_rows):
    real = real_rows()
    sentences = [sentence for row in real for sentence in row[1].split(". ")]
    rng = random.Random(0)
    for i in range(num_rows):
        instruction, output, constraints = real[i % len(real)]
        if i >= len(real):
            parts = output.split(". ")
            for at in range(0, len(parts), 10):
                parts[rng.randrange(at, min(at + 10, len(parts)))] = rng.choice(sentences)
            output, instruction = ". ".join(parts), f"{rng.choice(sentences)} {instruction}"
        yield Record(f"row-{i}", "benchmark", "chat", (), instruction, constraints, output)


def resident_mib():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def measure(part, num_rows):
    guard = {
        "exact": lambda: Deduplication("exact"),
        "near": lambda: Deduplication("near"),
        "overlap": lambda: Decontamination(("starter", "ifeval")),
        "statistics": TextStatistics,
    }
    start = time.process_time()
    subject = guard[part]()
    is_statistics = part == "statistics"
    work = subject.measure if is_statistics else subject.fingerprint
    work(next(records(1)))
    result = {"part": part, "rows": num_rows, "start_s": round(time.process_time() - start, 2)}
    before, in_worker, in_order, dropped, characters = resident_mib(), 0.0, 0.0, 0, 0
    for record in records(num_rows):
        characters += len(record.instruction) + len(record.output) + sum(map(len, record.constraints))
        at = time.process_time()
        taken = work(record)
        then = time.process_time()
        if is_statistics:
            subject.add(taken)
        else:
            dropped += subject.accept(record, taken) is not None
        in_order += time.process_time() - then
        in_worker += then - at
    return result | {
        "characters_a_row": characters // num_rows,
        "in_worker_us_a_row": round(in_worker / num_rows * 1e6, 1),
        "in_order_us_a_row": round(in_order / num_rows * 1e6, 1),
        "memory_mib": round(resident_mib() - before, 1),
        "dropped": dropped,
    }


if __name__ == "__main__":
    num_rows = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    if len(sys.argv) > 2:
        print(json.dumps(measure(sys.argv[2], num_rows)))
    else:  # a process each, for the memory
        for part in PARTS:
            subprocess.run([sys.executable, __file__, str(num_rows), part], check=True)
