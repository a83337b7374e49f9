import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from misotune.cli import prepare_options as options
from misotune.cli.prepare import app
from misotune.cli.prepare_report import next_command
from misotune.data.dataset import read_dataset, read_manifest
from misotune.errors import MisotuneError

ROW = {"instruction": "Name a river.", "constraints": ["Be brief."], "output": "Rhine"}


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(app, list(arguments))


def write_rows(tmp_path, *rows):
    (tmp_path / "rivers.jsonl").write_text("\n".join(json.dumps(row) for row in rows))


def test_the_default_place_is_named_after_source_and_mode(run, tmp_path):
    write_rows(tmp_path, ROW, ROW | {"output": "Elbe"})
    result = run("rivers.jsonl")
    assert result.exit_code == 0, result.output
    assert len(read_dataset(tmp_path / "data" / "rivers-para")) == 2
    assert "2 rows, 3 inputs each, in data/rivers-para" in result.output
    assert "next: misotune train recipes/quickstart.yaml data.path=data/rivers-para miso.mode=para" in result.output


def test_json_is_all_that_stdout_holds(run, tmp_path):
    write_rows(tmp_path, ROW, {"instruction": "x"})
    result = run("rivers.jsonl", "--json", "--max-dropped", "0.5", "--mode", "flat", "--out", "here")
    answer = json.loads(result.stdout)
    assert (answer["out"], answer["rows"], answer["account"]["num_bad"]) == ("here", 3, 1)
    assert "bad row: rivers.jsonl:2: no column" in result.stderr


def test_only_the_first_bad_rows_are_printed(run, tmp_path):
    write_rows(tmp_path, *[{"instruction": "x"}] * 9, ROW)
    result = run("rivers.jsonl", "--max-dropped", "1")
    assert result.stderr.count("bad row: ") == 5
    assert len((tmp_path / "data" / "rivers-para" / "dropped.jsonl").read_text().splitlines()) == 9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["craab"], "unknown source 'craab': did you mean 'crab'?"),
        (["crab", "--mode", "paar"], "--mode 'paar': did you mean 'para'? allowed are para, succ, sft, flat"),
        (["crab", "--join", "x"], "--join 'x': allowed are lines, bullets, paragraph, mixed"),
        (["crab", "--data", "no.jsonl"], "no.jsonl: no such file"),
        (["sharegpt"], "source 'sharegpt' needs a file"),
        (["mixtur", "x.yaml"], "unknown source 'mixtur': did you mean misotune prepare mixture?"),
        (["crab", "--think", "inptu"], "--think 'inptu': did you mean 'input'?"),
        (["crab", "--dedupe", "nearly"], "--dedupe 'nearly': did you mean 'near'? allowed are off, exact, near"),
        (["crab", "--decompose", "rule"], "--decompose 'rule': did you mean 'rules'?"),
        (["crab", "--decompose", "llm"], "--decompose llm, --endpoint URL and --model NAME belong together"),
        (["crab", "--endpoint", "http://x", "--model", "m"], "belong together"),
        (["crab", "--fail-above", "dupli=1"], "--fail-above 'dupli': did you mean 'duplicates'? allowed are bad,"),
        (["crab", "--fail-above", "bad"], "--fail-above 'bad': write KIND=SHARE, as in bad=0.01"),
        (["crab", "--fail-above", "bad=5%"], "--fail-above 'bad=5%': the share must be a number from 0 to 1"),
        (["crab", "--fail-above", "bad=2"], "--fail-above 'bad=2': the share must be a number from 0 to 1"),
        (["crab", "--map", "instruction"], "--map 'instruction': 'instruction' does not read NAME=COLUMN"),
        (["crab", "--map", "output=a,output=b"], "'output' stands there twice"),
        (["starter", "--decontaminate", "none", "--decontaminate", "ifeval"], "cannot stand beside another"),
        (["starter", "--decontaminate", "ifevall"], "--decontaminate ifevall: neither a shipped set"),
        (["backtranslate", "starter", "--min-constraints", "6"], "is more than --max-constraints 5"),
        (["mixture", "chat_code_math_tool"], "did you mean 'chat_code_math_tools'?"),
    ],
)
def test_a_wrong_command_is_one_line_and_code_2(run, arguments, message):
    error = run(*arguments).exception
    assert isinstance(error, MisotuneError)
    assert error.exit_code == 2
    assert message in str(error)
    assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--api-key-env", "NO_SUCH_KEY"], "the environment variable NO_SUCH_KEY holds no API key; set it: export"),
        (["--endpoint", "localhost"], "localhost"),
    ],
)
def test_a_wrong_endpoint_is_one_line_and_code_2(run, tmp_path, arguments, message):
    write_rows(tmp_path, ROW)
    error = run(
        "rivers.jsonl", "--decompose", "llm", "--endpoint", "http://127.0.0.1:9/v1", "--model", "m", *arguments
    ).exception
    assert isinstance(error, MisotuneError)
    assert error.exit_code == 2
    assert message in str(error)
    assert not (tmp_path / "data" / "rivers-para").exists()


