from collections.abc import Callable
from pathlib import Path

import pytest

SMALL = """\
name: small
model:
  name: some/model
data:
  path: data/rows
  max_length: 64
miso:
  mode: para
train:
  epochs: 2
  batch_size: 4
  learning_rate: 1e-5
"""


@pytest.fixture
def small_recipe() -> str:
    """The smallest recipe that loads."""
    return SMALL


@pytest.fixture
def write_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Writes `r.yaml` in a folder that becomes the current one, so that messages read `r.yaml:LINE`."""
    monkeypatch.chdir(tmp_path)

    def write(text: str) -> Path:
        path = Path("r.yaml")
        path.write_text(text, encoding="utf-8")
        return path

    return write
