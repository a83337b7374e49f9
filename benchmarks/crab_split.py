"""How many rendered Crab turns are split exactly right, by template and connector, on texts the rules never saw.

    python benchmarks/crab_split.py                       # the held-out half of the real instructions
    python benchmarks/crab_split.py --part dev --failures 20
    python benchmarks/crab_split.py --gold                # the 150 rows whose truth is known

The published generator's eleven templates are rendered here, from its description and apart from the rules under
test, with its seven connectors and its number of constraints (1 to 8, mostly 6 to 8). Instructions are real ones of
ten kinds: with lists, code, blank lines, Chinese. Constraints come from three sources: `crab` (the 12 seed records;
the rules were written with these in view), `ifeval` (whole sentences of other authors) and `fragments` (lower case,
without end stops). Two more are reported apart: `single`, one constraint alone, and `lines`, constraints of several
lines. Instructions are parted by a hash: rules are tuned on `dev`, figures come from `test`.

A row counts as right when instruction and every constraint are right to the character and the split is certain
enough to be used; else it is wrong (used, and not right) or one input (too uncertain, or no template fits).
"""

import argparse
import gzip
import hashlib
import json
import os
import random
import sys
from collections import Counter
from pathlib import Path

from misotune.data.crab_split import split_user_text
from misotune.data.sources.crab import MIN_CONFIDENCE

SHARED = Path(os.environ.get("MISOTUNE_SHARED", Path(__file__).parents[2] / "shared")) / "data"

MET = "When answering, please ensure that the following constraints are also met."
# name: text, indent, whether the constraints begin with a newline (long source texts: not), for long texts only
TEMPLATES = {
    "plain": ("{i}\n{c}", "", True, False),
    "when answering": ("{i}\n\n" + MET + "{c}", "", True, False),
    "Please follow": (
        "Please follow the instructions below to generate your response. Additionally, make sure to adhere to the "
        "specific constraints mentioned.\n\nInstructions: {i}\n\nAdditional Constraints: {c}",
        "    ",
        True,
        False,
    ),
    "Please carefully": (
        "Please carefully read and follow the instructions below, along with the additional restrictions provided, "
        "to generate your response.\n\nInstructions: {i}\n\nAdditional Restrictions: {c}",
        "    ",
        True,
        False,
    ),
    "Please ensure": (
        "Please ensure you read and follow the detailed instructions and additional constraints provided below to "
        "accurately address the query.\n\n- **Instructions**: {i}\n- **Additional Constraints**: {c}\n\n"
        "Your compliance with these guidelines is essential for a valid response.",
        "    ",
        True,
        False,
    ),
    "To generate": (
        "To generate your response, please adhere to the following:\n1. **Instructions**: {i}\n"
        "2. **Additional Constraints**: {c}\n\n"
        "It's important to follow these guidelines closely to ensure your response is appropriate.",
        "    ",
        True,
        False,
    ),
    "We invite": (
        "We invite you to respond by carefully considering the instructions and constraints outlined below. Your "
        "thoughtful adherence to these guidelines will greatly enhance the quality of your response.\n\n"
        "- **Instructions**: {i}\n- **Additional Constraints**: {c}\n\nThank you for your attention to detail!",
        "    ",
        True,
        False,
    ),
    "Hey there": (
        "Hey there! We'd love for you to take a crack at this by following the steps and rules below:\n"
        "- Here's what you need to do: {i}\n- Just a couple of things to keep in mind: {c}\n\n"
        "Can't wait to see what you come up with!",
        "    ",
        True,
        False,
    ),
    "long: first": ("{c}\n{i}", "", False, True),
    "long: Query": ("{c}\n\nQuery:\n{i}", "", False, True),
    "long: when answering": ("{i}\n\n" + MET + "\n{c}", "", False, True),
}
CONNECTORS = {"lines": "", "- ": "- ", "# ": "# ", "* ": "* ", "> ": "> ", "1. ": None, "paragraph": " "}
BASE_TEMPLATES = ("plain", "when answering")
BASE_CONNECTORS = ("lines", "- ", "# ", "* ", "> ")
LONG_WORDS = 60


