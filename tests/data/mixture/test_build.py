"""Building mixtures: chunks, system prompts, shares, and what is written."""

import json
import xml.etree.ElementTree
from collections import Counter
from pathlib import Path

import pytest
from tests.data.mixture.conftest import MIXTURE, ROWS

from misotune.data.dataset import read_dataset, read_manifest
from misotune.data.mixture.build import prepare_mixture
from misotune.data.mixture.spec import load_mixture
from misotune.data.mixture.system_prompts import ADDED, REPLACED, with_system_prompt
from misotune.data.prepare import PrepareSettings
from misotune.data.records import Record
from misotune.data.sources.turns import tools_text
from misotune.errors import DataError
from misotune.recipe.loading import find_mixture


@pytest.fixture
def build(write_mixture):
    def build(*overrides, text=MIXTURE, out="out", **settings):
        return prepare_mixture(load_mixture(write_mixture(text), overrides), Path(out), PrepareSettings(**settings))

    return build


def chunks_of(rows):
    chunks = {}
    for row in rows:
        chunks.setdefault(row.chunk, []).append(row)
    return chunks


def system_of(row):
    first = row.inputs[0].messages[0]
    return first["content"] if first["role"] == "system" else None


def test_every_chunk_has_one_row_of_each_domain_in_order(build):
    built = build()
    rows = read_dataset(built.out)
    assert len(rows) == built.num_rows == 15
    chunks = chunks_of(rows)
    assert list(chunks) == [f"chunk-{i}" for i in range(1, 6)]  # consecutive, each once
    assert all([row.domain for row in chunk] == ["chat", "code", "math"] for chunk in chunks.values())
    assert len({row.id for row in rows}) == 15
    assert {row.id for row in rows if row.domain == "code"} == {f"code/code-{i}" for i in range(1, 6)}


def test_scarce_rows_repeat_under_ids_of_their_own_up_to_the_cap_on_epochs(build):
    built = build("max_epochs=2")
    rows = read_dataset(built.out)
    assert len(chunks_of(rows)) == 10
    assert len({row.id for row in rows}) == 30
    code = [row.id for row in rows if row.domain == "code"]
    assert Counter(name.removesuffix("@2") for name in code) == {f"code/code-{i}": 2 for i in range(1, 6)}
    shares = {share.name: (share.num_left_out, share.num_repeats) for share in built.shares.sources}
    assert shares == {"chat": (2, 0), "code": (0, 5), "math": (20, 0)}


def test_shares_before_and_after(build):
    built = build()
    described = built.shares.to_dict()
    assert (described["rows_per_chunk"], described["chunks"]) == (3, 5)
    assert described["domains"]["code"]["before"] == {
        "rows": 5,
        "share_of_rows": round(5 / 47, 4),
        "share_of_response_text": round(25 / text_of_all(), 4),
    }
    assert [described["domains"][d]["after"]["share_of_rows"] for d in ("chat", "code", "math")] == [0.3333] * 3
    assert read_manifest(built.out)["mixture"] == described


def text_of_all():
    return (
        sum(len(row["messages"][-1]["content"]) for row in ROWS["chat.jsonl"])
        + sum(len(row["code"]) for row in ROWS["code.jsonl"])
        + sum(len(row["output"]) for row in ROWS["math.jsonl"])
    )


def test_the_picture_is_drawn_from_the_shares(build):
    svg = xml.etree.ElementTree.fromstring((build().out / "shares.svg").read_text())
    texts = [element.text for element in svg.iter("{http://www.w3.org/2000/svg}text")]
    assert texts[0] == "small: 15 of 47 rows in 5 chunks of 3"
    assert texts[1:4] == ["chat", "code", "math"]
    assert texts.count("33.3%") == 3
    bars = [float(e.get("width")) for e in svg.iter("{http://www.w3.org/2000/svg}rect") if e.get("height") == "30"]
    assert len(bars) == 12
    assert all(sum(bars[i : i + 3]) == pytest.approx(580, abs=0.2) for i in range(0, 12, 3))


