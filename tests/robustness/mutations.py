"""Damage to files, chosen by a random generator: bytes, JSON and text."""

import copy
import json
from typing import Any

import numpy as np


#: What a value of JSON may wrongly be.
ODD_VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    0.5,
    7,
    2**31,
    2**63,
    2**70,
    1e-310,
    1e308,
    float("nan"),
    float("inf"),
    -float("inf"),
    "",
    "0",
    "1.5",
    "person",
    "../../../outside.jpg",
    "/etc/passwd",
    "a\0b",
    "\ud800",
    "x" * 5000,
    [],
    {},
    [[]],
    [None],
    [1, 2],
    [0.0] * 51,
    [float("nan")] * 51,
    [[1, 2, 3, 4]],
    {"size": [4, 4], "counts": "abc"},
    {"a": {"b": []}},
)


def pick(rng: np.random.Generator, choices: Any) -> Any:
    """One of a sequence, as it is; NumPy's `choice` would make arrays of them."""
    return choices[int(rng.integers(len(choices)))]


def damage_bytes(content: bytes, rng: np.random.Generator) -> tuple[bytes, str]:
    """Damages a file; returns it and what was done."""
    if not content:
        return content, "empty"
    data = bytearray(content)
    size = len(data)
    what = pick(rng, ("truncated", "flipped", "header", "zeros", "removed", "repeated", "noise", "appended", "empty"))
    place, length = int(rng.integers(size)), int(rng.integers(1, max(2, size // 4)))
    if what == "truncated":
        data = data[:place]
    elif what == "flipped":
        for _ in range(int(rng.integers(1, 20))):
            data[int(rng.integers(size))] ^= 1 << int(rng.integers(8))
    elif what == "header":
        for _ in range(int(rng.integers(1, 6))):
            data[int(rng.integers(min(size, 64)))] = int(pick(rng, (0, 1, 127, 128, 255)))
    elif what == "zeros":
        data[place : place + length] = bytes(len(data[place : place + length]))
    elif what == "removed":
        del data[place : place + length]
    elif what == "repeated":
        data[place:place] = data[place : place + length]
    elif what == "noise":
        data[place : place + length] = rng.bytes(len(data[place : place + length]))
    elif what == "appended":
        data += rng.bytes(length)
    else:
        data = bytearray()
    return bytes(data), what


def _places(value: Any, found: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        found.append((value, key))
        _places(value[key], found)
    return found


def damage_json(content: Any, rng: np.random.Generator, values: tuple[Any, ...] = ODD_VALUES) -> tuple[Any, str]:
    """Changes one to three values of a JSON document; returns it and what was done."""
    content = copy.deepcopy(content)
    done = []
    for _ in range(int(rng.integers(1, 4))):
        places = _places(content, [])
        if not places:
            break
        # most places are numbers of long lists: a level is chosen first
        keys = sorted({str(key) for _, key in places if isinstance(key, str)})
        key = pick(rng, keys) if keys and rng.random() < 0.7 else None
        holder, key = pick(rng, [place for place in places if key is None or place[1] == key])
        what = pick(rng, ("value", "value", "value", "deleted", "doubled", "moved", "scaled"))
        if what == "deleted":
            del holder[key]
        elif what == "doubled" and isinstance(holder, list):
            holder.insert(key, copy.deepcopy(holder[key]))
        elif what == "moved":
            holder[key] = copy.deepcopy(pick(rng, places)[0])
        elif what == "scaled" and type(holder[key]) in (int, float):
            holder[key] = holder[key] * pick(rng, (-1, 1000, 0.001, 1e30))
        else:
            what, value = "value", pick(rng, values)
            holder[key] = copy.deepcopy(value)
            what = f"= {str(value)[:20]!r}"
        done.append(f"{key} {what}")
    return content, "; ".join(done)


def damage_text(text: str, rng: np.random.Generator) -> tuple[bytes, str]:
    """Damages a text file in ways that editors and programs do; returns it and what was done."""
    what = pick(
        rng,
        ("bom", "utf-16", "latin-1", "cut", "deep", "nothing", "spaces", "crlf", "doubled", "nul", "lines", "none"),
    )
    if what == "bom":
        return b"\xef\xbb\xbf" + text.encode(), what
    if what == "utf-16":
        return text.encode("utf-16"), what
    if what == "latin-1":
        return text.replace("e", "é", 3).encode("latin-1"), what
    if what == "cut":
        return text[: int(rng.integers(len(text) + 1))].encode(), what
    if what == "deep":
        depth = int(pick(rng, (50, 2000, 200_000)))
        return (pick(rng, ("[", '{"images":', "{a: ")) * depth).encode(), what
    if what == "nothing":
        return b"", what
    if what == "spaces":
        return b" \n\t\r\n", what
    if what == "crlf":
        return text.replace("\n", "\r\n").encode(), what
    if what == "doubled":
        return (text + text).encode(), what
    if what == "nul":
        return text.encode() + b"\0\0\0", what
    if what == "lines":
        lines = text.splitlines(keepends=True)
        rng.shuffle(lines)  # type: ignore[arg-type]
        return "".join(lines).encode(), what
    return pick(rng, (b"null", b"[]", b"{}", b"0", b'"text"', b"NaN", b"[1, 2")), what


def to_json(content: Any) -> str:
    return json.dumps(content)
