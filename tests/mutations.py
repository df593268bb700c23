"""Mutations that know what they mutate: MessagePack by its tree, texts by line and value, anything by its bytes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from random import Random
from typing import Any

import msgspec

Mutation = Callable[[bytes, Random], bytes]

ODD_VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 1, 2**31, 2**63 - 1, 2**63, 2**64 - 1, -(2**63), 0.0, 1.5, 1e308, float("nan"), float("inf"),
    "", "a", "health", "Health", "sybil", "x" * 33, "\x00", "\ud7ff", "é" * 40, "1" * 5000, "2026-02-30", "9999-12-31",
    b"", b"\x00", bytes(31), bytes(32), bytes(33), bytes(64), b"\xff" * 32, bytes(70_000),
    [], [[]], ["health", "health"], [0] * 1100, {}, {"a": 1}, {1: 2}, {b"k": b"v"}, {"type": "Reveal"},
    msgspec.msgpack.Ext(1, b"ext"), msgspec.msgpack.Ext(-1, bytes(12)),
)  # fmt: skip

ODD_WORDS = (
    "", "~", "null", "true", "-", "0", "-1", "1e999", "-1e-999", ".nan", "nan", "inf", "1" * 5000, "0x10", "1.5", "9" * 20,
    '"', "'", "''", '""', '"\\u0000"', '"\\ud800"', "[]", "{}", "[" * 2000, "{" * 2000, "[[1]]", "{a = 1}", "- - -", "&a",
    "*a", "!!python/object:os.system", "!t", "|", ">", "? ", "%YAML 1.1", "---", "...", "\t", "#", "=", "[table]", "[[table]]",
    "2026-02-30", "2026-01-01T00:00:00Z", "\x00", "\x85", "\u2028", "\ufeff", "\U0001f600", '"health"', "a" * 70_000,
)  # fmt: skip

LENGTHS = (
    b"\xdd\xff\xff\xff\xff",
    b"\xdf\xff\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff",
    b"\xdb\x7f\xff\xff\xff",
    b"\xdc\xff\xff",
)
"""Headers that promise a list, table, bytes or text of up to 4 Gi items."""


def mutate_bytes(data: bytes, random: Random) -> bytes:
    """Flip, cut, double, insert or overwrite somewhere."""
    at = random.randrange(len(data) + 1)
    before, rest = data[:at], data[at:]
    cut = random.choice((1, 2, 8, 64))
    changed: tuple[bytes, ...] = (
        bytes(byte ^ 1 << random.randrange(8) for byte in rest[:1]) + rest[1:],
        b"",
        rest[cut:],
        rest[:cut] + rest,
        random.choice(LENGTHS) + rest,
        random.choice(LENGTHS) + rest[cut:],
        bytes([random.choice((0, 0x80, 0xC0, 0xC1, 0xFF))]) + rest[1:],
    )
    return before + random.choice(changed)


def mutate_tree(data: bytes, random: Random) -> bytes:
    """Change one to three places of a MessagePack message, seldom its bytes as well."""
    tree = msgspec.msgpack.decode(data)
    if not isinstance(tree, dict | list):
        return mutate_bytes(data, random)
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        places = _places(tree)
        if not places:
            break
        _change(*random.choice(places), random, [parent[key] for parent, key in places])
    try:
        mutated = msgspec.msgpack.encode(tree)
    except (OverflowError, RecursionError):  # an integer that grew twice, lists that were nested twice
        return mutate_bytes(data, random)
    return mutate_bytes(mutated, random) if random.randrange(8) == 0 else mutated


def _places(tree: Any) -> list[tuple[Any, Any]]:
    """Every place of a tree, as container and key; what is nested deeper than any message is left out."""
    places, level = [], [tree]
    for _ in range(8):
        found = [(node, key) for node in level for key in (node if isinstance(node, dict) else range(len(node)))]
        places += found
        level = [node[key] for node, key in found if isinstance(node[key], dict | list)]
    return places


def _change(parent: Any, key: Any, random: Random, others: list[Any]) -> None:
    """Change one place of a tree."""
    kind = random.randrange(8)
    if kind == 0:
        del parent[key]
    elif kind == 1 and isinstance(parent, dict):
        parent[random.choice(("extra", "health", "sybil", "", "x" * 40, 7, b"k"))] = parent.pop(key)
    elif kind == 2 and isinstance(parent, list):
        many = 1100 if isinstance(parent[key], str | int) else 3  # long things many times would fill the memory
        parent[key:key] = [parent[key]] * random.choice((1, 1, 1, 2, many))
    elif kind == 3:
        parent[key] = copy.deepcopy(random.choice(ODD_VALUES))
    elif kind == 4:
        parent[key] = copy.deepcopy(random.choice(others))
    elif kind == 5:
        for _ in range(random.choice((1, 1, 1, 40, 200))):
            parent[key] = [parent[key]]
    else:
        parent[key] = _change_value(parent[key], random)


def _change_value(value: Any, random: Random) -> Any:
    """A value of the same kind, or nearly."""
    if isinstance(value, bytes):
        return _change_bytes(value, random)
    if isinstance(value, str):
        return random.choice((value + "x", value[:-1], value.upper(), value * 40, value.encode(), "", value + "\x00"))
    if isinstance(value, bool | int | float):
        return random.choice((-value, value + 1, value - 1, value * 2, float(value), str(value)))
    return copy.deepcopy(random.choice(ODD_VALUES))


def _change_bytes(value: bytes, random: Random) -> bytes:
    """Change bytes; where they hold a message of their own, mostly that one."""
    if value[:1] >= b"\x81" and random.randrange(4):
        try:
            return mutate_tree(value, random)
        except (ValueError, TypeError):  # it was no message
            return mutate_bytes(value, random)
    return mutate_bytes(value, random)


def mutate_text(data: bytes, random: Random) -> bytes:
    """Change lines or values of a TOML, YAML or JSON text, seldom its bytes."""
    if random.randrange(10) == 0:
        return mutate_bytes(data, random)
    lines = data.decode(errors="replace").split("\n")
    for _ in range(random.choice((1, 1, 2, 3))):
        at, other = random.randrange(len(lines)), random.randrange(len(lines))
        kind = random.randrange(6)
        if kind == 0:
            del lines[at]
        elif kind == 1:
            lines.insert(at, lines[other])
        elif kind == 2:
            lines[at] = " " * random.randrange(1, 9) + lines[at]
        elif kind == 3:
            lines.insert(at, random.choice(ODD_WORDS))
        else:
            lines[at] = _change_word(lines[at], random)
        lines = lines or [""]
    return "\n".join(lines).encode(errors="replace")


def _change_word(line: str, random: Random) -> str:
    """Put an odd word where a value, a name or a mark stood."""
    marks = [at + 1 for at, sign in enumerate(line) if sign in "=:,[{-"]
    if not marks:
        return line + random.choice(ODD_WORDS)
    at = random.choice(marks)
    return line[:at] + " " + random.choice(ODD_WORDS) + (line[at:] if random.randrange(2) else "")


def mutate_safetensors(data: bytes, random: Random) -> bytes:
    """Change the header and put its right length in front, or change any byte."""
    if random.randrange(3) == 0:
        return mutate_bytes(data, random)
    length = int.from_bytes(data[:8], "little")
    header = mutate_text(data[8 : 8 + length].replace(b",", b",\n"), random).replace(b"\n", b" ")
    return len(header).to_bytes(8, "little") + header + data[8 + length :]
