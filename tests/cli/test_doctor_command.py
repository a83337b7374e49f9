"""`misotune doctor`: what it prints, its exit code, and a whole look at this machine."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from misotune.cli import doctor as doctor_command
from misotune.cli.main import app
from misotune.doctor.finding import Finding

SOURCE = Path(doctor_command.__file__).parents[2]
PURPOSE = "a feature [of some kind]"
FINE = Finding("packages", "torch", "ok", "2.13.0 (needs >=2.10)", PURPOSE, is_required=True)
OPTIONAL = Finding("optional", "wandb", "missing", "not installed", PURPOSE, "pip install wandb")
WITHOUT_CURE = Finding("devices", "GPU", "missing", "none", PURPOSE)
LONG_CURE = "/a/very/long/path/to/some/environment/bin/python -m pip install 'lm-eval[ifeval]>=0.4.9,<0.5'"
FATAL = Finding("packages", "lm-eval", "problem", "0.5 is out of range", PURPOSE, LONG_CURE, is_required=True)


def invoke(monkeypatch, findings, *arguments):
    monkeypatch.setattr("misotune.doctor.examine.examine", lambda **options: findings)
    return CliRunner().invoke(app, ["doctor", *arguments])


def test_in_a_pipe_each_finding_is_a_line_and_each_cure_too(monkeypatch):
    result = invoke(monkeypatch, [FINE, FATAL, OPTIONAL, WITHOUT_CURE])
    assert result.exit_code == 1
    assert result.stdout.splitlines() == [
        "ok       packages, torch: 2.13.0 (needs >=2.10)",
        "problem  packages, lm-eval: 0.5 is out of range",
        "missing  optional, wandb: not installed",
        "missing  devices, GPU: none",
        "",
        "lm-eval (needed for a feature [of some kind])",
        f"    {LONG_CURE}",
        "",
        "wandb (for a feature [of some kind])",
        "    pip install wandb",
        "",
        "not fit: lm-eval must be mended first; 2 optional things are missing or not in order",
    ]


def test_optional_things_that_are_missing_leave_it_fit(monkeypatch):
    result = invoke(monkeypatch, [FINE, OPTIONAL])
    assert result.exit_code == 0
    assert result.stdout.endswith("fit: all that misotune needs is here; 1 optional thing is missing or not in order\n")


def test_json_holds_every_finding(monkeypatch):
    result = invoke(monkeypatch, [FINE, FATAL], "--json")
    assert result.exit_code == 1
    content = json.loads(result.stdout)
    assert content["is_fit"] is False
    assert content["findings"][1] == {
        "group": "packages",
        "name": "lm-eval",
        "state": "problem",
        "detail": "0.5 is out of range",
        "needed_for": PURPOSE,
        "cure": LONG_CURE,
        "is_required": True,
    }


def test_a_narrow_terminal_gets_a_table_and_whole_commands(capsys):
    doctor_command.show_findings([FINE, FATAL], Console(force_terminal=True, width=40, soft_wrap=True, highlight=False))
    shown = capsys.readouterr().out
    assert LONG_CURE in shown
    table = shown.partition("not fit")[0]
    assert "─" in table
    assert "\x1b[32mok" in table


@pytest.mark.slow
def test_a_whole_look_survives_broken_packages_and_shows_no_token(tmp_path):
    for name, code in {"peft": "raise RuntimeError('torn')", "datasets": "import os; os.abort()"}.items():
        (tmp_path / f"{name}.py").write_text(code)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(tmp_path), str(SOURCE)]),
        "HF_TOKEN": "hf_a_secret",
    }
    command = [sys.executable, "-m", "misotune", "doctor", "--offline", "--json"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.returncode == 1
    found = {finding["name"]: finding for finding in json.loads(done.stdout)["findings"]}
    assert found["peft"]["detail"].endswith("cannot be imported: RuntimeError: torn")
    assert found["datasets"]["detail"].endswith("the process that imported it died of SIGABRT")
    # What imports them in its turn names them as the cause.
    assert found["lm-eval"]["cure"] == "mend datasets first, then: misotune doctor"
    assert found["transformers"]["cure"] == "mend peft first, then: misotune doctor"
    for name in ("Python", "torch", "deepspeed", "accelerate", "others", "CPU", "cpu, fp32", "accelerator"):
        assert found[name]["state"] == "ok", found[name]
    assert found["hub token"]["detail"] == "set, by HF_TOKEN"
    assert "hf_a_secret" not in done.stdout


def test_the_command_itself_imports_nothing_that_may_be_broken():
    heavy = ("torch", "transformers", "huggingface_hub", "pydantic", "nltk", "yaml")
    code = (
        "import sys, misotune.cli.main, misotune.doctor.examine\n"
        f"sys.exit(' '.join(name for name in {heavy} if name in sys.modules))"
    )
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.stderr.strip() == ""
