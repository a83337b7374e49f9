"""The command `misotune` as a whole: help, errors, colour, completion, exit codes."""

import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from misotune.cli import main as main_module
from misotune.cli.main import app

SOURCE = Path(main_module.__file__).parents[2]
# Select Graphic Rendition with a colour, of 16, 256 or 16 million: what NO_COLOR asks to leave out.
COLOUR = re.compile(r"\x1b\[[\d;]*\b(?:3[0-8]|4[0-8]|9[0-7]|10[0-7])(?:;[\d;]*)?m")
VERBS = [
    *("prepare", "preview", "train", "launch", "report", "eval", "compare", "export", "generate"),
    *("quickstart", "inspect", "recipe", "doctor"),
]


def commands():
    """Returns the words of every command and group, the root among them."""

    def walk(command, words):
        yield words
        for name, inner in getattr(command, "commands", {}).items():
            if not inner.hidden:
                yield from walk(inner, [*words, name])

    return list(walk(typer.main.get_command(app), []))


def environment(**changes):
    kept = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS")}
    return {**kept, "PYTHONPATH": str(SOURCE), "TERM": "xterm-256color", **changes}


def run(*arguments, cwd=None, **changes):
    command = [sys.executable, "-m", "misotune", *arguments]
    return subprocess.run(command, env=environment(**changes), cwd=cwd, capture_output=True, text=True, check=False)


