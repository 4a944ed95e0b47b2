"""Damaged and hostile bytes out of sound ones: blind damage, and changes that keep a format's checksums and lengths right so that they get further.

Every function takes a random.Random first, and the same generator gives the same bytes. Which reader gets what is in fuzz_readers.py.
"""

from __future__ import annotations

import functools
import gzip
import io
import json
import pickletools
import random
import struct
import zipfile
import zlib
from typing import Any

NUMBERS = (0, 1, 2, 3, 127, 128, 255, 256, 4096, 65535, 65536, 1 << 24, 2**31 - 1, 2**31, 2**32 - 1, 1 << 40, 2**63 - 1, 2**64 - 1)
ODD_VALUES: tuple[Any, ...] = (
    None, True, [], {}, "", -1, 0, 0.5, 7, 1e308, float("nan"), float("inf"), 2**31, 2**53, 2**70, "\n\x1b[31m", "\ud800", "../../x", "/etc/x",
    "x" * 3000, [[]], [None], {"": None}, [0] * 300, "²", -(2**63), [[1, 2], [3]],
)  # fmt: skip
ODD_NAMES = ("../x.png", "/tmp/x.png", "a/../../x.png", "C:\\x.png", "..\\x.png", "x\n\x1b[31m.png", "." * 250 + ".png")
FIRST_OPS = 400  # of a pickle are changed by preference: structure, and not the thousandth tensor

# Blind damage.


def damaged(r: random.Random, data: bytes) -> bytes:
    """One to three random blows: flipped bits, other bytes, numbers that lie about lengths, pieces lost, doubled, moved or cut off."""
    for _ in range(r.randint(1, 3)):
        data = r.choice((_flip, _overwrite, _lie, _lie, _insert, _remove, _double, _cut))(r, data) if data else r.randbytes(5)
    return data


def _place(r: random.Random, data: bytes) -> int:
    """Anywhere, but beginnings and ends, where formats keep their structure, as often as all the rest."""
    size = len(data)
    return r.choice((r.randrange(size), r.randrange(min(size, 200)), size - 1 - r.randrange(min(size, 200))))


def _flip(r: random.Random, data: bytes) -> bytes:
    return _patched(data, at := _place(r, data), bytes([data[at] ^ 1 << r.randrange(8)]))


def _overwrite(r: random.Random, data: bytes) -> bytes:
    return _patched(data, _place(r, data), r.randbytes(r.choice((1, 2, 4, 16))))


def _lie(r: random.Random, data: bytes) -> bytes:
    size = r.choice((1, 2, 4, 8))
    return _patched(data, _place(r, data), (r.choice(NUMBERS) % 256**size).to_bytes(size, r.choice(("little", "big"))))


def _insert(r: random.Random, data: bytes) -> bytes:
    at = _place(r, data)
    return data[:at] + r.choice((b"\x00", b"\xff", r.randbytes(1), r.randbytes(20))) * r.choice((1, 4, 50)) + data[at:]


def _remove(r: random.Random, data: bytes) -> bytes:
    at = _place(r, data)
    return data[:at] + data[at + r.choice((1, 2, 8, 100)) :]


def _double(r: random.Random, data: bytes) -> bytes:
    at = _place(r, data)
    piece = data[at : at + r.choice((1, 8, 100, 1000))]
    other = _place(r, data)
    return data[:other] + piece + data[other:]


def _cut(r: random.Random, data: bytes) -> bytes:
    return data[: r.randrange(len(data))]


def _patched(data: bytes, at: int, piece: bytes) -> bytes:
    return data[:at] + piece + data[at + len(piece) :]


# JSON.


def odd_tree(r: random.Random, value: Any) -> Any:
    """The same tree with something else in a random place: other values, keys that are gone or new, things wrapped or repeated."""
    if isinstance(value, dict) and value and r.random() < 0.85:
        key = r.choice(list(value))
        if r.random() < 0.1:
            return {name: item for name, item in value.items() if name != key}
        if r.random() < 0.05:
            return {**value, r.choice(("", "x", "meta", "__class__", "path")): r.choice(ODD_VALUES)}
        return {**value, key: odd_tree(r, value[key])}
    if isinstance(value, list) and value and r.random() < 0.85:
        at = r.randrange(len(value))
        return [*value[:at], *r.choice(([], [value[at]] * 2, [odd_tree(r, value[at])], [odd_tree(r, value[at])])), *value[at + 1 :]]
    return r.choice((r.choice(ODD_VALUES), r.choice(ODD_VALUES), [value], {"x": value}, r.choice(NUMBERS), str(value)))


