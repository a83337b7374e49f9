"""A small para dataset and recipes over the tiny model."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from misotune.recipe.checking import check_recipe
from misotune.recipe.schema import Recipe

SUBJECTS = ("tea", "rain", "bread", "chess", "wool", "maps", "bees", "salt", "ice", "jazz", "moss", "clay")


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Twelve hand-written rows: 3 or 4 inputs of different lengths, outputs of different lengths."""
    path = tmp_path / "rows.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for i, subject in enumerate(SUBJECTS):
            constraints = ["Be brief.", "Use no commas.", "Mention " + subject * 2 + "."][: 1 + i % 3]
            base = f"Write about {subject}."
            texts = [
                ("full", " ".join([base, *constraints])),
                *(("constraint", f"{base} {c}") for c in constraints),
            ]
            inputs = [
                {"role": role, "messages": [{"role": "user", "content": text}], "constraint": None}
                for role, text in [*texts, ("base", base)]
            ]
            row = {
                "id": f"row-{i}",
                "inputs": inputs,
                "output": f"All about {subject}" + " and more" * (i % 4),
            }
            file.write(json.dumps(row) + "\n")
    return path


@pytest.fixture
def make_recipe(tiny_model_dir: Path, dataset: Path, tmp_path: Path) -> Callable[..., Recipe]:
    """Returns recipes in float32 over the tiny model; keyword arguments replace a section's values."""

    def make(name: str = "run", **sections: Any) -> Recipe:
        values: dict[str, Any] = {
            "name": name,
            "model": {"name": str(tiny_model_dir)},
            "data": {"path": str(dataset), "max_length": 256},
            "miso": {"mode": "para"},
            "train": {"max_steps": 4, "batch_size": 4, "learning_rate": 1e-2, "precision": "fp32"},
            "output": {"runs_dir": str(tmp_path / "runs")},
        }
        for key, section in sections.items():
            values[key] = {**values.get(key, {}), **section} if isinstance(section, dict) else section
        recipe = check_recipe(values)
        assert isinstance(recipe, Recipe), recipe
        return recipe

    return make