def run_on_terminal(*arguments, **changes):
    """Returns what a terminal gets on both outputs."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "misotune", *arguments]
    process = subprocess.Popen(command, env=environment(**changes), stdout=theirs, stderr=theirs, stdin=theirs)
    os.close(theirs)
    output = b""
    while select.select([ours], [], [], 60)[0]:
        try:
            part = os.read(ours, 65536)
        except OSError:  # Linux ends a terminal so
            break
        if not part:
            break
        output += part
    os.close(ours)
    process.wait(timeout=60)
    return output.decode()


def test_help_lists_the_verbs_in_the_order_of_the_work_each_with_a_line():
    shown = re.findall(r"^│ (\w+) {2,}(\S.*?) *│$", CliRunner().invoke(app, ["--help"]).stdout, re.MULTILINE)
    assert [name for name, _ in shown] == VERBS


def test_help_says_the_exit_codes_and_debug():
    shown = " ".join(CliRunner().invoke(app, ["--help"]).stdout.split())
    assert "Exit codes: 0 done; 1 a stage failed; 2 the command or the recipe was wrong" in shown
    assert "130 and 143 stopped by a signal" in shown
    assert "--debug, before or after the verb" in shown


def test_help_breaks_lines_where_the_terminal_ends_not_where_the_source_does():
    shown = CliRunner().invoke(app, ["doctor", "--help"], env={"COLUMNS": "200"}).stdout
    assert "though single features may lack something. 1: something that it needs is missing or broken." in shown


@pytest.mark.parametrize("words", commands(), ids=lambda words: "-".join(words) or "root")
def test_every_help_is_without_colour_in_a_pipe_and_says_what_the_command_does(words):
    result = CliRunner().invoke(app, [*words, "--help"])
    assert result.exit_code == 0
    assert "\x1b" not in result.output
    usage, _, rest = result.output.strip().partition("\n")
    assert usage.startswith(" Usage: misotune" if usage.startswith(" ") else "Usage: ")
    assert re.search(r"\w+ .*\.", rest)


@pytest.mark.parametrize(
    "arguments", [["--help"], ["train", "--help"], ["recipe", "show", "quickstart"], ["train", "x"]]
)
def test_colour_is_for_terminals_and_no_color_switches_it_off(arguments):
    assert COLOUR.search(run_on_terminal(*arguments))
    assert not COLOUR.search(run_on_terminal(*arguments, NO_COLOR="1"))
    done = run(*arguments)
    assert "\x1b" not in done.stdout + done.stderr


def test_no_module_writes_colour_past_rich():
    """All commands print through rich, which the tests above hold to NO_COLOR, or as plain text."""
    past = re.compile(r"\\x1b\[|\\033\[|\\e\[|\bsecho\(|typer\.style|force_terminal|color_system|no_color")
    guilty = [
        f"{path.name}: {line}"
        for path in (SOURCE / "misotune").rglob("*.py")
        for line in path.read_text().splitlines()
        if past.search(line) and not line.lstrip().startswith(">>>")
    ]
    assert not guilty


@pytest.mark.parametrize(
    "arguments", [["--debug", "recipe", "show", "nosuch"], ["recipe", "show", "nosuch", "--debug"]]
)
def test_debug_shows_the_traceback_before_or_after_the_verb(arguments):
    done = run(*arguments)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "RecipeError: nosuch: no such recipe" in done.stderr


def test_debug_behind_two_dashes_is_an_argument():
    done = run("recipe", "show", "--", "--debug")
    assert done.returncode == 2
    assert done.stderr.startswith("error: --debug: no such recipe")


def test_without_debug_an_error_is_one_line():
    done = run("recipe", "show", "nosuch")
    assert done.returncode == 2
    assert done.stderr.startswith("error: nosuch: no such recipe")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "near"),
    [(["trian"], "train"), (["quick"], "quickstart"), (["recipe", "shw"], "show"), (["inspect", "dilute"], "dilution")],
)
def test_an_unknown_verb_gets_the_nearest(arguments, near):
    done = run(*arguments)
    assert done.returncode == 2
    assert f"Did you mean '{near}'?" in done.stderr


def test_ctrl_c_ends_with_130(tmp_path):
    code = (
        "import os, signal\nfrom misotune.cli import main, report\n"
        "import misotune.report.page as page\n"
        "page.write_report = lambda folder: os.kill(os.getpid(), signal.SIGINT)\n"
        f"main.main(['report', {str(tmp_path)!r}])"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 128 + signal.SIGINT
    assert "Traceback" not in done.stderr


# Options that need not be given and stand for nothing then: no default to be told.
WITHOUT_DEFAULT = {
    "inspect dependency": {"limit", "write"},
    "prepare": {"data", "columns", "decompose", "endpoint", "model", "api_key_env", "max_dropped"},
    "prepare backtranslate": {"data", "columns", "max_dropped"},
    "prepare mixture": {"max_dropped"},
    "preview": {"recipe", "row", "worst", "html"},
    "train": {"hostfile", "master"},
    "eval": {"responses", "compare", "endpoint", "api_key_env", "include_path", "tokenizer"}
    | {"judge_endpoint", "judge_model", "judge_api_key_env"},
    "compare": {"out"},
    "export": {"push_to_hub", "check"},
    "generate": {"inputs", "input_files", "weights", "shared_prefix"},
}
WITHOUT_JSON = {
    "quickstart": "a first run for people, whose stages each have --json of their own",
    "recipe schema": "prints JSON in any case",
}
METAVAR = re.compile(r"[A-Z]{2,}(?:[:/=|][A-Z]+)*(?:,\.\.\.)?|N|ID|W,W,\.\.\.")


def last_commands():
    """Yields the name, parameters as help tells them, and usage line of every command that is no group."""

    def walk(command, context, words):
        inner = getattr(command, "commands", None)
        if inner is None:
            yield " ".join(words), command.get_params(context), command.get_usage(context)
        for name, each in (inner or {}).items():
            shown = [] if name == "source" else [name]  # the unnamed form of prepare
            yield from walk(each, command.context_class(each, info_name=name, parent=context), [*words, *shown])

    root = typer.main.get_command(app)
    yield from walk(root, root.context_class(root, info_name="misotune"), [])


@pytest.mark.parametrize(("name", "params", "usage"), [pytest.param(*each, id=each[0]) for each in last_commands()])
def test_every_option_is_told_in_the_same_way(name, params, usage):
    without_default = set()
    for param in (param for param in params if not getattr(param, "hidden", False)):
        what = f"{name} {param.opts[0]}"
        sentence, _, default = (param.help or "").partition(" (default: ")
        assert re.fullmatch(r"[^\[\]]+\.|.*\[DAYS-\]HOURS.*\.", sentence), f"{what}: {param.help}"
        assert param.show_default in (False, None) or param.default in (None, False), what
        assert not default or re.fullmatch(r"[^()]+\)", default), f"{what}: {default}"
        is_flag = getattr(param, "is_flag", False)
        assert param.metavar == "" if is_flag else METAVAR.fullmatch(param.metavar or ""), f"{what}: {param.metavar}"
        if not default and not is_flag and not param.required and param.metavar != "KEY=VALUE":
            without_default.add(param.name)
        if not is_flag and param.default is not None:
            assert default.startswith(str(param.default).removesuffix(".0")), what
    assert without_default == WITHOUT_DEFAULT.get(name, set())
    assert "[[" not in usage
    assert ("--json" in [param.opts[0] for param in params]) != (name in WITHOUT_JSON)


def test_the_page_of_the_command_line_names_the_verbs_without_json():
    page = (SOURCE.parent / "docs" / "cli.md").read_text(encoding="utf-8")
    (sentence,) = re.findall(r"All verbs have `--json`[^.]*\.", " ".join(page.split()))
    assert re.findall(r"`([a-z ]+)`", sentence) == list(WITHOUT_JSON)


def complete(line, folder=None):
    """Returns what bash would offer for the last word of a line, in a folder."""
    changes = {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split(" ")) - 1), "_MISOTUNE_COMPLETE": "complete_bash"}
    return run(cwd=folder, **changes).stdout.split()


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("misotune ", VERBS),
        ("misotune re", ["report", "recipe"]),
        ("misotune recipe s", ["show", "schema"]),
        ("misotune train --re", ["--resume"]),
    ],
)
def test_verbs_and_options_are_completed(line, offered):
    assert complete(line) == offered


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("misotune train ", ["context_awareness", "llama3_crab", "llama3_r1", "mistral_crab", "quickstart"]),
        ("misotune launch slurm mi", ["mistral_crab"]),
        ("misotune recipe show q", ["quickstart"]),
        ("misotune preview --recipe q", ["quickstart"]),
        ("misotune eval i", ["ifeval", "ifeval-flatten"]),
        ("misotune eval ifeval sq", ["squad", "squad_v2"]),
        ("misotune prepare ", ["crab", "sharegpt", "r1", "starter", "backtranslate", "mixture", "indicator"]),
        ("misotune prepare --mo", ["--mode", "--model"]),
        ("misotune prepare crab --spl", ["--split"]),
        ("misotune prepare backtranslate st", ["starter"]),
        ("misotune prepare mixture ch", ["chat_code_math_tools"]),
        ("misotune prepare nothing-like-it", []),
    ],
)
def test_names_are_completed(line, offered):
    assert complete(line) == offered


@pytest.mark.parametrize("command", ["report", "export", "generate", "inspect dilution", "eval ifeval --model"])
def test_runs_are_completed_by_their_names(tmp_path, command):
    for name in ("first", "fifth", "second"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "recipe.yaml").touch()
    (tmp_path / "runs" / "fifty").mkdir()  # no run
    assert complete(f"misotune {command} f", tmp_path) == ["fifth", "first"]


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
def test_bash_completes_after_install_completion(tmp_path):
    """The installed script, called by a real bash as it calls it at TAB."""
    # Else typer looks for the shell that started it, which may be another one.
    named = {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    installed = run("--install-completion", "bash", HOME=str(tmp_path), **named)
    assert installed.returncode == 0, installed.stderr
    program = tmp_path / "bin" / "misotune"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m misotune "$@"\n')
    program.chmod(0o755)
    lines = ("misotune pre", "misotune train ll", "misotune prepare cr", "misotune eval complex")
    script = f"source {tmp_path}/.bashrc; " + "".join(
        f'COMP_WORDS=({line}); COMP_CWORD={line.count(" ")}; _misotune_completion misotune; echo "${{COMPREPLY[@]}}"; '
        for line in lines
    )
    script += "complete -p misotune"
    changes = environment(HOME=str(tmp_path), PATH=f"{program.parent}:{os.environ['PATH']}")
    done = subprocess.run(["bash", "-c", script], env=changes, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "prepare preview",
        "llama3_crab llama3_r1",
        "crab",
        "complexbench",
        "complete -o default -F _misotune_completion misotune",
    ]
