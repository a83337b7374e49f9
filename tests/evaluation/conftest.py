import pytest

from misotune.evaluation.prompts import prompts_from_rows, read_jsonl


@pytest.fixture
def punkt(shared_data, monkeypatch):
    """NLTK's English Punkt data out of the real data samples."""
    import nltk

    monkeypatch.setattr(nltk.data, "path", [str(shared_data / "nltk_data")])


@pytest.fixture
def no_punkt(monkeypatch):
    """NLTK without any data, and without the chance to fetch some."""
    import nltk

    monkeypatch.setattr(nltk.data, "path", [])
    monkeypatch.setattr("misotune.evaluation.verifiers._download_punkt", lambda: None)


@pytest.fixture(scope="session")
def ifeval_prompts(shared_data):
    return prompts_from_rows(read_jsonl(shared_data / "ifeval" / "input_data.jsonl"))