def render(template: str, connector: str, instruction: str, constraints: list[str]) -> str:
    text, indent, newline, _ = TEMPLATES[template]
    mark = CONNECTORS[connector]
    if connector == "paragraph":
        block = " ".join(constraints)
    else:
        marks = [f"{n}. " if mark is None else mark for n in range(1, len(constraints) + 1)]
        lines = [indent + m + item for m, item in zip(marks, constraints, strict=True)]
        block = ("\n" if newline else "") + "\n".join(lines)
    before, _, after = text.partition("{c}")
    return before.replace("{i}", instruction) + block + after.replace("{i}", instruction)


def rows(path: str) -> list[dict]:
    file = SHARED / path
    content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    if path.removesuffix(".gz").endswith(".jsonl"):
        return [json.loads(line) for line in content.splitlines() if line.strip()]
    found = json.loads(content)
    return list(found.values()) if isinstance(found, dict) else found


def real_instructions() -> dict[str, list[str]]:
    """Real instructions by kind."""
    seeds = rows("crab/constraint_back_translation_sample.json")
    chats = [
        [t["value"] for t in r["conversations"] if t["from"] == "human"] for r in rows("chat/sharegpt_sample.jsonl.gz")
    ]
    found = {
        "crab seeds": [r["messages"][0]["content"] for r in seeds]
        + [r["Aug_instruction"]["Refined_Instruction"] for r in seeds],
        "alpaca": [
            f"{r['instruction']}\n\n{r['input']}" if r["input"] else r["instruction"]
            for r in rows("chat/alpaca_en_demo.json.gz")
        ],
        "task texts": [r["instruction"] for r in rows("follow_complex_instruction/joined_train.jsonl.gz")],
        "stories": [r["instruction"] for r in rows("ifeval_extended/joined_train.jsonl.gz")],
        "chat": [turns[0] for turns in chats if turns],
        "programs": [r["prompt"] for r in rows("code/HumanEval.jsonl.gz")],
        "coding": [r["text"] for r in rows("code/mbpp.jsonl.gz")],
        "math": [r["question"] for r in rows("math/gsm8k_test.jsonl.gz")],
        "Chinese": [r["instruction"] for r in rows("complexbench/gpt4_1106.jsonl.gz")],
        "Conifer": [r["question"] for r in rows("conifer/06_answer.json")],
        "lettered": [
            r["question"]
            + "\n"
            + "\n".join(f"{'ABCDEFGHIJ'[n]}. {option}" for n, option in enumerate(r["options"][:10]))
            for r in rows("reasoning/r1_pcmb_traces_filtered.jsonl.gz")
        ],
    }
    return {kind: [text for text in texts if text.strip() and len(text) < 8000] for kind, texts in found.items()}


def real_constraints() -> dict[str, list[str]]:
    """Real constraints by where they come from; those of several lines apart."""
    seeds = rows("crab/constraint_back_translation_sample.json")
    found = {
        "crab": [text for r in seeds for text in r["Aug_instruction"]["Additional_Instruction"].values()],
        "ifeval": [text for r in rows("ifeval_extended/joined_train.jsonl.gz") for text in r["constraints"]],
        "fragments": [
            text for r in rows("follow_complex_instruction/joined_train.jsonl.gz") for text in r["constraints"]
        ],
    }
    several = sorted({text for texts in found.values() for text in texts if "\n" in text.strip()})
    single = {
        kind: sorted({text for text in texts if "\n" not in text and text.strip()}) for kind, texts in found.items()
    }
    return {**single, "several lines": several}


def part_of(instruction: str) -> str:
    return "dev" if hashlib.sha256(instruction.encode()).digest()[0] % 2 else "test"


def cases(part: str, per_cell: int, seed: int):
    """Yields (template, connector, constraints' source, instruction, constraints)."""
    instructions = {
        kind: [text for text in texts if part_of(text) == part] for kind, texts in real_instructions().items()
    }
    long = {kind: [t for t in texts if len(t.split()) >= LONG_WORDS] for kind, texts in instructions.items()}
    long = {kind: texts for kind, texts in long.items() if texts}
    constraints = real_constraints()
    several = constraints.pop("several lines")
    for template, (_, _, _, for_long) in TEMPLATES.items():
        for connector in CONNECTORS:
            rng = random.Random(f"{seed}:{part}:{template}:{connector}")
            for source in (*constraints, "single", "lines"):
                for _ in range(per_cell):
                    texts = rng.choice(list((long if for_long else instructions).values()))
                    pool = constraints[source] if source in constraints else constraints["ifeval"]
                    number = rng.randint(6, 8) if rng.random() < 0.7 else rng.randint(2, 8)
                    chosen = rng.sample(pool, 1 if source == "single" else number)
                    if source == "lines":
                        chosen[rng.randrange(len(chosen))] = rng.choice(several)
                    yield template, connector, source, rng.choice(texts), chosen


