"""The mixture file: what it may say, and the line of every error."""

import re

import pytest
from tests.data.mixture.conftest import MIXTURE

from misotune.data.mixture.spec import load_mixture
from misotune.errors import RecipeError
from misotune.recipe.loading import find_mixture, shipped_mixtures
from misotune.recipe.mixture import MixtureFile, mixture_json_schema


def errors_of(path, *overrides):
    with pytest.raises(RecipeError) as caught:
        load_mixture(path, overrides)
    return str(caught.value).splitlines()


def test_the_small_mixture_loads(write_mixture):
    mixture = load_mixture(write_mixture())
    assert [source.name for source in mixture.sources] == ["chat", "code", "math"]
    assert mixture.file.domains == ("chat", "code", "math")
    assert mixture.file.rows_per_chunk == 3
    assert mixture.file.system_prompts["math"] == ("Think step by step.",)


def test_domains_follow_the_sources_without_an_order(write_mixture):
    path = write_mixture(MIXTURE.replace("order: [chat, code, math]\n", ""))
    assert load_mixture(path).file.domains == ("chat", "code", "math")


def test_overrides_win_and_are_named_in_errors(write_mixture):
    path = write_mixture()
    assert load_mixture(path, ["n_mix=1", "seed=7"]).file.seed == 7
    assert errors_of(path, "n_mix=many") == ["n_mix=many: got 'many'; must be a whole number >= 1, or null"]
    assert errors_of(path, "sources.0.cap=3") == [
        "sources.0.cap=3: sources has no keys below it; set it whole: sources=VALUE"
    ]


WRONG = {
    "unknown-key": ("order:", "ordr:", "mix.yaml:10: ordr: unknown key; did you mean 'order'? allowed: name, seed, "),
    "unknown-source-key": (
        "domain: code",
        "domian: code",
        "mix.yaml:6: sources.1.domian: unknown key; did you mean 'domain'? allowed: source, domain, ",
    ),
    "missing-domain": (
        "    domain: code\n",
        "",
        "mix.yaml:5: sources.1.domain: missing; must be a name: a letter or digit, ",
    ),
    "no-list": (
        "order: [chat, code, math]",
        "order: chat",
        "mix.yaml:10: order: got 'chat'; must be a list (not empty)",
    ),
    "weight": (
        "domain: chat",
        "domain: chat\n    weight: -1",
        "mix.yaml:5: sources.0.weight: got -1; must be a number > 0, or null",
    ),
    "think": (
        "domain: chat",
        "domain: chat\n    think: inputs",
        "mix.yaml:5: sources.0.think: got 'inputs'; must be one of input, output, drop; did you mean 'input'?",
    ),
    "prompts-not-a-list": (
        "math: [Think step by step.]",
        "math: Think.",
        "mix.yaml:13: system_prompts.math: got 'Think.'; must be a list (not empty) of text (not empty)",
    ),
    "prompts-of-no-domain": (
        "  math: [Think",
        "  maths: [Think",
        "mix.yaml:13: system_prompts.maths: no source has the domain 'maths'; did you mean 'math'? "
        "domains: chat, code, math",
    ),
    "order-of-no-domain": ("code, math]", "code, maths]", "mix.yaml:10: order: no source has the domain 'maths'; "),
    "order-too-short": ("code, math]", "code]", "mix.yaml:10: order: leaves out the domain 'math'; name each"),
    "order-twice": ("code, math]", "code, math, code]", "mix.yaml:10: order: got [chat, code, math, code]; each may"),
    "para-in-chunks": (
        "order:",
        "mode: para\norder:",
        "mix.yaml:10: mode: got 'para'; chunks of 3 rows are one text and need 'sft'; or set n_mix: 1",
    ),
    "epochs": ("order:", "max_epochs: 0.5\norder:", "mix.yaml:10: max_epochs: got 0.5; must be a number >= 1"),
    "some-weights": (
        "order: [chat, code, math]",
        "  - {source: chat.jsonl, name: more, domain: chat, weight: 2}",
        "mix.yaml:10: sources.3: sources.0 has no weight and this source has one; give one to all sources of the "
        "domain 'chat' or to none",
    ),
    "no-such-file": (
        "source: math.jsonl",
        "source: meth.jsonl",
        "mix.yaml:8: sources.2.source: meth.jsonl: no such file; data_dir=FOLDER says where files are",
    ),
    "no-such-source": (
        "source: math.jsonl",
        "source: sharegtp",
        "mix.yaml:8: sources.2.source: unknown source 'sharegtp': did you mean 'sharegpt'?",
    ),
    "no-data-file": (
        "source: math.jsonl",
        "source: sharegpt\n    data: chats.jsonl",
        "mix.yaml:9: sources.2.data: chats.jsonl: no such file; data_dir=FOLDER says where files are",
    ),
    "same-name": (
        "order: [chat, code, math]",
        "  - {source: chat.jsonl, domain: chat}",
        "mix.yaml:10: sources.3.name: 'chat' is the name of an earlier source too; give this one a name of its own",
    ),
    "broken": ("order: [chat, code, math]", "order: [chat", "mix.yaml:11: not valid YAML: "),
}


@pytest.mark.parametrize(("old", "new", "message"), WRONG.values(), ids=WRONG)
def test_errors_name_file_line_and_key(write_mixture, old, new, message):
    assert old in MIXTURE
    (error,) = errors_of(write_mixture(MIXTURE.replace(old, new)))
    assert error.startswith(message), error


def test_all_problems_are_reported_at_once(write_mixture):
    text = MIXTURE.replace("domain: chat", "domian: chat").replace("name: small", "name: s m")
    assert [re.match(r"mix.yaml:\d+", line).group() for line in errors_of(write_mixture(text))] == [
        "mix.yaml:1",
        "mix.yaml:4",
    ]


def test_an_empty_file_names_an_example(write_mixture):
    assert errors_of(write_mixture("")) == ["mix.yaml: empty; begin from a shipped mixture: chat_code_math_tools"]


def test_shipped_mixtures_are_found_by_name_and_fit_the_schema():
    assert [path.stem for path in shipped_mixtures()] == ["chat_code_math_tools"]
    assert find_mixture("chat_code_math_tools").is_file()
    with pytest.raises(RecipeError, match=r"chat_code: no such mixture; did you mean 'chat_code_math_tools'\?"):
        find_mixture("chat_code")
    assert set(mixture_json_schema()["properties"]) == set(MixtureFile.model_fields)
