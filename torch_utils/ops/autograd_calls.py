"""When the ops are recorded by autograd functions, and how these are called cheaply.

An autograd function with `setup_context`, which torch.func needs, has its arguments bound to the signature of `forward` at every call, to fill in
defaults. That takes longer than a small op. A signature that is kept beside the function, where Python's `inspect` looks first, and that has
nothing to fill in, does away with it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import forward_ad

# What torch itself asks before it applies any autograd function. Should it go by another name one day, every call counts as transformed: the
# results are right then, if slow.
_is_transformed: Callable[[], bool] = getattr(torch._C, "_are_functorch_transforms_active", lambda: True)


class _Bound:
    """Arguments as they were given."""

    apply_defaults = staticmethod(dict)  # there are none

    def __init__(self, args: tuple, kwargs: dict[str, Any]) -> None:
        self.args, self.kwargs = args, kwargs


class _Signature(inspect.Signature):
    """A signature that is always met in full and by position."""

    def bind(self, *args: Any, **kwargs: Any) -> _Bound:
        return _Bound(args, kwargs)


def positional(forward: Callable) -> Callable:
    """Decorates the `forward` of an autograd function that is always applied with all of its arguments, by position."""
    forward.__signature__ = _Signature(list(inspect.signature(forward).parameters.values()))
    return forward


def recorded(*tensors: torch.Tensor | None) -> bool:
    """Whether anything may be differentiated with respect to the tensors, so that an autograd function must be applied.

    In forward mode, too: what has no tangents is refused by the function, where the op itself would drop them without a word.
    """
    return any(t is not None and t.requires_grad for t in tensors) or _in_forward_mode()


def composed() -> bool:
    """Whether ops are to be made of PyTorch's operators only, all of which have derivatives of every kind.

    So they are where a compiler traces code that may be differentiated, and fuses them itself: with torch.func inside, torch.compile takes
    autograd functions apart or cuts their second derivatives off, without a word (torch 2.13). So they are, too, within the transforms of
    torch.func, where a tensor does not tell whether a transform further out differentiates it, and in forward mode.
    """
    if torch.compiler.is_compiling():
        return torch.is_grad_enabled()
    return _is_transformed() or _in_forward_mode()


def _in_forward_mode() -> bool:
    """Whether tensors may carry tangents."""
    return getattr(forward_ad, "_current_level", 0) >= 0
