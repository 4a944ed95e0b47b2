"""Roll call: ranks notice within seconds that one of them is gone, silent or stuck, and end with a sentence instead of waiting for ever.

Every rank holds a connection to rank 0 and tells over it, once a second and from a thread of its own, how far it has come. A connection
that closes is a process that ended; one that falls silent is a process that was stopped or a machine that cannot be reached; a rank that
still talks but does not come to the next exchange for which the others wait is stuck. Rank 0 judges, the others judge rank 0. The
training thread may hang in a collective that nothing can interrupt, so the thread itself prints the sentence and ends the process.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import math
import os
import secrets
import selectors
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from dnnlib import UserError

BEAT = 1.0  # seconds between two reports of a rank
SILENT_SHARE = 0.5  # of the limit: a thread that only reports has less to excuse its silence than a training step has
PATIENCE = 5.0  # a rank is not stuck before this many times the longest recent time between two exchanges
RECENT = 64  # exchanges that count as recent
LOST = 75  # exit code when a rank is lost: start again and it goes on
STARTING = "starting"
VERDICT_SECONDS = 3.0  # within which a connection that closed has been noticed, and judged, by all
HELLO_SECONDS = 10.0
MAX_LINE = 1 << 16
KEY = "roll_call"


@dataclasses.dataclass
class Member:
    """What is known of a rank.

    Args:
        host: where it runs.
        arrived: exchanges that it has come to.
        place: how far the run is there, such as '12.3 kimg'.
        task: what it does besides steps, and may take its time for; None: steps.
        heard, moved: when it last reported, and when `arrived` last grew or a task was still going on, by the monotonic clock.
    """

    host: str
    arrived: int = 0
    place: str = "the start"
    task: str | None = STARTING
    heard: float = dataclasses.field(default_factory=time.monotonic)
    moved: float = dataclasses.field(default_factory=time.monotonic)

    def take_in(self, report: dict) -> None:
        """What a rank tells of itself, as `report` makes it."""
        self.heard = time.monotonic()
        if report["arrived"] != self.arrived or self.task:
            self.moved = self.heard
        self.arrived, self.place, self.task = report["arrived"], report["place"], report["task"]

    def report(self) -> dict:
        """What the others are told."""
        return {"arrived": self.arrived, "place": self.place, "task": self.task}


class Pace:
    """The longest recent time between two exchanges of the slowest rank, in seconds.

    Times with a task in them do not count, nor does what comes before the first exchange. The first step does, although nobody is judged in it:
    it alone tells how long the exchanges of the second may take.
    """

    def __init__(self):
        self._seconds: collections.deque[float] = collections.deque(maxlen=RECENT)
        self._last: tuple[int, float] | None = None

    def see(self, members: dict[int, Member], now: float) -> None:
        """Takes in how far the members are."""
        slowest = min(member.arrived for member in members.values())
        if slowest == 0 or any(member.task not in (None, STARTING) for member in members.values()):
            self._last = None
        elif self._last is None:
            self._last = slowest, now
        elif slowest > self._last[0]:
            self._seconds.append((now - self._last[1]) / (slowest - self._last[0]))
            self._last = slowest, now

    def longest(self) -> float:
        """Seconds; 0 before anything was seen."""
        return max(self._seconds, default=0.0)


def judge(members: dict[int, Member], now: float, limit: float, pace: float) -> str | None:
    """What is wrong with the ranks, as a clause such as 'rank 2 (host) has been silent for 20 s, ...', or None.

    Args:
        members: by rank; one that has left in good order is not among them.
        now: monotonic clock, seconds.
        limit: seconds for which a rank may be stuck; it may be silent for half of that.
        pace: longest recent time between two exchanges, seconds; nobody is stuck before `PATIENCE` times that.
    """
    for number, member in members.items():
        if now - member.heard > limit * SILENT_SHARE:
            return f"{named(number, member)} has been silent for {now - member.heard:.0f} s, last heard of at {member.place}"
    slowest = min(member.arrived for member in members.values())
    last = {number: member for number, member in members.items() if member.arrived == slowest}
    waited = min(now - member.moved for member in last.values())
    if waited <= max(limit, PATIENCE * pace) or any(member.task for member in last.values()):
        return None
    if len(last) == len(members):
        return f"no rank has come further than {last[min(last)].place} for {waited:.0f} s"
    number, member = next(iter(last.items()))
    others = f" (and {len(last) - 1} more)" if len(last) > 1 else ""
    return f"{named(number, member)}{others} is stuck at {member.place}: the others have waited for it for {waited:.0f} s"


def named(number: int, member: Member) -> str:
    """A rank as sentences call it."""
    return f"rank {number} ({member.host})"


class JsonConnection:
    """One connection, on which both sides send JSON objects, each a line."""

    def __init__(self, connection: socket.socket):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.settimeout(BEAT)
        self.socket = connection
        self._rest = b""

    def send(self, **message: Any) -> None:
        """Sends one message; silently nothing if the other side cannot take it, which reading will show."""
        with contextlib.suppress(OSError):
            self.socket.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> list[dict] | None:
        """The messages that have come, or None if the other side has closed (or talks nonsense)."""
        try:
            data = self.socket.recv(MAX_LINE)
        except TimeoutError:
            return []
        except OSError:
            return None
        *lines, self._rest = (self._rest + data).split(b"\n")
        if not data or len(self._rest) > MAX_LINE:
            return None
        try:
            messages = [json.loads(line) for line in lines]
        except ValueError:
            return None
        return messages if all(isinstance(message, dict) for message in messages) else None

    def wait(self, seconds: float) -> dict | None:
        """The next message; None if the other side closes or sends none within `seconds`."""
        end = time.monotonic() + seconds
        messages: list[dict] | None = []
        while messages == [] and time.monotonic() < end:
            messages = self.receive()
        return messages[0] if messages else None


class RollCall:
    """This rank's part in the roll call; rank 0 also listens.

    Args:
        store: of torch.distributed, by which the ranks find rank 0.
        rank, size: of this process.
        address: at which the others reach rank 0.
        limit: seconds a rank may be stuck (and half of that silent), above 0.
        join_seconds: within which all ranks must have come.
        advice: what a user can do about a lost rank, the end of the sentence.

    Raises:
        UserError: ranks did not come, or rank 0 cannot be reached.
    """

    def __init__(self, store: Any, rank: int, size: int, address: str, limit: float, join_seconds: float, advice: str = ""):
        self.rank, self.limit = rank, limit
        self.own = Member(socket.gethostname())
        self.advice = advice
        self._members: dict[int, Member] = {}
        self._connections: dict[int, JsonConnection] = {}
        self._pace = Pace()
        self._leaving = threading.Event()
        try:
            self._gather(store, size, join_seconds) if rank == 0 else self._find(store, address, join_seconds)
        except OSError as error:
            raise UserError(f"rank {rank} cannot reach rank 0 at {address} ({error}); are its ports open to this machine?") from error
        self._thread = threading.Thread(target=self._watch, name="roll call", daemon=True)
        self._thread.start()

    # The training thread's side.

    def arrive(self) -> None:
        """Counts one exchange to which this rank has come; all ranks call it for the same ones."""
        self.own.arrived += 1
        self.own.moved = time.monotonic()

    def stepped(self, place: str) -> None:
        """A step is done and the run stands at `place`; from the first one on, a rank can be stuck."""
        self.own.take_in({"arrived": self.own.arrived, "place": place, "task": None})

    @contextlib.contextmanager
    def busy(self, task: str) -> Iterator[None]:
        """Within: this rank does something that may take its time, such as metrics, and is not stuck."""
        before, self.own.task = self.own.task, task
        try:
            yield
        finally:
            self.own.take_in(self.own.report() | {"task": before})

    def leave(self, error: BaseException | None = None, code: int = 1) -> None:
        """Takes leave of the others, after which the connections may close.

        Args:
            error: why this rank ends while the others go on. If it may be what another rank's end did to this one, it first waits for
                the verdict, which ends the process with that.
            code: exit code that the others shall end with, too.
        """
        if isinstance(error, RuntimeError):
            self._thread.join(VERDICT_SECONDS)
        self._leaving.set()
        reason = "" if error is None else f"{' '.join(str(error).split())[:300] or type(error).__name__}"
        self._tell(bye=True, reason=reason, code=code, place=self.own.place)
        self._thread.join(2 * BEAT)
        for connection in self._connections.values():
            connection.socket.close()

    # Coming together.

    def _gather(self, store: Any, size: int, join_seconds: float) -> None:
        """Rank 0 waits for the others, then tells them that all are there."""
        token, end = secrets.token_hex(16), time.monotonic() + join_seconds
        family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
        with socket.create_server(("", 0), family=family, backlog=size, dualstack_ipv6=family == socket.AF_INET6) as server:
            store.set(KEY, json.dumps([server.getsockname()[1], token]))
            while len(self._connections) < size - 1:
                server.settimeout(max(end - time.monotonic(), 0.01))
                try:
                    connection = JsonConnection(server.accept()[0])
                except TimeoutError as error:
                    missing = sorted(set(range(1, size)) - self._connections.keys())
                    reason = f"{len(missing)} of {size} ranks, rank {missing[0]} first, did not come within {join_seconds:.0f} s"
                    self._tell(verdict=reason, code=LOST)
                    raise UserError(reason) from error
                hello = connection.wait(HELLO_SECONDS) or {}
                if hello.get("token") == token:
                    self._connections[int(hello["rank"])] = connection
                    self._members[int(hello["rank"])] = Member(str(hello["host"]))
                else:
                    connection.socket.close()  # no rank of this run
        self._members = {0: self.own, **dict(sorted(self._members.items()))}
        for member in self._members.values():
            member.heard = member.moved = time.monotonic()
        self._tell(**self.own.report())

    def _find(self, store: Any, address: str, join_seconds: float) -> None:
        """Another rank connects to rank 0 and waits until all have."""
        port, token = json.loads(store.get(KEY))
        connection = JsonConnection(socket.create_connection((address, port), timeout=join_seconds))
        connection.send(token=token, rank=self.rank, host=self.own.host)
        first = connection.wait(join_seconds)
        if first is None or "verdict" in first:
            raise UserError("rank 0 has ended before all ranks had come" if first is None else first["verdict"])
        self._connections[0] = connection
        self._members[0] = Member(address)

    # The thread.

    def _watch(self) -> None:
        with selectors.DefaultSelector() as selector:
            for number, connection in self._connections.items():
                selector.register(connection.socket, selectors.EVENT_READ, number)
            before = sent = time.monotonic()
            while not self._leaving.is_set():
                for key, _ in selector.select(BEAT / 4):
                    if not self._hear(key.data):
                        selector.unregister(key.fileobj)
                if self._leaving.is_set():
                    break
                now = time.monotonic()
                if now - before > self.limit * SILENT_SHARE / 2:  # this process was stopped or starved, so it has no say about the others
                    for member in self._members.values():
                        member.heard = member.moved = now
                before = now
                if now - sent >= BEAT:
                    sent = now
                    self._tell(**self.own.report())
                if self._members:
                    self._judge(now)

    def _tell(self, **message: Any) -> None:
        self.own.heard = time.monotonic()
        for connection in self._connections.values():
            connection.send(**message)

    def _hear(self, number: int) -> bool:
        """Takes in what a rank has sent; False if it will send no more."""
        messages = self._connections[number].receive()
        if self._leaving.is_set():  # what comes now answers this rank's own leave, which is to end it in its own way
            return False
        if messages is None:
            if number in self._members:
                self._end(f"{named(number, self._members[number])} is gone, last heard of at {self._members[number].place}", LOST)
            return False
        for message in messages:
            if "verdict" in message:
                self._end(message["verdict"], message["code"], told=True)
            if "bye" in message:
                member = self._members.pop(number)
                if message["reason"]:
                    self._end(f"{named(number, member)} has ended at {message['place']}: {message['reason']}", message["code"])
            elif number in self._members:
                self._members[number].take_in(message)
        return True

    def _judge(self, now: float) -> None:
        """Rank 0 judges all, the others only whether rank 0 is silent."""
        if self.rank == 0:
            self._pace.see(self._members, now)
        verdict = judge(self._members, now, self.limit, self._pace.longest() if self.rank == 0 else math.inf)
        if verdict is not None:
            self._end(verdict, LOST)

    def _end(self, verdict: str, code: int, told: bool = False) -> None:
        """Prints the verdict, tells the others, and ends the process."""
        self._tell(verdict=verdict, code=code)
        # One sentence on each machine is enough. What rank 0 has not told is its own end, which on its machine rank 1 says.
        if os.environ.get("LOCAL_RANK") == "0" or (self.rank <= 1 and not told):
            # From a thread: a full pipe or a dead disk below log.txt must not hold up the end.
            sentence = f"Error: {verdict}{'; ' if self.advice else ''}{self.advice}"
            printing = threading.Thread(target=print, args=[sentence], kwargs={"file": sys.stderr, "flush": True}, daemon=True)
            printing.start()
            printing.join(2.0)
        os._exit(code)
