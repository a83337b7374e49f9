"""Reading recipes: values, origins, and the words of every error."""

import re
from pathlib import Path

import pytest

from misotune.errors import RecipeError, UsageError
from misotune.recipe import loading
from misotune.recipe.loading import find_recipe, load_recipe, shipped_recipes


def errors_of(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides)
    return str(caught.value).splitlines()


def edited(text: str, old: str, new: str) -> str:
    assert old in text
    return text.replace(old, new)


def test_values_come_from_file_then_flags_then_defaults(write_recipe, small_recipe):
    resolved = load_recipe(write_recipe(small_recipe), ["train.max_steps=20", "miso.inputs=[full, base]"])
    assert resolved.recipe.train.learning_rate == 1e-5
    assert resolved.recipe.train.max_steps == 20
    assert resolved.recipe.miso.inputs == ("full", "base")
    assert resolved.recipe.train.schedule == "cosine"
    assert resolved.origins["train.learning_rate"] == "r.yaml:12"
    assert resolved.origins["train.max_steps"] == "flag train.max_steps=20"
    assert resolved.origins["miso.inputs"] == "flag miso.inputs=[full, base]"
    assert resolved.origins["train.schedule"] == "default"
    assert resolved.origins["lora"] == "default"


def test_an_override_begins_a_section_that_is_null(write_recipe, small_recipe):
    resolved = load_recipe(write_recipe(small_recipe + "deepspeed:\n"), ["deepspeed.stage=2", "lora.rank=4"])
    assert resolved.recipe.deepspeed is not None
    assert resolved.recipe.deepspeed.stage == 2
    assert resolved.recipe.lora is not None
    assert resolved.recipe.lora.rank == 4
    assert resolved.origins["deepspeed.stage"] == "flag deepspeed.stage=2"
    assert resolved.origins["lora.alpha"] == "default"


def test_an_override_of_a_whole_section_replaces_it(write_recipe, small_recipe):
    path = write_recipe(small_recipe + "lora: {rank: 4, dropout: 0.5}\n")
    assert load_recipe(path, ["lora=null"]).recipe.lora is None
    resolved = load_recipe(path, ["lora={rank: 8}"])
    assert resolved.recipe.lora is not None
    assert (resolved.recipe.lora.rank, resolved.recipe.lora.dropout) == (8, 0.0)
    assert resolved.origins["lora.rank"] == "flag lora={rank: 8}"
    assert resolved.origins["lora.dropout"] == "default"


def test_the_later_of_two_equal_overrides_wins(write_recipe, small_recipe):
    resolved = load_recipe(write_recipe(small_recipe), ["seed=1", "seed=2"])
    assert resolved.recipe.seed == 2
    assert resolved.origins["seed"] == "flag seed=2"


def test_an_override_cures_a_wrong_value_in_the_file(write_recipe, small_recipe):
    path = write_recipe(edited(small_recipe, "batch_size: 4", "batch_size: many"))
    assert load_recipe(path, ["train.batch_size=4"]).recipe.train.batch_size == 4


