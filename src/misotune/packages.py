"""Which packages are installed, and a refusal, with its cure, where one is missing or too old."""

import re
from importlib import metadata

from misotune.errors import UsageError


def installed_version(package: str) -> str | None:
    """Returns a package's version; None: it is not installed, or is run from a source tree."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def require_package(what: str, package: str, minimum: str) -> None:
    """Makes sure that a package is installed, and new enough.

    Args:
        what: What asks for it, for the message.
        package: As pip names it.
        minimum: The oldest version that will do.

    Raises:
        UsageError: It is not, or is too old.
    """
    found = installed_version(package)
    if found is None or _numbers(found) < _numbers(minimum):
        has = "which is not installed" if found is None else f"and {found} is installed"
        raise UsageError(
            f"{what} needs the package {package} {minimum} or newer, {has}: pip install '{package}>={minimum}'"
        )


def _numbers(of_version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", of_version)[:3]]
