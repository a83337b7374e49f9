"""The embedded starter set: original instruction-response pairs with constraints that IFEval verifiers check.

`train.jsonl`: `id`, `domain`, `instruction`, `constraints`, `instruction_id_list`, `kwargs`, `output`.
`eval.jsonl`: `key`, `domain`, `prompt`, `instruction_id_list`, `kwargs`, as IFEval's own file.
"""

from pathlib import Path

TRAIN_FILE = Path(__file__).parent / "train.jsonl"
EVAL_FILE = Path(__file__).parent / "eval.jsonl"