def test_the_values_of_the_options_are_those_of_the_data_stage():
    from typing import get_args

    from misotune.data.account import DEFAULT_THRESHOLDS, THRESHOLD_KINDS
    from misotune.data.prepare import Dedupe
    from misotune.data.sources.crab import MIN_CONFIDENCE
    from misotune.data.sources.fields import JOINS
    from misotune.data.sources.thinking import THINKS

    assert (JOINS, THINKS, get_args(Dedupe)) == (options.JOINS, options.THINKS, options.DEDUPES)
    assert options.FAIL_KINDS == THRESHOLD_KINDS
    assert {"bad": options.DEFAULT_MAX_BAD} == DEFAULT_THRESHOLDS
    assert options.DEFAULT_MIN_CONFIDENCE == MIN_CONFIDENCE


def test_help_lists_the_three_forms_and_the_options_of_the_first(run):
    pages = [re.sub(r"\x1b\[[0-9;]*m", "", run(*arguments).output) for arguments in ((), ("--help",))]
    assert pages[0] == pages[1]
    for text in ("prepare SOURCE ", "prepare backtranslate SOURCE ", "prepare mixture RECIPE ", "--decontaminate"):
        assert text in pages[0]
    assert "--min-constraints" in run("backtranslate", "--help").output
    assert "KEY=VALUE" in run("mixture", "--help").output


def test_repeated_rows_are_left_out_unless_asked_for(run, tmp_path):
    write_rows(tmp_path, ROW, ROW, ROW)
    account = json.loads(run("rivers.jsonl", "--json").stdout)["account"]
    assert (account["kept"], account["duplicates"]) == (1, {"duplicate of an earlier row": 2})
    assert json.loads(run("rivers.jsonl", "--json", "--dedupe", "off").stdout)["rows"] == 3
    error = run("rivers.jsonl", "--fail-above", "duplicates=0.5").exception
    assert "2 of 3 rows repeat an earlier row" in str(error)
    assert error.exit_code == 1


def test_prompts_of_ifeval_are_left_out_unless_it_is_switched_off(run, tmp_path, ifeval_prompts):
    write_rows(tmp_path, ROW, *({"instruction": prompt.prompt, "output": "x"} for prompt in ifeval_prompts[:3]))
    account = json.loads(run("rivers.jsonl", "--json").stdout)["account"]
    assert (account["kept"], account["overlap"]) == (1, {"overlaps an evaluation prompt (ifeval)": 3})
    assert json.loads(run("rivers.jsonl", "--json", "--decontaminate", "none").stdout)["rows"] == 4


def test_columns_under_other_names_are_mapped(run, tmp_path):
    write_rows(tmp_path, {"prompt": "Name a river.", "completion": "Rhine"})
    result = run("rivers.jsonl", "--map", "instruction=prompt, output=completion", "--out", "here")
    assert result.exit_code == 0, result.output
    assert read_dataset(tmp_path / "here")[0].output == "Rhine"


