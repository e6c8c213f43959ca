"""What bad input is answered with."""

from collections.abc import Callable

import pytest

from console import UserError


def refusal(work: Callable[[], object], kind: type[UserError] = UserError) -> str:
    """The one line that `work` refuses with; a failed test where it does not, or says more."""
    with pytest.raises(kind) as caught:
        work()
    said = str(caught.value)
    assert "\n" not in said
    return said
