"""The one seam between an op and its implementations: a policy for the process, and a table of native implementations.

Every op module calls `native(name)`; where that gives a callable, it is used instead of the reference. No native
implementation is registered in this version, so `auto` runs the reference ops.
"""

from __future__ import annotations

from collections.abc import Callable

from dnnlib import UserError

POLICIES = ("auto", "native", "reference")

_natives: dict[str, Callable] = {}
_policy = "auto"


def register_native(name: str, implementation: Callable) -> None:
    """Registers a faster implementation of the op `name`; it must equal the reference in value and in first and second gradients."""
    _natives[name] = implementation


def set_policy(policy: str) -> None:
    """Chooses the implementations of this process: `reference`, `native` (required), or `auto` (native where there is one).

    Raises:
        UserError: unknown policy, or `native` where no native ops are registered.
    """
    global _policy
    if policy not in POLICIES:
        raise UserError(f"--ops={policy}: unknown, choose one of {', '.join(POLICIES)}")
    if policy == "native" and not _natives:
        raise UserError("--ops=native: this version has no native ops, use --ops=auto or --ops=reference")
    _policy = policy


def native(name: str) -> Callable | None:
    """The native implementation of the op `name` under the current policy, or None: run the reference."""
    return None if _policy == "reference" else _natives.get(name)
