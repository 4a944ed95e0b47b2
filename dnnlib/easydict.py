"""A dictionary whose keys are also attributes: the configuration container of this code base."""

from __future__ import annotations

from typing import Any


class EasyDict(dict):
    """`dict` with attribute access: `d.lr` is `d['lr']`. Serialises to JSON as a plain dictionary.

    Raises:
        AttributeError: on reading or deleting a key that does not exist.
    """

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(f"no entry {name!r}; there are: {', '.join(map(str, self)) or 'none'}") from error

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def __delattr__(self, name: str) -> None:
        try:
            del self[name]
        except KeyError as error:
            raise AttributeError(f"no entry {name!r}") from error