def test_a_recipe_of_a_byte_order_mark_and_windows_line_ends_loads(write_recipe, small_recipe):
    path = write_recipe("\ufeff" + small_recipe.replace("\n", "\r\n"))
    assert load_recipe(path).origins["train.batch_size"] == "r.yaml:11"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "learning_rate: 1e-5",
            "learnig_rate: 1e-5",
            "r.yaml:12: train.learnig_rate: unknown key; did you mean 'learning_rate'? allowed: epochs, ",
        ),
        (
            "name: small",
            "name: small\nlearning_rate: 3",
            "r.yaml:2: learning_rate: unknown key; did you mean 'train.learning_rate'? allowed: name, seed, ",
        ),
        ("  batch", "  zzz: 1\n  batch", "r.yaml:11: train.zzz: unknown key; allowed: epochs, "),
        ("  mode", "  1: 1\n  mode", "r.yaml:8: miso.1: unknown key; allowed: mode, "),
        ("1e-5", "fast", "r.yaml:12: train.learning_rate: got 'fast'; must be a number > 0"),
        ("1e-5", "0", "r.yaml:12: train.learning_rate: got 0; must be a number > 0"),
        ("1e-5", ".inf", "r.yaml:12: train.learning_rate: got .inf; must be a finite number > 0"),
        ("1e-5", "true", "r.yaml:12: train.learning_rate: got true; must be a number > 0"),
        ("1e-5", "'1e-5'", "r.yaml:12: train.learning_rate: got '1e-5'; must be a number > 0"),
        ("epochs: 2", "epochs: -2", "r.yaml:10: train.epochs: got -2; must be a number > 0, or null"),
        ("batch_size: 4", "batch_size: 4.0", "train.batch_size: got 4.0; must be a whole number >= 1"),
        ("batch_size: 4", "batch_size: true", "train.batch_size: got true; must be a whole number >= 1"),
        ("batch_size: 4", "batch_size:", "train.batch_size: got null; must be a whole number >= 1"),
        (
            "mode: para",
            "mode: parallel",
            "r.yaml:8: miso.mode: got 'parallel'; must be one of para, succ, sft, flat",
        ),
        ("mode: para", "mode: pra", "must be one of para, succ, sft, flat; did you mean 'para'?"),
        (
            "mode: para",
            "mode: para\n  inputs: [full, bas]",
            "r.yaml:9: miso.inputs: got [full, bas]; must be a list (not empty) of full, constraint, base, "
            "each once; did you mean 'base'?",
        ),
        (
            "mode: para",
            "mode: para\n  inputs: []",
            "r.yaml:9: miso.inputs: got []; must be a list (not empty) of full, constraint, base, each once",
        ),
        (
            "mode: para",
            "mode: para\n  inputs: [full, full]",
            "r.yaml:9: miso.inputs: got [full, full]; each may stand there once",
        ),
        ("mode: para", "mode: para\n  inputs: full", "r.yaml:9: miso.inputs: got 'full'; must be a list"),
        (
            "mode: para",
            "mode: para\n  chunks: {1: 0.5, 2: 0.4}",
            "r.yaml:9: miso.chunks: got {1: 0.5, 2: 0.4}; the probabilities must sum to 1, and sum to 0.9",
        ),
        (
            "mode: para",
            "mode: para\n  chunks: {0: 1}",
            "r.yaml:9: miso.chunks: got {0: 1}; must be a mapping such as {1: 0.5, 2: 0.5}",
        ),
        (
            "mode: para",
            "mode: para\n  weights: {ful: 0.5}",
            "r.yaml:9: miso.weights: got {ful: 0.5}; must be a mapping such as {full: 0.5}",
        ),
        (
            "mode: para",
            "mode: para\n  weights: {full: 0}",
            "r.yaml:9: miso.weights: got {full: 0}; must be a mapping such as {full: 0.5}",
        ),
        (
            "mode: para",
            "mode: para\n  weights: {full: 0.7, base: 0.4}",
            "r.yaml:9: miso.weights: got {full: 0.7, base: 0.4}; the shares must sum to 1 at most, and sum to 1.1",
        ),
        (
            "name: small",
            "name: a/b",
            "r.yaml:1: name: got 'a/b'; must be a folder name: a letter or digit, then ",
        ),
        ("name: small", "name: ..", "r.yaml:1: name: got '..'; must be a folder name"),
        ("name: small", "name: 2024", "r.yaml:1: name: got 2024; must be a folder name: "),
        ("name: small", f"name: {'a' * 101}", f"r.yaml:1: name: got '{'a' * 56}...; must be a folder name"),
        ("name: some/model", "name: 7", "model.name: got 7; must be text (not empty); put it in quotes"),
        ("name: some/model", "name: ''", "r.yaml:3: model.name: got ''; must be text (not empty)"),
        (
            "model:\n  name: some/model",
            "model: some/model",
            "r.yaml:2: model: got 'some/model'; must be a section with the keys name, revision, chat_template",
        ),
        ("name: small\n", "", "r.yaml: name: missing; must be a folder name: "),
        ("  max_length: 64\n", "", "r.yaml:4: data.max_length: missing; must be a whole number >= 1"),
        ("miso:\n  mode: para\n", "", "r.yaml: miso: missing; must be a section with the keys mode, "),
        (
            "  batch",
            "  batch_size: 1\n  batch",
            "r.yaml:12: train.batch_size: given twice, first in line 11; keep one",
        ),
        ("name: small", "name: [", "not valid YAML: "),
        (
            "name: small",
            "lora: 5\nname: small",
            "r.yaml:1: lora: got 5; must be a section with the keys rank, ",
        ),
        (
            "name: small",
            "lora: {target_modules: 5}\nname: small",
            "got 5; must be text (not empty), or a list (not empty)",
        ),
        (
            "name: small",
            "lora: {dropout: 1}\nname: small",
            "lora.dropout: got 1; must be a number >= 0 and < 1",
        ),
        (
            "name: small",
            "name: small\ndeepspeed: {stage: 4}",
            "deepspeed.stage: got 4; must be a whole number >= 0 and <= 3",
        ),
        (
            "name: small",
            "name: small\ndeepspeed: {stage: true}",
            "deepspeed.stage: got true; must be a whole number",
        ),
        (
            "name: small",
            "name: small\ndeepspeed: {}",
            "r.yaml:2: deepspeed needs one of deepspeed.stage (0 to 3) and deepspeed.config (a JSON file)",
        ),
    ],
)
def test_a_wrong_recipe_says_where_and_what_is_allowed(write_recipe, small_recipe, old, new, message):
    (line,) = errors_of(write_recipe(edited(small_recipe, old, new)))
    assert message in line
    assert re.match(r"r\.yaml(:\d+)?: ", line)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["miso.positions=successive"],
            "miso.positions=successive: miso.positions 'successive' is for miso.mode 'succ', got miso.mode "
            "'para'; use 'auto'",
        ),
        (
            ["miso.positions=aligned", "miso.mode=succ"],
            "miso.mode=succ: miso.mode 'succ' needs miso.positions 'auto' or 'successive', got 'aligned'",
        ),
        (
            ["miso.weighting=fixed"],
            "miso.weighting=fixed: miso.weighting 'fixed' needs miso.weights, such as {full: 0.5}",
        ),
        (
            ["miso.weights={full: 0.5}"],
            "miso.weights={full: 0.5}: miso.weights are for miso.weighting 'fixed', got miso.weighting 'uniform'",
        ),
        (
            ["miso.weighting=fixed", "miso.weights={full: 0.5}", "miso.mode=succ"],
            "miso.mode=succ: miso.weighting 'fixed' is for miso.mode 'para', got miso.mode 'succ', whose chunks all "
            "have one role; use 'uniform'",
        ),
        (
            ["miso.weighting=fixed", "miso.weights={full: 0.5}", "miso.mode=flat"],
            "miso.mode=flat: miso.weighting 'fixed' is for miso.mode 'para', got miso.mode 'flat', whose "
            "samples have one input each; use 'uniform'",
        ),
        (
            ["miso.weighting=fixed", "miso.weights={full: 0.5}", "miso.inputs=[constraint, base]"],
            "miso.inputs=[constraint, base]: miso.weights names 'full', which miso.inputs leaves out",
        ),
        (
            ["miso.weighting=fixed", "miso.weights={full: 0.5, base: 0.4}", "miso.inputs=[full, base]"],
            "miso.inputs=[full, base]: miso.weights names every role of miso.inputs: its shares must sum to 1, and "
            "sum to 0.9",
        ),
        (
            ["miso.weighting=fixed", "miso.weights={full: 0.5, base: 0.5}"],
            "miso.weights={full: 0.5, base: 0.5}: miso.weights leaves nothing for 'constraint' of "
            "miso.inputs; lower a share, or leave the role out",
        ),
        (
            ["train.epochs=null"],
            "train.epochs=null: train.epochs and train.max_steps are both null; give at least one",
        ),
        (
            ["deepspeed.stage=2", "deepspeed.offload=parameters"],
            "deepspeed.offload=parameters: deepspeed.offload 'parameters' needs deepspeed.stage 3, got "
            "deepspeed.stage 2",
        ),
        (
            ["deepspeed={stage: 1, offload: optimizer}"],
            "deepspeed={stage: 1, offload: optimizer}: deepspeed.offload 'optimizer' needs deepspeed.stage 2 "
            "or 3, got deepspeed.stage 1",
        ),
        (
            ["deepspeed={config: zero.json, offload: optimizer}"],
            "deepspeed={config: zero.json, offload: optimizer}: deepspeed.offload 'optimizer' goes with "
            "deepspeed.stage; with deepspeed.config, zero.json says it",
        ),
    ],
)
def test_rules_between_fields_name_both(write_recipe, small_recipe, overrides, message):
    (line,) = errors_of(write_recipe(small_recipe), *overrides)
    assert line.startswith(message)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.max_stps=3", "train.max_stps=3: unknown key; did you mean 'max_steps'? allowed: epochs, "),
        ("max_steps=3", "max_steps=3: unknown key; did you mean 'train.max_steps'? allowed: name, "),
        ("train.log_every_steps=0", "train.log_every_steps=0: got 0; must be a whole number >= 1"),
        ("train.foo.bar=1", "train.foo.bar=1: train.foo: unknown key; allowed: epochs, "),
        ("lora={rnk: 1}", "lora={rnk: 1}: lora.rnk: unknown key; did you mean 'rank'? allowed: rank, "),
        (
            "lora={rank: 1, rank: 2}",
            "lora={rank: 1, rank: 2}: lora.rank: given twice, first in line 1; keep one",
        ),
        (
            "deepspeed.offload=none",
            "deepspeed.offload=none: deepspeed needs one of deepspeed.stage (0 to 3) and deepspeed.config (a JSON",
        ),
        ("seed", "seed: not an override; write key.sub=value, as in train.max_steps=20"),
        ("train..x=1", "train..x=1: not an override; write key.sub=value"),
        ("train.max_steps=", "train.max_steps=: no value; for null write train.max_steps=null"),
        ("name.x=3", "name.x=3: name has no keys below it; set it whole: name=VALUE"),
        (
            "miso.chunks.1=1",
            "miso.chunks.1=1: miso.chunks has no keys below it; set it whole: miso.chunks={1: 0.5, 2: 0.5}",
        ),
        ("model=x", "model=x: got 'x'; must be a section with the keys name, revision, chat_template"),
        (
            "model.name=a: b: c",
            "model.name=a: b: c: not valid YAML: mapping values are not allowed here; as text: "
            "'model.name=\"a: b: c\"'",
        ),
        (
            "model.name=run #3",
            "model.name=run #3: not valid YAML: what follows ' #' would be a comment; put the value in "
            "quotes; as text: 'model.name=\"run #3\"'",
        ),
        (
            "model.revision=1234567",
            "model.revision=1234567: got 1234567; must be text (not empty), or null; put it in quotes; "
            "as text: 'model.revision=\"1234567\"'",
        ),
    ],
)
def test_a_wrong_override_is_its_own_place(write_recipe, small_recipe, override, message):
    (line,) = errors_of(write_recipe(small_recipe), override)
    assert line.startswith(message)


