"""Tables as the stages leave them, and tiny saved rankers of both kinds of items."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from served import settings_of

from llmrec import config


@pytest.fixture
def made(tmp_path: Path, tiny_model: Path) -> Callable[..., config.Config]:
    def make(items: str, **sections: Any) -> config.Config:
        return settings_of(str(tmp_path), tmp_path, tiny_model, items, sections)

    return make
