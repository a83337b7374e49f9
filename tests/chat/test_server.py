"""A server as the user names it."""

import pytest

from misotune.chat.server import Server, read_api_key
from misotune.errors import UsageError


@pytest.mark.parametrize(
    ("endpoint", "url", "port"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000/v1", 8000),
        ("http://127.0.0.1:8000/", "http://127.0.0.1:8000/v1", 8000),
        ("http://127.0.0.1:8000/v1/chat/completions", "http://127.0.0.1:8000/v1", 8000),
        ("https://host/openai/v1/", "https://host/openai/v1", 443),
        ("http://host", "http://host/v1", 80),
    ],
)
def test_an_endpoint_may_be_given_with_or_without_its_path(endpoint, url, port):
    server = Server(endpoint, "m")
    assert (server.base_url, server.port) == (url, port)


@pytest.mark.parametrize("endpoint", ["localhost:8000", "", "ftp://host", "http://", "http://[::1", "http://host:x"])
def test_an_endpoint_that_is_no_http_address_is_refused(endpoint):
    with pytest.raises(UsageError, match="is no http address; give one such as"):
        Server(endpoint, "m")


@pytest.mark.parametrize("endpoint", ["http://me:hunter2@host", "me:hunter2@host", "http://me:hunter2@"])
def test_an_endpoint_with_a_password_is_refused_and_not_shown(endpoint):
    with pytest.raises(UsageError) as error:
        Server(endpoint, "m", key_option="--judge-api-key-env")
    assert "hunter2" not in str(error.value)
    assert "use --judge-api-key-env instead" in str(error.value)


def test_a_key_is_not_shown():
    assert "s3cret" not in repr(Server("http://host", "m", api_key="s3cret"))


def test_a_missing_key_variable_is_named(monkeypatch):
    monkeypatch.delenv("NO_KEY", raising=False)
    with pytest.raises(UsageError, match="environment variable NO_KEY holds no API key"):
        read_api_key("NO_KEY")
    assert read_api_key(None) is None
