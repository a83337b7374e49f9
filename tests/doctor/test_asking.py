"""Packages are looked at in other processes: what is broken there is an answer here."""

import http.server
import json
import threading

import pytest

from misotune.doctor.asking import ask, ask_all

PACKAGES = {
    "sound": "",
    "raising": "raise RuntimeError('no such symbol: cudnnCreate\\nand a second line')",
    "leaving": "raise SystemExit(5)",
    "without_part": "import a_part_that_is_not_here.inner",
    "wrapping": "try:\n import raising\nexcept RuntimeError as error:\n raise ImportError('see above') from error",
    "aborting": "import os; os.abort()",
    "exiting": "import os; os._exit(3)",
    "hanging": "import time; time.sleep(600)",
    "talking": "import os; print('{\"name\": \"x\"}'); os.write(1, b'not JSON')",
}


@pytest.fixture
def packages(tmp_path, monkeypatch):
    for name, code in PACKAGES.items():
        (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "error", "culprit"),
    [
        ("raising", "RuntimeError: no such symbol: cudnnCreate", "raising"),
        ("leaving", "SystemExit: 5", "leaving"),
        ("without-part", "ModuleNotFoundError: No module named 'a_part_that_is_not_here'", "a_part_that_is_not_here"),
        ("wrapping", "RuntimeError: no such symbol: cudnnCreate", "raising"),
        ("aborting", "the process that imported it died of SIGABRT", "aborting"),
        ("exiting", "the process that imported it ended with exit code 3", None),
    ],
)
@pytest.mark.usefixtures("packages")
def test_a_broken_package_is_an_answer_and_the_next_ones_are_asked(name, error, culprit):
    answers = ask(["talking", name, "sound"])
    assert (answers[name].error, answers[name].culprit) == (error, culprit)
    assert answers["talking"].error is None
    assert answers["sound"].error is None


@pytest.mark.usefixtures("packages")
def test_a_package_that_hangs_is_given_up():
    answers = ask(["sound", "hanging"], timeout_s=2)
    assert answers["sound"].error is None
    assert answers["hanging"].error == "no answer within 2 s"


@pytest.mark.usefixtures("packages")
def test_groups_are_asked_at_once_and_answered_together():
    assert ask_all([["sound"], [], ["raising", "talking"]]).keys() == {"sound", "raising", "talking"}


def test_a_file_in_the_working_folder_does_not_stand_for_a_package(tmp_path, monkeypatch):
    (tmp_path / "filelock.py").write_text("raise RuntimeError('a file of the user')")
    monkeypatch.chdir(tmp_path)
    assert ask(["filelock"])["filelock"].error is None


@pytest.fixture
def hub(monkeypatch):
    """A hub that takes one token, and what it was asked."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append((self.path, self.headers.get("authorization")))
            is_known = asked[-1][1] in (None, "Bearer hf_right")
            self.send_response(200 if is_known else 401)
            self.end_headers()
            self.wfile.write(b"[]")

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    yield asked
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(("token", "status"), [("hf_right", 200), ("hf_wrong", 401)])
def test_the_hub_is_asked_once_with_the_token_which_is_in_no_answer(hub, monkeypatch, token, status):
    monkeypatch.setenv("HF_TOKEN", token)
    answers = ask(["hub", "reach"])
    assert hub == [("/api/models?limit=1", f"Bearer {token}")]
    assert answers["hub"].facts["has_token"] is True
    assert answers["reach"].facts == {"status": status}
    assert token not in json.dumps([[dict(answer.facts), answer.error] for answer in answers.values()])
