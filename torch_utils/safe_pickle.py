"""A reader of pickle files that cannot run anything: a small stack machine over the opcodes, with named builders.

Python's own unpickler imports and calls what a file names. This machine never imports: a global is just its name, and calling
one looks the name up in a table of builders that the caller supplies; a name that is not in the table stops the reading. It
also bounds what a file can make of little: the number of operations, the memo, and what may be a key (hashing nested tuples
takes exponential time). What the builders make of the data is not its business; see torch_utils.legacy.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Mapping
from typing import IO, Any

MAX_OPERATIONS = 2_000_000  # the largest public network files need some 30,000

Builder = Callable[..., Any]

# Opcodes that push the value decoded from their argument, and those that push one fixed or fresh value.
_LITERALS = frozenset(
    [
        "BININT",
        "BININT1",
        "BININT2",
        "LONG1",
        "LONG4",
        "BINFLOAT",
        "BINUNICODE",
        "SHORT_BINUNICODE",
        "BINUNICODE8",
        "BINSTRING",  # Python 2's bytes, given as text of the same codes
        "SHORT_BINSTRING",
        "BINBYTES",
        "SHORT_BINBYTES",
        "BINBYTES8",
        "BYTEARRAY8",
    ]
)
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
}
_SHORT_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_SCALARS = (type(None), bool, int, float, str, bytes)


class RefusedPickle(Exception):
    """The file is no pickle, is damaged, or asks for something that the caller did not allow; the text says which."""


class GlobalName:
    """A global that the file names, as nothing but its name."""

    def __init__(self, name: str) -> None:
        self.name = name


class PickleMachine:
    """Reads pickles (protocols 2 to 5) with the given builders.

    Args:
        builders: "module.name" -> function that receives the call's positional arguments and returns inert data. An object
            with a method `set_state(state)` accepts the pickle's BUILD; nothing else does.
        persistent: receives what the file gives as the name of an object outside of the pickle, and returns inert data; None refuses such names.
        max_operations: how many opcodes a pickle may hold.
    """

    def __init__(self, builders: Mapping[str, Builder], persistent: Builder | None = None, max_operations: int = MAX_OPERATIONS) -> None:
        self._builders = builders
        self._persistent = persistent
        self._max_operations = max_operations
        self._stack: list[Any] = []
        self._marked: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def load(self, data: bytes | IO[bytes]) -> Any:
        """The object that the pickle describes; of a stream, the pickle that begins where it stands, and it is left behind that.

        Raises:
            RefusedPickle: see the class.
        """
        self._stack, self._marked, self._memo = [], [], {}
        try:
            for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
                if count >= self._max_operations:
                    raise RefusedPickle(f"holds more than {self._max_operations:,} operations")
                if opcode.name == "STOP":
                    return self._stack.pop()
                self._execute(opcode.name, argument)
        except (ValueError, IndexError, KeyError, OverflowError) as error:
            raise RefusedPickle("is damaged, cut short, or not a pickle file") from error
        raise RefusedPickle("is cut short")

    def _execute(self, name: str, argument: Any) -> None:
        """One opcode."""
        if name in _LITERALS:
            self._stack.append(argument)
        elif name in _CONSTANTS:
            self._stack.append(_CONSTANTS[name]())
        elif name in _SHORT_TUPLES:
            self._push_tuple(_SHORT_TUPLES[name])
        elif name in ("PROTO", "FRAME"):
            return
        elif handler := _HANDLERS.get(name):
            handler(self, argument)
        else:
            raise RefusedPickle(f"uses the pickle operation {name}, which network files do not need")

    def _push_tuple(self, length: int) -> None:
        if len(self._stack) < length:
            raise IndexError("the stack is too short")
        items = tuple(self._stack[-length:])
        del self._stack[-length:]
        self._stack.append(items)

    def _mark(self, _: Any) -> None:
        self._marked.append(self._stack)
        self._stack = []

    def _pop_to_mark(self) -> list[Any]:
        items = self._stack
        self._stack = self._marked.pop()
        return items

    def _tuple(self, _: Any) -> None:
        items = self._pop_to_mark()
        self._stack.append(tuple(items))

    def _append(self, _: Any) -> None:
        item = self._stack.pop()
        self._top(list).append(item)

    def _appends(self, _: Any) -> None:
        items = self._pop_to_mark()
        self._top(list).extend(items)

    def _set_item(self, _: Any) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._top(dict)[_checked_key(key)] = value

    def _set_items(self, _: Any) -> None:
        items = self._pop_to_mark()
        target = self._top(dict)
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[_checked_key(key)] = value

    def _add_items(self, _: Any) -> None:
        items = self._pop_to_mark()
        self._top(set).update(_checked_key(item) for item in items)

    def _top(self, kind: type) -> Any:
        """The object on top of the stack, which must be a list, dict or set."""
        if not isinstance(self._stack[-1], kind):
            raise RefusedPickle(f"fills a {type(self._stack[-1]).__name__} as if it were a {kind.__name__}")
        return self._stack[-1]

    def _get(self, index: int) -> None:
        self._stack.append(self._memo[index])

    def _put(self, index: int) -> None:
        self._memo[index] = self._stack[-1]

    def _memoize(self, _: Any) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def _global(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self._push_global(module, name)

    def _stack_global(self, _: Any) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        if type(name) is not str or type(module) is not str:
            raise RefusedPickle("names a global by something that is not text")
        self._push_global(module, name)

    def _push_global(self, module: str, name: str) -> None:
        full_name = f"{module}.{name}"
        if full_name not in self._builders:
            raise RefusedPickle(f"asks for {_shown(full_name)}, which is not part of such a file")
        self._stack.append(GlobalName(full_name))

    def _call(self, _: Any) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        if type(function) is not GlobalName or type(arguments) is not tuple:
            raise RefusedPickle(f"calls a {type(function).__name__}, which is not a function it may name")
        try:
            self._stack.append(self._builders[function.name](*arguments))
        except TypeError as error:
            raise RefusedPickle(f"calls {function.name} with arguments that do not fit") from error

    def _persistent_object(self, _: Any) -> None:
        if self._persistent is None:
            raise RefusedPickle("refers to something outside of it")
        self._stack.append(self._persistent(self._stack.pop()))

    def _build(self, _: Any) -> None:
        state, target = self._stack.pop(), self._stack[-1]
        if not hasattr(target, "set_state"):
            raise RefusedPickle(f"sets the attributes of a {type(target).__name__}, which has none")
        target.set_state(state)


_HANDLERS: dict[str, Callable[[PickleMachine, Any], None]] = {
    "MARK": PickleMachine._mark,
    "TUPLE": PickleMachine._tuple,
    "APPEND": PickleMachine._append,
    "APPENDS": PickleMachine._appends,
    "SETITEM": PickleMachine._set_item,
    "SETITEMS": PickleMachine._set_items,
    "ADDITEMS": PickleMachine._add_items,
    "BINGET": PickleMachine._get,
    "LONG_BINGET": PickleMachine._get,
    "BINPUT": PickleMachine._put,
    "LONG_BINPUT": PickleMachine._put,
    "MEMOIZE": PickleMachine._memoize,
    "GLOBAL": PickleMachine._global,
    "STACK_GLOBAL": PickleMachine._stack_global,
    "REDUCE": PickleMachine._call,
    "NEWOBJ": PickleMachine._call,
    "BUILD": PickleMachine._build,
    "BINPERSID": PickleMachine._persistent_object,
}


def _checked_key(key: Any) -> Any:
    if type(key) not in _SCALARS:
        raise RefusedPickle(f"has a {type(key).__name__} as a key")
    return key


def _shown(name: str) -> str:
    """A name from the file, made fit for one line of a message."""
    return ascii(name[:120])[1:-1]
