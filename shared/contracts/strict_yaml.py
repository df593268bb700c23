"""YAML as it reads: no word becomes a truth value, no number loses a digit, no key stands twice.

YAML 1.1 reads FIWARE's nitrogen monoxide column ``no`` as false and the version ``1.10`` as the number 1.1.
Here only ``true``, ``false``, ``null`` and JSON numbers are anything but text, and a reader that wants text
refuses a number. Anchors, aliases and tags are refused.
"""

from __future__ import annotations

import json
import re
from typing import Final

import yaml

_NUMBER: Final = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?")
_WORDS: Final[dict[str, bool | None]] = {"true": True, "false": False, "null": None, "~": None, "": None}

MAX_DEPTH: Final = 32
"""Deepest nesting that is read."""

Tree = dict[str, "Tree"] | list["Tree"] | str | int | float | bool | None
"""What a document holds."""


def load_yaml(text: str) -> Tree:
    """Parse one YAML document.

    Raises:
        ValueError: with what is wrong and the line.
    """
    try:
        depth = 0
        for event in yaml.parse(text, Loader=yaml.BaseLoader):
            _refuse_references(event)
            _refuse_surrogates(event)
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:
                raise ValueError(f"it is nested more than {MAX_DEPTH} deep{_line(event.start_mark)}")
        node = yaml.compose(text, Loader=yaml.BaseLoader)
    except yaml.MarkedYAMLError as cause:
        line = f" in line {cause.problem_mark.line + 1}" if cause.problem_mark else ""
        raise ValueError(f"{cause.problem}{line}") from cause
    except OverflowError as cause:  # of a number so large, Python makes no character
        raise ValueError("an escape stands for no character") from cause
    except yaml.YAMLError as cause:
        raise ValueError("it is no YAML text") from cause
    return None if node is None else _tree(node)


def _refuse_surrogates(event: yaml.Event) -> None:
    """Refuse half a character, which an escape can write and no UTF-8 text can hold."""
    if isinstance(event, yaml.ScalarEvent) and any("\ud800" <= character <= "\udfff" for character in event.value):
        raise ValueError(f"an escape stands for half a character{_line(event.start_mark)}")


def _refuse_references(event: yaml.Event) -> None:
    """Refuse what makes one place of the text mean another."""
    named = getattr(event, "anchor", None) is not None or getattr(event, "tag", None) is not None
    if isinstance(event, yaml.AliasEvent) or named:
        raise ValueError(f"anchors, aliases and tags are not allowed{_line(event.start_mark)}")


def _tree(node: yaml.Node) -> Tree:
    """Turn one node into plain data."""
    if isinstance(node, yaml.MappingNode):
        return _mapping(node)
    if isinstance(node, yaml.SequenceNode):
        return [_tree(item) for item in node.value]
    return _scalar(node.value, plain=isinstance(node, yaml.ScalarNode) and node.style is None)


def _mapping(node: yaml.MappingNode) -> dict[str, Tree]:
    """Turn a mapping into a dict; a key is text, and stands once."""
    tree: dict[str, Tree] = {}
    for key, value in node.value:
        name = key.value if isinstance(key, yaml.ScalarNode) else None
        if name is None:
            raise ValueError(f"a key is no text{_line(key.start_mark)}")
        if name in tree:
            raise ValueError(f"the key `{name}` stands twice{_line(key.start_mark)}")
        tree[name] = _tree(value)
    return tree


def _scalar(text: str, *, plain: bool) -> Tree:
    """Read an unquoted word, or JSON number, as what it is; all else is text."""
    if plain and text in _WORDS:
        return _WORDS[text]
    if plain and _NUMBER.fullmatch(text):
        number: int | float = json.loads(text)
        return number
    return text


def _line(mark: object) -> str:
    """Say where, counting from 1."""
    line = getattr(mark, "line", None)
    return "" if line is None else f" in line {line + 1}"
