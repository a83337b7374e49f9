"""A model behind an OpenAI-compatible server, as the user names it."""

import os
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from misotune.errors import UsageError

DEFAULT_CONCURRENCY = 8


@dataclass(frozen=True, slots=True)
class Server:
    """Who is asked.

    Attributes:
        endpoint: The server's address, such as `http://127.0.0.1:8000`; `/v1` is added where no path is given.
        model: The model's name, as the server knows it.
        api_key: Sent to the server; None: none.
        concurrency: Requests in flight at once.
        key_option: The option that names the key's variable, for messages.

    Raises:
        UsageError: The endpoint is no http address.
    """

    endpoint: str
    model: str
    api_key: str | None = field(default=None, repr=False)
    concurrency: int = DEFAULT_CONCURRENCY
    key_option: str = "--api-key-env"

    def __post_init__(self) -> None:
        if "@" in self.endpoint.split("://")[-1].split("/")[0]:
            cure = f"use {self.key_option} instead"
            raise UsageError(f"an endpoint with a user name or password in it would be shown; {cure}")
        if not _is_http(self.endpoint):
            raise UsageError(
                f"endpoint {self.endpoint!r} is no http address; give one such as http://127.0.0.1:8000/v1"
            )

    @property
    def base_url(self) -> str:
        """The address with its path, without that of a single call."""
        parts = urlsplit(self.endpoint)
        path = parts.path.rstrip("/").removesuffix("/chat/completions")
        return f"{parts.scheme}://{parts.netloc}{path or '/v1'}"

    @property
    def port(self) -> int:
        """The port, which the address may leave out."""
        parts = urlsplit(self.endpoint)
        return parts.port or (443 if parts.scheme == "https" else 80)


def _is_http(address: str) -> bool:
    try:
        parts = urlsplit(address)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # no number as the port, or half an address of IPv6
        return False


def read_api_key(variable: str | None) -> str | None:
    """Returns the key that an environment variable holds; None: no variable was named, and no key is sent.

    Raises:
        UsageError: The variable is not set.
    """
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise UsageError(f"the environment variable {variable} holds no API key; set it: export {variable}=...")
    return key