def test_pairs_are_back_translated(run, tmp_path, shared_data, punkt):
    result = run("backtranslate", str(shared_data / "chat" / "alpaca_en_demo.json.gz"), "--limit", "50", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["account"]["rules"]["backtranslate"] > 20
    manifest = read_manifest(tmp_path / "data" / "alpaca_en_demo-backtranslated-para")
    assert manifest["settings"]["constraints"] == "backtranslate"


def test_a_mixture_is_built_and_its_shares_are_shown(run, tmp_path):
    for name, number in (("rivers", 30), ("lakes", 10)):
        rows = (ROW | {"instruction": f"Name {name} number {n}.", "output": f"{name} {n}"} for n in range(number))
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    sources = "".join(f"  - {{source: {name}.jsonl, domain: {name}}}\n" for name in ("rivers", "lakes"))
    (tmp_path / "waters.yaml").write_text(f"name: waters\nsources:\n{sources}")
    result = run("mixture", "waters.yaml", "seed=3")
    assert result.exit_code == 0, result.output
    assert "10 chunks of 2 rows" in result.output
    assert re.search(r"rivers +│ 75\.0% +│ 50\.0%", result.output)
    samples = read_dataset(tmp_path / "data" / "waters")
    assert [sample.domain for sample in samples] == ["rivers", "lakes"] * 10
    assert read_manifest(tmp_path / "data" / "waters")["seed"] == 3
    answer = json.loads(run("mixture", "waters.yaml", "--json").stdout)
    assert answer["mixture"]["domains"]["lakes"]["before"]["share_of_rows"] == 0.25


def started(tmp_path, *arguments):
    """`misotune prepare` on a file that takes it seconds, in a session of its own; it is reading."""
    rows = (ROW | {"instruction": f"Name river {n}. {'Flow on. ' * 40}"} for n in range(20_000))
    (tmp_path / "long.jsonl").write_text("\n".join(map(json.dumps, rows)))
    command = [sys.executable, "-m", "misotune", "prepare", "long.jsonl", "--out", "set", *arguments]
    process = subprocess.Popen(
        command, cwd=tmp_path, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while process.poll() is None and not (tmp_path / ".set.partial" / "data.parquet").exists():
        time.sleep(0.01)
    while process.poll() is None and len(workers_of(process)) < 2:
        time.sleep(0.01)
    time.sleep(0.2)
    assert process.poll() is None, "the file must be long enough to be interrupted"
    return process


def workers_of(process):
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(child) for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("how", ["ctrl-c", "a worker is killed", "the command is killed"])
def test_an_interrupted_command_leaves_the_older_dataset_and_no_process(run, tmp_path, how):
    write_rows(tmp_path, ROW)
    run("rivers.jsonl", "--out", "set")
    process = started(tmp_path, "--workers", "2")
    workers = workers_of(process)
    if how == "ctrl-c":
        os.killpg(process.pid, signal.SIGINT)
    else:
        os.kill(workers[0] if how == "a worker is killed" else process.pid, signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    if how == "ctrl-c":
        assert (process.returncode, errors) == (130, "long: interrupted; nothing was written\n")
    elif how == "a worker is killed":
        assert process.returncode == 1
        assert errors.startswith("error: a worker process was killed")
        assert errors.count("\n") == 1
    assert len(read_dataset(tmp_path / "set")) == 1
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{worker}").exists() for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)


def test_the_next_command_is_bare_where_a_shipped_recipe_reads_the_default_place(tmp_path):
    assert next_command(Path("data/crab-para"), "crab", "para") == "misotune train recipes/llama3_crab.yaml"
    assert next_command(Path("data/starter-para"), "starter", "para") == "misotune train recipes/quickstart.yaml"
    assert next_command(Path("data/r1-succ"), "r1", "succ") == "misotune train recipes/llama3_r1.yaml"
    elsewhere = next_command(Path("my data/x"), "crab", "para")
    assert elsewhere == "misotune train recipes/llama3_crab.yaml 'data.path=my data/x'"
    assert next_command(Path("data/crab-flat"), "crab", "flat").endswith("data.path=data/crab-flat miso.mode=sft")


def test_a_scored_dataset_is_marked_and_a_threshold_that_tells_nothing_apart_is_warned_of(run, tmp_path):
    chat = {"role": "full", "messages": [{"role": "user", "content": "Sum it up"}]}
    rows = [{"inputs": [chat], "output": "x", "dependency_by_turn": [score]} for score in (0.2, 0.7)]
    (tmp_path / "scored.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = run("indicator", "scored.jsonl")
    assert result.exit_code == 0, result.output
    assert re.search(r"marked +│ +1 ", result.stdout)
    assert "share marked" in result.stdout
    assert "50.0%" in result.stdout
    assert "next: misotune train recipes/quickstart.yaml data.path=data/scored-indicator miso.mode=sft" in result.stdout
    assert "warning" not in result.stderr
    for threshold, which in (("0.9", "no"), ("0.1", "every")):
        result = run("indicator", "scored.jsonl", "--threshold", threshold, "--json", "--out", "again")
        assert f"warning: {which} turn is marked" in result.stderr
        assert "Quantiles of the scores: 0% 0.200" in result.stderr
        assert json.loads(result.stdout)["marked"] == (2 if which == "every" else 0)