def test_the_text_form_that_an_error_proposes_is_accepted(write_recipe, small_recipe):
    resolved = load_recipe(write_recipe(small_recipe), ['model.revision="1234567"', 'model.name="run #3"'])
    assert resolved.recipe.model.revision == "1234567"
    assert resolved.recipe.model.name == "run #3"


def test_all_problems_are_reported_together_file_first_then_flags(write_recipe, small_recipe):
    text = edited(small_recipe, "batch_size: 4", "batch_size: x\n  pack: maybe\n  pack: true")
    lines = errors_of(write_recipe(text), "seed=-1", "miso.positions=successive", "foo")
    assert [line.split(": ")[0] for line in lines] == [
        "r.yaml:11",
        "r.yaml:13",
        "seed=-1",
        "miso.positions=successive",
        "foo",
    ]


def test_a_rule_on_a_value_that_is_wrong_itself_is_not_reported(write_recipe, small_recipe):
    text = edited(small_recipe, "epochs: 2", "epoch: 2")
    (line,) = errors_of(write_recipe(text))
    assert "did you mean 'epochs'?" in line


def test_a_section_of_the_wrong_kind_is_reported_although_a_flag_goes_into_it(write_recipe, small_recipe):
    text = edited(small_recipe, "model:\n  name: some/model", "model: 5")
    (line,) = errors_of(write_recipe(text), "model.name=x")
    assert line.startswith("r.yaml:2: model: got 5; must be a section")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "r.yaml: empty; begin from a shipped recipe: misotune recipe show quickstart"),
        (b"# only a comment\n", "r.yaml: empty; begin from a shipped recipe"),
        (b"- 1\n- 2\n", "r.yaml: got [1, 2]; must be a mapping with the keys name, seed, "),
        (b"name: caf\xe9\n", "r.yaml: not UTF-8 text"),
        (b"name: x\nmodel: [\n", "r.yaml:3: not valid YAML: "),
    ],
)
def test_a_file_that_is_no_recipe_is_named(write_recipe, content, message):
    path = write_recipe("")
    path.write_bytes(content)
    (line,) = errors_of(path)
    assert line.startswith(message)