def odd_json(r: random.Random, data: bytes) -> bytes:
    """JSON text, or lines of it, changed as trees; sometimes as bytes, in another encoding, or nested without end."""
    kind = r.random()
    if kind < 0.15:
        return damaged(r, data)
    if kind < 0.2:
        return r.choice((b"[", b'{"a":', b'{"labels":[')) * r.choice((99, 101, 900, 50_000)) + r.choice((b"", b"]" * 900))
    lines = data.split(b"\n") if b"\n{" in data else [data]
    at = r.randrange(len(lines))
    tree = json.loads(lines[at] or b"null")
    for _ in range(r.randint(1, 2)):
        tree = odd_tree(r, tree)
    text = json.dumps(tree, ensure_ascii=r.random() < 0.9).encode("utf-8", "surrogatepass")
    lines[at] = text.decode("utf-8", "replace").encode("utf-16") if r.random() < 0.03 else text
    return b"\n".join(lines)


# Pickles.


def odd_pickle(r: random.Random, data: bytes, hostile: list[bytes]) -> bytes:
    """A pickle with operations lost, doubled, exchanged, with other numbers in them, or with calls of functions that it must not reach."""
    if r.random() < 0.15:
        return damaged(r, data)
    pieces = list(_operations(data))
    for _ in range(r.randint(1, 2)):
        at = r.randrange(min(len(pieces), r.choice((FIRST_OPS, len(pieces)))))
        other = r.randrange(len(pieces))
        kind = r.randrange(6)
        if kind == 0:
            del pieces[at]
        elif kind == 1:
            pieces.insert(at, pieces[other])
        elif kind == 2:
            pieces[at], pieces[other] = pieces[other], pieces[at]
        elif kind == 3:
            pieces[at] = b"\x8a\x08" + struct.pack("<q", r.choice(NUMBERS) % 2**63)
        elif kind == 4:
            pieces[at] = r.choice(hostile)
        else:
            pieces[at] = damaged(r, pieces[at]) if len(pieces[at]) < 10_000 else pieces[at][: r.randrange(len(pieces[at]))]
    return b"".join(pieces)


@functools.lru_cache(maxsize=16)
def _operations(data: bytes) -> tuple[bytes, ...]:
    places = [position for _, _, position in pickletools.genops(data)]
    return tuple(data[a:b] for a, b in zip(places, [*places[1:], len(data)]))


def hostile_calls(command: str, target: str) -> list[bytes]:
    """Pickle operations that would run a shell command or make the file `target`, by every kind of opcode that can."""
    text, made = (b"X" + struct.pack("<I", len(value)) + value.encode() for value in (command, target))
    calls = [b"cos\nsystem\n(" + text + b"tR", b"cposix\nsystem\n" + text + b"\x85R", b"\x8c\x02os\x8c\x06system\x93" + text + b"\x85R"]
    calls += [b"cbuiltins\nopen\n(" + made + b"X\x01\x00\x00\x00wtR", b"cbuiltins\nexec\n" + text + b"\x85R", b"(" + text + b"ios\nsystem\n"]
    calls += [b"csubprocess\nPopen\n" + text + b"\x85R", b"(" + b"cos\nsystem\n" + text + b"o", b"cnumpy\nsave\n(" + made + b"K\x01tR"]
    calls += [b"cos\nsystem\n" + text + b"\x85\x81", b"c__builtin__\neval\n" + text + b"\x85R", b"ctorch\nsave\n(K\x01" + made + b"tR"]
    return [*calls, b"cbuiltins\nbytearray\n\x8a\x06\x00\x00\x00\x00\x00\x7f\x85R", b"c_codecs\nencode\n(" + text + b"X\x03\x00\x00\x00hextR"]


# Archives and pictures.


