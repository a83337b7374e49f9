"""The resolved recipe as text, and that it reads back."""

from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from misotune.recipe.loading import load_recipe
from misotune.recipe.resolved import dump, leaves, list_lines
from misotune.recipe.yaml_text import format_value

texts = st.text(min_size=1, max_size=30)
positive = st.floats(min_value=1e-12, max_value=1e12)
counts = st.integers(1, 10**9)
FIELDS = {
    "name": st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,20}\Z"),
    "seed": st.integers(0, 2**32 - 1),
    "model.name": texts,
    "model.revision": st.none() | texts,
    "data.max_dropped": st.floats(0, 1),
    "miso.mode": st.sampled_from(["para", "sft", "flat", "succ"]),
    "miso.inputs": st.lists(st.sampled_from(["full", "constraint", "base"]), min_size=1, unique=True).map(tuple),
    "miso.chunks": st.sampled_from([{1: 1.0}, {2: 0.5, 64: 0.5}, {1: 0.1, 2: 0.2, 3: 0.7}]),
    "train.max_steps": st.none() | counts,
    "train.batch_size": counts,
    "train.pack": st.booleans(),
    "train.learning_rate": positive,
    "train.warmup_ratio": st.floats(0, 1),
    "lora.target_modules": texts | st.lists(texts, min_size=1, max_size=3).map(tuple),
    "lora.alpha": positive,
    "deepspeed.stage": st.integers(0, 3),
    "output.runs_dir": texts,
}
overrides = st.fixed_dictionaries({}, optional=FIELDS)


@pytest.fixture
def small_path(write_recipe, small_recipe) -> Path:
    return write_recipe(small_recipe)


# The recipe file is the same for every example.
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(chosen=overrides)
def test_overrides_round_trip(small_path, chosen):
    flags = [f"{key}={format_value(value)}" for key, value in chosen.items()]
    resolved = load_recipe(small_path, flags)
    for (key, value), flag in zip(chosen.items(), flags, strict=True):
        assert resolved.recipe.value_at(key) == value
        assert resolved.origins[key] == f"flag {flag}"
    again = Path("again.yaml")
    again.write_text(dump(resolved), encoding="utf-8")
    assert load_recipe(again).recipe == resolved.recipe


def test_shares_of_roles_round_trip(small_path):
    resolved = load_recipe(small_path, ["miso.weighting=fixed", "miso.weights={full: 0.5, base: 0.1}"])
    assert resolved.recipe.miso.weights == {"full": 0.5, "base": 0.1}
    again = Path("again.yaml")
    again.write_text(dump(resolved), encoding="utf-8")
    assert load_recipe(again).recipe == resolved.recipe


def test_the_dump_has_one_line_and_one_origin_for_each_field(small_path):
    resolved = load_recipe(small_path, ["train.max_steps=20", "deepspeed.stage=2"])
    lines = [line for line in list_lines(resolved) if line.origin]
    assert len(lines) == len(list(leaves(resolved.recipe))) == len(resolved.origins)
    text = dump(resolved)
    assert "\n  max_steps: 20                                 # flag train.max_steps=20\n" in text
    assert "\n  batch_size: 4                                 # r.yaml:11\n" in text
    assert "\nlora: null                                      # default\n" in text
    assert "\ndeepspeed:\n  stage: 2 " in text


def test_the_origins_are_aligned_and_long_values_stick_out(small_path):
    long_name = "models/" + "x" * 100
    text = dump(load_recipe(small_path, [f"model.name={long_name}"]))
    columns = {line.index("# ") for line in text.splitlines() if "# " in line and long_name not in line}
    assert len(columns) == 1
    assert f"  name: {long_name}  # flag model.name={long_name}\n" in text


def test_a_dump_means_the_same_to_plain_pyyaml(small_path):
    values = yaml.safe_load(dump(load_recipe(small_path)))
    assert values["train"]["learning_rate"] == 1e-5
    assert values["miso"]["chunks"] == {1: 0.25, 2: 0.25, 3: 0.25, 4: 0.25}


def test_a_line_break_in_a_flag_stays_in_its_comment(small_path):
    text = dump(load_recipe(small_path, ['output.runs_dir="a\n\n  b"']))
    assert '# flag output.runs_dir="a\\n\\n  b"' in text
