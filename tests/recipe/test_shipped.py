"""The shipped recipes: each loads, says what the paper says, and its resolved form is kept.

After a wanted change: `UPDATE_GOLDEN=1 pytest tests/recipe/test_shipped.py`, and read the difference.
"""

import os
import re
from pathlib import Path

import pytest

from misotune.recipe.loading import load_recipe, shipped_recipes
from misotune.recipe.resolved import dump

GOLDEN = Path(__file__).parent / "golden"
RECIPES = {path.stem: path for path in shipped_recipes()}


def resolved_form(path: Path) -> str:
    """The resolved recipe with `recipe` or `default` behind each value: line numbers may move."""
    return re.sub(r"# \S+\.yaml:\d+$", "# recipe", dump(load_recipe(path)), flags=re.MULTILINE)


def test_the_five_recipes_are_shipped():
    assert set(RECIPES) == {"quickstart", "llama3_crab", "mistral_crab", "llama3_r1", "context_awareness"}


@pytest.mark.parametrize("name", RECIPES)
def test_the_resolved_form_is_the_golden_one(name):
    golden = GOLDEN / f"{name}.yaml"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(resolved_form(RECIPES[name]), encoding="utf-8")
    assert resolved_form(RECIPES[name]) == golden.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("mode", ["para", "succ", "sft", "flat"])
def test_every_shipped_recipe_runs_in_every_mode(name, mode):
    assert load_recipe(RECIPES[name], [f"miso.mode={mode}"]).recipe.miso.mode == mode


@pytest.mark.parametrize(
    ("name", "model", "epochs", "batch_size", "max_length", "mode"),
    [
        ("llama3_crab", "meta-llama/Meta-Llama-3-8B", 3, 256, 4096, "para"),
        ("mistral_crab", "mistralai/Mistral-7B-v0.3", 4, 256, 2048, "para"),
        ("llama3_r1", "meta-llama/Meta-Llama-3-8B", 4, 128, 4096, "succ"),
    ],
)
def test_the_paper_s_appendices_b_and_c(name, model, epochs, batch_size, max_length, mode):
    recipe = load_recipe(RECIPES[name]).recipe
    assert (recipe.model.name, recipe.model.chat_template) == (model, "tulu")
    assert (recipe.train.epochs, recipe.train.batch_size) == (epochs, batch_size)
    assert (recipe.train.learning_rate, recipe.train.warmup_ratio) == (5e-6, 0.1)
    assert (recipe.data.max_length, recipe.miso.mode) == (max_length, mode)
    assert recipe.miso.weighting == "uniform"


def test_the_r1_recipe_draws_chunks_as_appendix_c():
    assert load_recipe(RECIPES["llama3_r1"]).recipe.miso.chunks == {1: 0.55, 2: 0.15, 3: 0.15, 4: 0.15}
