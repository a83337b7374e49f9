import json

import pytest


@pytest.fixture
def write(tmp_path):
    """Writes a result folder of rows; further fields go into scores.json."""

    def write_result(name, rows, **fields):
        folder = tmp_path / name
        folder.mkdir(parents=True, exist_ok=True)
        scores = {"format": 2, "task": "ifeval", "model": name, "prompts_sha256": "same" * 16, "settings": {}, **fields}
        (folder / "scores.json").write_text(json.dumps(scores), encoding="utf-8")
        (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return folder

    return write_result
