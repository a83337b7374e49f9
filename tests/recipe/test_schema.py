"""The recipe's models and their JSON schema."""

import json
import re
from typing import Any

import pytest
from pydantic import ValidationError

from misotune.recipe.loading import load_recipe, shipped_recipes
from misotune.recipe.schema import Recipe, recipe_json_schema
from misotune.recipe.yaml_text import parse_yaml

IGNORED = {"title", "description", "default", "examples", "patternErrorMessage", "$defs", "$schema"}
TYPES = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "integer": int,
    "number": (int, float),
}


def small_values(**changes: Any) -> dict[str, Any]:
    values = {
        "name": "small",
        "model": {"name": "m"},
        "data": {"path": "d", "max_length": 8},
        "miso": {"mode": "para"},
        "train": {"epochs": 1, "batch_size": 1, "learning_rate": 0.1},
    }
    return values | changes


def conforms(value: Any, schema: dict[str, Any], root: dict[str, Any]) -> bool:
    """A validator for the keywords that our schema uses; an unknown keyword fails."""
    if "$ref" in schema:
        return conforms(value, root["$defs"][schema["$ref"].rpartition("/")[2]], root)

    def has_type(name: str) -> bool:
        if name == "null":
            return value is None
        return isinstance(value, TYPES[name]) and (name == "boolean") == isinstance(value, bool)

    def properties_fit(properties: dict[str, Any]) -> bool:
        return all(conforms(value[key], properties[key], root) for key in value if key in properties)

    def extras_fit(extra: Any) -> bool:
        others = [key for key in value if key not in schema.get("properties", {})]
        return not others if extra is False else all(conforms(value[key], extra, root) for key in others)

    checks = {
        "type": has_type,
        "anyOf": lambda options: any(conforms(value, option, root) for option in options),
        "enum": lambda words: value in words,
        "properties": properties_fit,
        "additionalProperties": extras_fit,
        "required": lambda keys: all(key in value for key in keys),
        "propertyNames": lambda names: all(conforms(key, names, root) for key in value),
        "items": lambda item: all(conforms(entry, item, root) for entry in value),
        "uniqueItems": lambda _: len(set(value)) == len(value),
        "minItems": lambda n: len(value) >= n,
        "minProperties": lambda n: len(value) >= n,
        "minLength": lambda n: len(value) >= n,
        "maxLength": lambda n: len(value) <= n,
        "pattern": lambda pattern: re.search(pattern, value) is not None,
        "minimum": lambda n: value >= n,
        "maximum": lambda n: value <= n,
        "exclusiveMinimum": lambda n: value > n,
        "exclusiveMaximum": lambda n: value < n,
    }
    rules = {key: rule for key, rule in schema.items() if key not in IGNORED}
    first = [key for key in ("type",) if key in rules]  # the other checks rely on the type
    return all(checks[key](rules[key]) for key in [*first, *(key for key in rules if key != "type")])


def as_json(path) -> Any:
    """The values of a recipe file as JSON has them, with text keys."""
    return json.loads(json.dumps(parse_yaml(path.read_text(encoding="utf-8")).value))


def test_a_recipe_cannot_be_changed():
    recipe = Recipe.model_validate(small_values())
    with pytest.raises(ValidationError, match="frozen"):
        recipe.seed = 1


@pytest.mark.parametrize("key", ["epochs", "max_steps", "batch_size", "learning_rate", "warmup_ratio"])
@pytest.mark.parametrize("value", [True, "1"])
def test_true_and_text_are_not_numbers(key, value):
    train = small_values()["train"] | {key: value}
    with pytest.raises(ValidationError):
        Recipe.model_validate(small_values(train=train))


def test_rules_hold_for_recipes_made_in_python():
    with pytest.raises(ValidationError, match=r"train\.epochs and train\.max_steps are both null"):
        Recipe.model_validate(small_values(train={"batch_size": 1, "learning_rate": 0.1}))


@pytest.mark.parametrize(
    ("mode", "positions", "chosen"),
    [
        ("para", "auto", "aligned"),
        ("sft", "auto", "aligned"),
        ("succ", "auto", "successive"),
        ("succ", "successive", "successive"),
        ("para", "start", "start"),
    ],
)
def test_auto_positions_follow_the_mode(mode, positions, chosen):
    recipe = Recipe.model_validate(small_values(miso={"mode": mode, "positions": positions}))
    assert recipe.miso.chosen_positions == chosen


def test_a_row_holds_one_longest_sample_unless_told():
    assert Recipe.model_validate(small_values()).row_capacity == 8
    train = small_values()["train"] | {"tokens_per_micro_batch": 100}
    assert Recipe.model_validate(small_values(train=train)).row_capacity == 100


def test_an_unknown_key_of_value_at_is_a_key_error():
    recipe = Recipe.model_validate(small_values())
    assert recipe.value_at("train.batch_size") == 1
    for key in ("lora.rank", "train.none", "name.x"):
        with pytest.raises(KeyError):
            recipe.value_at(key)


def test_every_field_is_described():
    schema = recipe_json_schema()
    for section in (schema, *schema["$defs"].values()):
        for name, field in section["properties"].items():
            assert "$ref" in field or field.get("description"), name
            assert "\n" not in field.get("description", "")


def test_the_schema_is_valid_draft_2020_12():
    jsonschema = pytest.importorskip("jsonschema")
    schema = recipe_json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    for path in shipped_recipes():
        jsonschema.Draft202012Validator(schema).validate(as_json(path))


@pytest.mark.parametrize("path", shipped_recipes(), ids=lambda path: path.stem)
def test_the_schema_accepts_the_shipped_recipes(path):
    schema = json.loads(json.dumps(recipe_json_schema()))
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert conforms(as_json(path), schema, schema)
    assert conforms(load_recipe(path).recipe.model_dump(mode="json"), schema, schema)


@pytest.mark.parametrize(
    "change",
    [
        {"nme": "x"},
        {"name": "a/b"},
        {"seed": True},
        {"miso": {"mode": "pra"}},
        {"miso": {"mode": "para", "chunks": {"65": 1.0}}},
        {"miso": {"mode": "para", "inputs": ["full", "full"]}},
        {"miso": {"mode": "para", "weighting": "fixed", "weights": {"chunked": 0.5}}},
        {"miso": {"mode": "para", "weighting": "fixed", "weights": {"full": 0.0}}},
        {"deepspeed": {"stage": 4}},
        {"train": {"batch_size": 1}},
        {"lora": {"target_modules": []}},
    ],
    ids=str,
)
def test_the_schema_refuses_what_the_models_refuse(change):
    schema = recipe_json_schema()
    assert conforms(small_values(), schema, schema)
    assert not conforms(small_values(**change), schema, schema)
    with pytest.raises(ValidationError):
        Recipe.model_validate(small_values(**change))
