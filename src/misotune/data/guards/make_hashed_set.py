"""Makes a shipped evaluation set of hashes: `python -m misotune.data.guards.make_hashed_set PROMPTS OUT.npz URL`.

`ifeval.npz` was made from `instruction_following_eval/data/input_data.jsonl` of google-research/google-research.
"""

import sys
from pathlib import Path

from misotune.data.guards.prompts import hash_prompt, read_prompts, write_hashed_set
from misotune.storage import sha256_of


def make_hashed_set(prompts: Path, out: Path, origin: str) -> int:
    """Writes the prompts of a file as hashes, and returns how many there are.

    Args:
        prompts: A file of prompts.
        out: The .npz file.
        origin: Where the file of prompts can be had.
    """
    hashed = [hash_prompt(prompt) for prompt in read_prompts(prompts)]
    write_hashed_set(out, hashed, {"origin": origin, "sha256": sha256_of(prompts)})
    return len(hashed)


if __name__ == "__main__":
    source, target, url = sys.argv[1:]
    sys.stdout.write(f"{target}: {make_hashed_set(Path(source), Path(target), url)} prompts\n")
