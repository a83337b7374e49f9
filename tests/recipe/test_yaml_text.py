import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from misotune.recipe.yaml_text import YamlSyntaxError, format_value, parse_value, parse_yaml

scalars = st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats(allow_nan=False) | st.text()
values = st.recursive(
    scalars, lambda v: st.lists(v, max_size=4) | st.dictionaries(st.text() | st.integers(), v, max_size=4)
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("5E6", 5e6),
        ("-1.5e+3", -1500.0),
        (".5", 0.5),
        ("1.", 1.0),
        ("12", 12),
        ("1_000", 1000),
        ("-.inf", float("-inf")),
        ("true", True),
        ("~", None),
        ("null", None),
        ("no", "no"),
        ("on", "on"),
        ("007", "007"),
        ("0x1f", "0x1f"),
        ("12:30", "12:30"),
        ("2024-01-01", "2024-01-01"),
        ("v1.2", "v1.2"),
        ("'1'", "1"),
        ("[full, base]", ["full", "base"]),
        ("{1: .5}", {1: 0.5}),
    ],
)
def test_scalars_are_what_they_look_like(text, value):
    read = parse_value(text).value
    assert read == value
    assert type(read) is type(value)


def test_every_key_and_item_has_its_line():
    document = parse_yaml("a: 1\nb:\n  c: 2\n\n  d:\n    - x\n    - y\n")
    assert document.value == {"a": 1, "b": {"c": 2, "d": ["x", "y"]}}
    assert document.lines == {
        ("a",): 1,
        ("b",): 2,
        ("b", "c"): 3,
        ("b", "d"): 5,
        ("b", "d", 0): 6,
        ("b", "d", 1): 7,
    }


def test_each_duplicate_key_is_a_problem_with_both_lines():
    document = parse_yaml("a: 1\nb:\n  c: 1\n  c: 2\na: 3\n")
    assert document.problems == [
        (("b", "c"), 4, "given twice, first in line 3; keep one"),
        (("a",), 5, "given twice, first in line 1; keep one"),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("true: 1", "a key must be a word or a whole number, got true"),
        ("1.5: 1", "a key must be a word or a whole number, got 1.5"),
        ("? [a]\n: 1", r"a key must be a word or a whole number, got \[a\]"),
        ("a: !!int x", "'x' cannot be read as .*int; write the value without a tag"),
        ("a: !!python/name:os.system x", "cannot be read as .*os.system; write the value without a tag"),
    ],
)
def test_odd_keys_and_tags_are_problems(text, message):
    ((_, line, got),) = parse_yaml(text).problems
    assert line == 1
    with pytest.raises(ValueError, match=message):
        raise ValueError(got)


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("a: 1\nb: [", 2, "expected the node content"),
        ("a:\n\tb: 1", 2, "indent with spaces"),
        ("a: 1\nb: c: d", 2, "mapping values are not allowed here"),
        ("a: 1\nb: *x", 2, r"begins with '\*' needs quotes"),
        ("a: 1\n---\nb: 1", 2, "a second document begins here; keep one"),
        ("a: 1\nb: \x07", 2, r"character '\\x07' is not allowed"),
    ],
)
def test_what_is_not_yaml_is_named_by_line(text, line, message):
    with pytest.raises(YamlSyntaxError, match=message) as caught:
        parse_yaml(text)
    assert caught.value.line == line


def test_a_comment_in_an_override_is_not_dropped_in_silence():
    with pytest.raises(YamlSyntaxError, match="would be a comment"):
        parse_value("run #3")
    assert parse_value("run#3").value == "run#3"


@given(values)
def test_a_formatted_value_is_one_line_that_reads_back(value):
    text = format_value(value)
    assert len(text.splitlines()) <= 1 or "\n" not in text
    assert parse_value(text).value == value


@given(st.text() | st.floats(allow_nan=False) | st.integers())
def test_a_formatted_value_reads_the_same_in_plain_pyyaml(value):
    assert yaml.safe_load(format_value(value)) == value
