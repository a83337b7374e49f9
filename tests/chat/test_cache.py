"""The file of answers: what it keeps, older files, and disks that do not take it."""

import sqlite3
import subprocess
import sys
import textwrap
import threading

import pytest

from misotune.chat.cache import AnswerCache
from misotune.chat.messages import ChatAnswer
from misotune.errors import RunError, UsageError
from misotune.evaluation.backends.base import Response
from misotune.evaluation.backends.response_cache import ResponseCache

ANSWER = ChatAnswer("Yes.", "stop", 2)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "answers.sqlite"


def write_first_version(path) -> None:
    """As the first version of the cache made it."""
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("CREATE TABLE answers (key TEXT PRIMARY KEY, text TEXT NOT NULL) WITHOUT ROWID")
    db.execute("INSERT INTO answers VALUES ('old', 'Kept.')")
    db.close()


@pytest.mark.parametrize(
    "answer",
    [ANSWER, ChatAnswer("a"), ChatAnswer("日本 \x00 🎉", "length"), ChatAnswer('{"text": 1}', None, 0)],
    ids=["whole", "text alone", "odd text", "looks like JSON"],
)
def test_an_answer_comes_back_as_it_was_put(path, answer):
    with AnswerCache(path) as cache:
        cache.put("k", answer)
    with AnswerCache(path) as cache:
        found = cache.get("k")
        assert found is not None
        assert (found.text, found.finish_reason, found.num_tokens) == (
            answer.text, answer.finish_reason, answer.num_tokens,
        )  # fmt: skip
        assert found.is_cached
        assert cache.get("other") is None
        assert cache.num_answers == 1


def test_a_file_of_the_first_version_is_read_and_written(path):
    write_first_version(path)
    with AnswerCache(path) as cache:
        assert cache.get("old") == ChatAnswer("Kept.", is_cached=True)
        cache.put("new", ANSWER)
    with AnswerCache(path) as cache:
        assert cache.get("new") == ChatAnswer("Yes.", "stop", 2, is_cached=True)
        assert cache.num_answers == 2


@pytest.mark.parametrize("is_old", [True, False], ids=["first version", "new"])
def test_many_may_open_a_file_at_once(path, is_old):
    if is_old:
        write_first_version(path)
    failures = []
    start = threading.Barrier(8)

    def use(name: str) -> None:
        try:
            start.wait()
            with AnswerCache(path) as cache:
                cache.put(name, ANSWER)
        except Exception as error:  # noqa: BLE001 -- told by the assertion below
            failures.append(error)

    threads = [threading.Thread(target=use, args=(str(i),)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    with AnswerCache(path) as cache:
        assert cache.num_answers == 8 + is_old


def test_a_file_that_is_no_cache_is_named_and_left_alone(tmp_path):
    path = tmp_path / "notes.txt"
    text = "not a database, but long enough to be looked at as one" * 20
    path.write_text(text)
    with pytest.raises(UsageError, match=r"notes.txt: cannot be used as a cache of answers .*; delete it, or name"):
        AnswerCache(path)
    assert path.read_text() == text
    other = tmp_path / "other.sqlite"
    sqlite3.connect(other).close()
    with AnswerCache(other) as cache:
        assert cache.num_answers == 0


def test_another_programs_table_of_that_name_is_left_alone(path):
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("CREATE TABLE answers (question TEXT, answer TEXT)")
    with pytest.raises(UsageError, match=r"cannot be used as .*\(no such column: key\); delete it, or"):
        AnswerCache(path)
    assert [row[1] for row in db.execute("PRAGMA table_info(answers)")] == ["question", "answer"]
    db.close()


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"cannot be used as a cache of answers .*; make it and its folder writable"):
        AnswerCache(tmp_path / "file" / "answers.sqlite")
    with pytest.raises(UsageError, match=r"unable to open database file\); make it and its folder writable"):
        AnswerCache(tmp_path)


CURES = {
    "query_only = ON": r"readonly database\)(; those before it are)?: make it and its folder writable and run the same",
    "max_page_count = 1": r"is full\); those before it are: make room there and run the same command again",
}


@pytest.mark.parametrize("pragma", CURES)
def test_what_cannot_be_kept_is_one_line_with_the_cure_in_both_caches(path, pragma):
    with AnswerCache(path) as cache:
        cache.put("k", ANSWER)
        cache._db.execute(f"PRAGMA {pragma}")
        with pytest.raises(RunError, match=rf"answers.sqlite: an answer cannot be kept .*{CURES[pragma]}") as error:
            cache.put("next", ChatAnswer("long " * 10_000))
        assert "\n" not in str(error.value)
        assert cache.get("k") is not None
    with ResponseCache(path) as responses:
        responses._answers._db.execute(f"PRAGMA {pragma}")
        with pytest.raises(RunError, match=CURES[pragma]):
            responses.put("next", Response("long " * 10_000, 3, False))


def test_a_limit_on_the_size_of_files_is_told_and_what_was_kept_stays(path):
    """As a quota or a full disk: the system, not SQLite, refuses to write."""
    code = f"""
        import resource, signal
        from pathlib import Path
        from misotune.chat.cache import AnswerCache
        from misotune.chat.messages import ChatAnswer
        from misotune.errors import RunError
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        cache = AnswerCache(Path({str(path)!r}))
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            for i in range(1000):
                cache.put(str(i), ChatAnswer("x" * 1000))
        except RunError as error:
            print(i)
            print(error)
    """
    process = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True, timeout=60
    )
    number, message = process.stdout.splitlines()
    assert "those before it are: make room there and run the same command again" in message
    with AnswerCache(path) as cache:
        assert cache.num_answers == int(number) > 0
        assert cache.get(str(int(number) - 1)) is not None


def test_a_broken_file_is_one_line_when_it_is_read(path):
    with AnswerCache(path) as cache:
        for i in range(200):
            cache.put(f"{i:03}", ChatAnswer("x" * 1000))
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(b"\xff" * 100_000)
    message = r"cannot be read \(database disk image is malformed\): delete it, or name another file and run the same"
    with AnswerCache(path) as cache, pytest.raises(RunError, match=message):
        [cache.get(f"{i:03}") for i in range(200)]
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 100_000)
    with pytest.raises(UsageError, match=r"cannot be used .*malformed\); delete it, or name another file"):
        AnswerCache(path)


def test_responses_of_a_model_here_come_back_whole(path):
    with ResponseCache(path) as cache:
        cache.put("k", Response("Hi", 3, True))
        assert cache.get("k") == Response("Hi", 3, True)
        assert cache.get("other") is None