def test_a_list_as_a_recipe_does_not_take_overrides(write_recipe):
    (line,) = errors_of(write_recipe("- 1\n"), "seed=1")
    assert line.startswith("r.yaml: got [1]; must be a mapping")


def test_a_file_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert errors_of(Path("none.yaml")) == ["none.yaml: cannot be read: No such file or directory"]


def test_recipe_errors_are_usage_errors():
    assert issubclass(RecipeError, UsageError)
    assert RecipeError.exit_code == 2


def test_a_path_names_its_file_before_a_shipped_recipe(write_recipe, small_recipe):
    path = write_recipe(small_recipe)
    path.rename("quickstart.yaml")
    assert find_recipe("quickstart.yaml") == Path("quickstart.yaml")


@pytest.mark.parametrize("text", ["llama3_crab", "llama3_crab.yaml", "recipes/llama3_crab.yaml", "recipes/llama3_crab"])
def test_a_shipped_recipe_is_found_from_any_folder(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    assert find_recipe(text) in shipped_recipes()


def test_an_installed_package_brings_its_recipes(tmp_path, monkeypatch):
    installed = tmp_path / "shipped_recipes"
    installed.mkdir()
    (installed / "mine.yaml").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loading, "SHIPPED_FOLDERS", (installed, tmp_path / "none"))
    assert find_recipe("mine") == installed / "mine.yaml"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "quikstart",
            "quikstart: no such recipe; did you mean 'quickstart'? shipped recipes: context_awareness, llama3_crab, ",
        ),
        ("/none/quickstart.yaml", "/none/quickstart.yaml: no such recipe; did you mean 'quickstart'?"),
        ("zzz.yaml", "zzz.yaml: no such recipe; shipped recipes: "),
        (".", ".: is a folder, not a recipe; shipped recipes: "),
    ],
)
def test_a_missing_recipe_is_answered_with_those_that_exist(tmp_path, monkeypatch, text, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError) as caught:
        find_recipe(text)
    assert str(caught.value).startswith(message)
