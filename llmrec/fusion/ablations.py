"""A fusion, and what would be fused without each of its parts: to tell what each of them adds."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmrec.errors import UserError
from llmrec.fusion.model import Fusion
from llmrec.fusion.parts import Parts


@dataclass(frozen=True)
class Fitted:
    """full: of all parts; without: by the name of what is left out; new_users: of all parts, for users without a
    history, None if they have none of their own; ranker: version of the one whose scores are a part."""

    full: Fusion
    without: dict[str, Fusion]
    new_users: Fusion | None = None
    ranker: str = ""

    def to_json(self) -> bytes:
        without = {name: fusion.as_dict() for name, fusion in self.without.items()}
        found: dict[str, Any] = {"ranker": self.ranker, "fusion": self.full.as_dict(), "without": without}
        if self.new_users is not None:
            found["new_users"] = self.new_users.as_dict()
        return json.dumps(found, indent=1).encode()

    @staticmethod
    def from_json(data: bytes, source: str) -> Fitted:
        """
        Raises:
            UserError: it is no fusion of this version.
        """
        try:
            found = json.loads(data)
            without = {name: Fusion.of_dict(each) for name, each in found["without"].items()}
            new_users = Fusion.of_dict(found["new_users"]) if "new_users" in found else None
            return Fitted(Fusion.of_dict(found["fusion"]), without, new_users, found["ranker"])
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(f"{source}: not a fusion of this version; fit it anew (jobs/fuse.py)") from None


def fit(
    parts: Parts,
    truth: np.ndarray,
    fitted: Callable[[Parts, np.ndarray], Fusion],
    groups: Mapping[str, Collection[str]],
) -> Fitted:
    """fitted: `model.fit` with its settings; groups: by a name, parts that are left out together.

    Raises:
        UserError: nothing can be fitted. A fusion without a part that all depends on is left out instead.
    """
    full, without = fitted(parts, truth), {}
    for name, gone in groups.items():
        left = [part for part in parts.names if part not in gone]
        if left and len(left) < len(parts.names):
            with contextlib.suppress(UserError):
                without[name] = fitted(parts.only(left), truth)
    return Fitted(full, without)
