"""What a refusal says to whoever asked."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from shared.errors import CityFedError


def code_of(action: Callable[[], object], family: type[CityFedError] = CityFedError) -> str:
    """The reason code of the error that an action has to end with; what it says is one line."""
    with pytest.raises(family) as caught:
        action()
    assert "\n" not in caught.value.diagnostics()
    return caught.value.code