def odd_zip(r: random.Random, data: bytes) -> bytes:
    """A zip with hostile members, with members unpacked to other contents, or with a directory that lies."""
    kind = r.random()
    if kind < 0.2:
        return damaged(r, data)
    if kind < 0.6:
        at = data.find(b"PK\x01\x02", r.randrange(len(data)))
        at = data.find(b"PK\x01\x02") if at < 0 else at
        offset, size = r.choice(((8, 2), (10, 2), (16, 4), (20, 4), (24, 4), (28, 2), (30, 2), (38, 4), (42, 4)))
        return _patched(data, at + offset, (r.choice(NUMBERS) % 256**size).to_bytes(size, "little"))
    members = unpacked(data)
    name = r.choice(list(members))
    choice = r.randrange(6)
    if choice == 0:
        members[r.choice((*ODD_NAMES, "./" + name))] = members[name]
    elif choice == 1:
        members[name] = bytes(r.choice((1000, 1 << 20, 1 << 24)))
    elif choice == 2 and "dataset.json" in members:
        members["dataset.json"] = odd_json(r, members["dataset.json"])
    elif choice == 3:
        members[name] = b"" if r.random() < 0.3 else members[r.choice(list(members))]
    else:
        members[name] = damaged(r, members[name])
    methods = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) if r.random() < 0.9 else (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
    return packed(members, r.choice(methods), link=name if r.random() < 0.05 else "")


def unpacked(data: bytes) -> dict[str, bytes]:
    """Members of a sound zip by name."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def packed(members: dict[str, bytes], method: int = zipfile.ZIP_STORED, link: str = "") -> bytes:
    """A zip of some members, the one named `link` as a symbolic link."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in members.items():
            info = zipfile.ZipInfo(name)
            info.compress_type, info.external_attr = method, (0o120777 if name == link else 0o644) << 16
            archive.writestr(info, content)
    return buffer.getvalue()


def odd_gzip(r: random.Random, data: bytes) -> bytes:
    """A gzip file damaged outside, or inside with the checksum made right, or one that unfolds to far more than it is long."""
    kind = r.random()
    if kind < 0.25:
        return damaged(r, data)
    inside = gzip.decompress(data)
    if kind < 0.3:
        return gzip.compress(inside[: r.choice((16, 512, len(inside)))] + bytes(1 << 24), 1)
    return gzip.compress(damaged(r, inside), 1)


def odd_png(r: random.Random, data: bytes) -> bytes:
    """A PNG whose chunks were changed, lost, doubled or exchanged and have the right CRC again."""
    if r.random() < 0.2 or data[:4] != b"\x89PNG":
        return damaged(r, data)
    chunks, at = [], 8
    while at + 8 <= len(data):
        size, kind = struct.unpack(">I4s", data[at : at + 8])
        chunks.append((kind, data[at + 8 : at + 8 + size]))
        at += 12 + size
    index = r.randrange(len(chunks))
    kind, body = chunks[index]
    choice = r.randrange(5)
    if choice == 0:
        size, extra = r.choice(((4, 0), (4, 4), (1, 8), (1, 9), (1, 12)))
        kind, body = chunks[0]
        chunks[0] = kind, _patched(body, extra, (r.choice(NUMBERS) % 256**size).to_bytes(size, "big"))
    elif choice == 1:
        chunks.insert(index, r.choice(chunks))
    elif choice == 2:
        del chunks[index]
    elif choice == 3:
        bomb = _packed_zeros()
        odd = (b"zTXt", b"x\0\0" + bomb), (b"iCCP", b"x\0\0" + bomb), (b"IDAT", bomb), (b"acTL", r.randbytes(8)), (b"tRNS", b"")
        chunks.insert(1, r.choice(odd))
    else:
        chunks[index] = kind, damaged(r, body)
    return data[:8] + b"".join(struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b)) for k, b in chunks)


@functools.cache
def _packed_zeros() -> bytes:
    return zlib.compress(bytes(1 << 24))


# safetensors.


def odd_header(r: random.Random, data: bytes) -> bytes:
    """A safetensors file whose header was changed as a tree, with the right length in front of it; or blind damage."""
    if r.random() < 0.2:
        return damaged(r, data)
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    at = r.choice(list(header))
    header = {**header, at: odd_tree(r, header[at])} if r.random() < 0.8 else odd_tree(r, header)
    return with_header(json.dumps(header).encode(), data[8 + size :])


def with_header(header: bytes, body: bytes) -> bytes:
    """A safetensors file of a header and what follows."""
    return struct.pack("<Q", len(header)) + header + body