def test_system_prompts_are_drawn_for_rows_that_have_none(build):
    built = build("max_epochs=2", "system_prompts={chat: [Be kind.], code: [A, B, C]}")
    rows = read_dataset(built.out)
    for row in (row for row in rows if row.domain == "chat"):
        number = row.inputs[0].messages[-1]["content"].removeprefix("Hello ")
        assert system_of(row) == (f"Own prompt {number}." if int(number) % 2 else "Be kind.")
    assert {system_of(row) for row in rows if row.domain == "code"} == {"A", "B", "C"}
    assert {system_of(row) for row in rows if row.domain == "math"} == {None}


def test_system_prompts_can_replace_those_of_the_rows(build):
    built = build("replace_system_prompts=true", "system_prompts={chat: [Be kind.]}")
    assert {system_of(row) for row in read_dataset(built.out) if row.domain == "chat"} == {"Be kind."}
    assert built.account.changed[REPLACED] + built.account.changed[ADDED] == 5


def test_a_list_of_tools_stays_behind_the_drawn_prompt():
    tools = tools_text([{"name": "f"}])
    head = ({"role": "system", "content": f"Own.\n\n{tools}"},)
    record = Record("r", "s", "d", head, "Call f.", (), "ok")
    assert with_system_prompt(record, ["New."], 0, replace_own=False) is record
    (replaced,) = with_system_prompt(record, ["New."], 0, replace_own=True).history
    assert replaced["content"] == f"New.\n\n{tools}"
    bare = Record("r", "s", "d", ({"role": "system", "content": tools},), "Call f.", (), "ok")
    (added,) = with_system_prompt(bare, ["New."], 0, replace_own=False).history
    assert added["content"] == f"New.\n\n{tools}"


def test_the_same_file_and_seed_give_the_same_bytes_and_another_seed_others(build):
    first = (build().out / "data.parquet").read_bytes()
    assert (build(out="again").out / "data.parquet").read_bytes() == first
    assert (build("seed=1", out="other").out / "data.parquet").read_bytes() != first


def test_without_chunks_sources_are_mixed_by_weight(build):
    text = MIXTURE.replace("domain: chat", "domain: chat\n    weight: 2").replace(
        "domain: math", "domain: math\n    weight: 1"
    )
    text = text.replace("domain: code", "domain: code\n    weight: 1") + "n_mix: 1\nrows: 16\n"
    rows = read_dataset(build(text=text).out)
    assert Counter(row.domain for row in rows) == {"chat": 8, "code": 4, "math": 4}
    assert {row.chunk for row in rows} == {""}
    assert [row.domain for row in rows] != sorted(row.domain for row in rows)


def test_without_chunks_the_mode_may_be_para(build, tmp_path):
    row = {"instruction": "Name a fruit.", "constraints": ["One word.", "No capitals."], "output": "plum"}
    (tmp_path / "c.jsonl").write_text(json.dumps(row) + "\n")
    sources = "[{source: c.jsonl, domain: a, join: lines}, {source: math.jsonl, domain: b}]"
    text = f"name: x\nmode: para\nn_mix: 1\nsources: {sources}\n"
    built = build(text=text)
    assert built.account.num_inputs == {4: 1, 1: 30}
    (row,) = [row for row in read_dataset(built.out) if row.domain == "a"]
    assert row.inputs[0].messages[-1]["content"] == "Name a fruit.\n\nOne word.\nNo capitals."


def test_a_cap_limits_what_is_drawn_of_a_source(build):
    built = build(text=MIXTURE.replace("domain: code", "domain: code\n    cap: 2"))
    assert built.num_rows == 6
    assert [share.num_left_out for share in built.shares.sources] == [10, 3, 28]


def test_two_sources_share_a_domain_by_weight(build):
    text = MIXTURE.replace("domain: chat", "domain: chat\n    weight: 3").replace(
        "order:", "  - {source: math.jsonl, name: talk, domain: chat, weight: 1}\norder:"
    )
    built = build("rows=12", text=text)
    rows = read_dataset(built.out)
    assert Counter(row.id.partition("/")[0] for row in rows) == {"chat": 3, "talk": 1, "code": 4, "math": 4}