def verdict(text: str, instruction: str, constraints: list[str]) -> tuple[str, str]:
    split = split_user_text(text)
    if split is None:
        return "one input", "no template fits"
    is_right = (split.instruction, list(split.constraints)) == (instruction, constraints)
    if split.confidence < MIN_CONFIDENCE:
        return "one input", f"{split.rule} at {split.confidence:.2f}{', right' if is_right else ''}"
    return ("right" if is_right else "wrong"), f"{split.rule} at {split.confidence:.2f}"


def percent(counts: Counter) -> str:
    total = counts.total()
    wrong = f" ({counts['wrong'] / total:.0%} wrong)" if counts["wrong"] / max(total, 1) >= 0.005 else ""
    return f"{counts['right'] / total:.1%}{wrong}" if total else "-"


def print_table(title: str, cells: dict[tuple[str, str], Counter], columns: list[str]) -> None:
    names = list(dict.fromkeys(name for name, _ in cells))
    print(f"\n{title}\n\n| | {' | '.join(columns)} | all but paragraph |\n| --- |{' ---: |' * (len(columns) + 1)}")
    for name in (*names, "all"):
        picked = [
            sum((c for (n, k), c in cells.items() if k == column and name in (n, "all")), Counter())
            for column in columns
        ]
        on_lines = sum((c for c, column in zip(picked, columns, strict=True) if column != "paragraph"), Counter())
        print(f"| {name} | {' | '.join(map(percent, picked))} | {percent(on_lines)} |")


def held_out(part: str, per_cell: int, seed: int, failures: int) -> None:
    by_source: dict[str, dict[tuple[str, str], Counter]] = {}
    shown = 0
    weighted: Counter = Counter()
    for template, connector, source, instruction, constraints in cases(part, per_cell, seed):
        text = render(template, connector, instruction, constraints)
        result, how = verdict(text, instruction, constraints)
        by_source.setdefault(source, {}).setdefault((template, connector), Counter())[result] += 1
        if source in ("crab", "ifeval") and template in BASE_TEMPLATES and connector in BASE_CONNECTORS:
            weighted[result] += 1
        if result != "right" and shown < failures and connector != "paragraph":
            shown += 1
            print(f"\n--- {template} / {connector} / {source}: {result}, {how}\n{text}\n... gold: {constraints}")
    for source, cells in by_source.items():
        print_table(f"Constraints: {source} ({part}, {per_cell} rows a cell)", cells, list(CONNECTORS))
    print(f"\nThe generator's 85 % (plain and when answering, on lines), crab and ifeval: {percent(weighted)}")


def gold() -> None:
    cells: dict[tuple[str, str], Counter] = {}
    names = {"": "lines", "{index}. ": "1. ", " ": "paragraph"}
    for row, truth in zip(rows("crab/rendered.jsonl.gz"), rows("crab/rendered_gold.jsonl.gz"), strict=True):
        connector = truth["connector"].removesuffix("{item}")
        text = row["messages"][-2]["content"]
        result, how = verdict(text, truth["instruction"], truth["constraints"])
        is_first = not text.startswith((truth["instruction"][:40], truth["template"][:15]))
        template = " ".join(truth["template"].split()) + (" (constraints first)" if is_first else "")
        cells.setdefault((template, names.get(connector, connector)), Counter())[result] += 1
        if result != "right":
            print(f"--- {row['id']}: {result}, {how}")
    print_table("The 150 rows whose truth is known", cells, list(CONNECTORS))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("dev", "test"), default="test")
    parser.add_argument("--per-cell", type=int, default=100, help="rows for each template, connector and source")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--failures", type=int, default=0, help="print so many rows that were not right")
    parser.add_argument("--gold", action="store_true", help="the 150 rows whose truth is known, instead")
    arguments = parser.parse_args()
    if not SHARED.is_dir():
        sys.exit(f"{SHARED}: needs the real data samples")
    if arguments.gold:
        gold()
    else:
        held_out(arguments.part, arguments.per_cell, arguments.seed, arguments.failures)


if __name__ == "__main__":
    main()
