"""The mixture file with its sources found: what `prepare mixture` builds."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from misotune.data.sources.registry import SOURCES, Source, find_source
from misotune.errors import RecipeError, UsageError
from misotune.recipe.loading import load_mixture_file
from misotune.recipe.mixture import MixtureFile, SourceEntry
from misotune.recipe.yaml_text import KeyPath


@dataclass(frozen=True, slots=True)
class MixtureSource:
    """A source of a mixture.

    Attributes:
        name: Its own name in the mixture; begins the ids of its rows.
        entry: What the file says of it.
        source: Where its rows come from.
    """

    name: str
    entry: SourceEntry
    source: Source


@dataclass(frozen=True, slots=True)
class Mixture:
    """A mixture that can be built.

    Attributes:
        path: The mixture file.
        file: What it says.
        sources: Its sources in order.
    """

    path: Path
    file: MixtureFile
    sources: tuple[MixtureSource, ...]


def load_mixture(path: Path, overrides: Sequence[str] = ()) -> Mixture:
    """Returns the mixture of a YAML file, its sources found and its files seen to be there.

    Args:
        path: The file; `misotune.recipe.loading.find_mixture` finds a shipped one by name.
        overrides: `key=value` in place of the file's values.

    Raises:
        RecipeError: The file cannot be read, keys or values are wrong, or a source is not there: one line per
            problem, with file, line and key.
    """
    file, place_of = load_mixture_file(path, overrides)
    sources: list[MixtureSource] = []
    problems: list[str] = []
    for index, entry in enumerate(file.sources):
        try:
            source = _find(entry, Path(file.data_dir))
        except UsageError as error:
            key = "data" if entry.data is not None else "source"
            problems.append(_problem(place_of, ("sources", index, key), str(error)))
            continue
        name = entry.name or source.name
        if name in (other.name for other in sources):
            message = f"{name!r} is the name of an earlier source too; give this one a name of its own"
            problems.append(_problem(place_of, ("sources", index, "name"), message))
        sources.append(MixtureSource(name, entry, source))
    if problems:
        raise RecipeError("\n".join(problems))
    return Mixture(path, file, tuple(sources))


def _find(entry: SourceEntry, folder: Path) -> Source:
    is_file = entry.source not in SOURCES and (folder / entry.source).is_file()
    source = find_source(
        str(folder / entry.source) if is_file else entry.source,
        None if entry.data is None else folder / entry.data,
        columns=entry.map,
        think=entry.think,
        keep_reverse=entry.keep_reverse,
        min_confidence=entry.min_confidence,
        revision=entry.revision,
    )
    if source.path is not None and not source.path.is_file():
        path = source.path if entry.data is not None else folder / source.path
        raise UsageError(f"{path}: no such file; data_dir=FOLDER says where files are")
    return source


def _problem(place_of: Callable[[KeyPath], str], key: KeyPath, message: str) -> str:
    return f"{place_of(key)}: {'.'.join(map(str, key))}: {message}"