def test_duplicates_are_found_across_sources(build):
    text = MIXTURE.replace("order:", "  - {source: math.jsonl, name: again, domain: math}\norder:")
    with pytest.raises(DataError, match=r"again: no row was kept of 30 read; the first: math.jsonl:1: duplicate"):
        build(text=text, dedupe="exact")


def test_bad_rows_are_counted_per_source_and_fail_above_their_share(build, tmp_path):
    mixture = build  # the files are written first
    mixture()
    with (tmp_path / "extra.jsonl").open("w") as file:
        file.write('{"text": "Add."}\n{"text": "Add.", "code": "1"}\n')
    text = MIXTURE.replace("source: code.jsonl", "source: extra.jsonl")
    with pytest.raises(DataError, match=r"extra: 1 of 2 rows are bad, more than the share 0.05"):
        mixture(text=text)
    built = mixture(text=text, fail_above={"bad": 0.5})
    assert built.num_rows == 3
    assert built.account.num_bad == 1
    accounts = {source["name"]: source["account"] for source in read_manifest(built.out)["source"]["sources"]}
    assert (accounts["extra"]["num_bad"], accounts["chat"]["num_bad"]) == (1, 0)
    assert (built.out / "dropped.jsonl").read_text().startswith('{"where": "extra.jsonl:1"')


def test_too_few_rows_for_a_chunk_are_an_error(build):
    with pytest.raises(
        DataError, match=r"mix.yaml: too few rows for one chunk of 20 \(chat 12, code 5, math 30\); lower"
    ):
        build("n_mix=20")


def test_the_shipped_mixture_on_the_real_samples(shared_data, tmp_path):
    mixture = load_mixture(find_mixture("chat_code_math_tools"), [f"data_dir={shared_data}"])
    built = prepare_mixture(mixture, tmp_path / "mix", PrepareSettings())
    rows = read_dataset(built.out)
    chunks = chunks_of(rows)
    assert len(chunks) == built.shares.num_chunks == 200
    assert all([row.domain for row in chunk] == ["chat", "code", "math", "agent"] for chunk in chunks.values())
    assert {share.name: (share.before.rows, share.num_repeats) for share in built.shares.sources} == {
        "sharegpt": (987, 0),
        "mbpp": (974, 0),
        "gsm8k_train": (7473, 0),
        "reason_tool_use_demo_50": (50, 150),
    }
    prompts = mixture.file.system_prompts
    for row in rows:
        system = system_of(row)
        if row.domain == "agent":
            assert "<tools>\n" in system or "tool" in system
            assert "<tool_call>" in row.output or "<think>" in row.output
        else:
            assert system in prompts[row.domain]
    drawn = Counter(system_of(row) for row in rows if row.domain == "math")
    assert set(drawn) == set(prompts["math"])
    assert min(drawn.values()) > 40  # 200 draws of three: 67 expected, standard deviation 6.7


def test_constraints_may_be_found_by_rules_or_made_from_responses(build, tmp_path):
    listed = {"instruction": "Name a fruit.\n\n- Use one word.\n- Do not use capitals.", "output": "plum"}
    (tmp_path / "listed.jsonl").write_text(json.dumps(listed) + "\n")
    plain = {"instruction": "Describe tea.", "output": "Tea is a warm drink. People love it in the morning!\n\n" * 3}
    (tmp_path / "plain.jsonl").write_text(json.dumps(plain) + "\n")
    text = (
        "name: x\nmode: para\nn_mix: 1\nsources:\n"
        "  - {source: listed.jsonl, domain: a, constraints: rules}\n"
        "  - {source: plain.jsonl, domain: b, constraints: backtranslate}\n"
    )
    rows = {row.domain: row for row in read_dataset(build(text=text).out)}
    assert [entry.constraint for entry in rows["a"].inputs] == [None, "Use one word.", "Do not use capitals.", None]
    assert [entry.role for entry in rows["b"].inputs][:3] == ["full", "constraint", "constraint"]
    assert "Describe tea." in rows["b"].inputs[0].messages[-1]["content"]
