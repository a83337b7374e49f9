"""A small mixture of four files in the current folder."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

MIXTURE = """\
name: small
sources:
  - source: chat.jsonl
    domain: chat
  - source: code.jsonl
    domain: code
    map: {instruction: text, output: code}
  - source: math.jsonl
    domain: math
order: [chat, code, math]
system_prompts:
  code: [Write Python., Write short code., Write code that runs.]
  math: [Think step by step.]
"""

ROWS: dict[str, list[dict[str, Any]]] = {
    "chat.jsonl": [
        {
            "messages": [
                *([{"role": "system", "content": f"Own prompt {i}."}] if i % 2 else []),
                {"role": "user", "content": f"Hello {i}"},
                {"role": "assistant", "content": f"Hi {i}"},
            ]
        }
        for i in range(12)
    ],
    "code.jsonl": [{"text": f"Add {i}.", "code": f"x + {i}"} for i in range(5)],
    "math.jsonl": [{"id": f"m{i}", "instruction": f"{i} + {i}?", "output": f"{2 * i}"} for i in range(30)],
}


@pytest.fixture
def write_mixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Writes `mix.yaml` and its data in a folder that becomes the current one."""
    monkeypatch.chdir(tmp_path)
    for name, rows in ROWS.items():
        Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    def write(text: str = MIXTURE) -> Path:
        path = Path("mix.yaml")
        path.write_text(text, encoding="utf-8")
        return path

    return write
