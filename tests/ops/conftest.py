"""What the tests of all ops share."""

from collections.abc import Iterator

import pytest

from mirrorgan_fast.ops import use, why_not_compiled

compiled = pytest.mark.skipif(why_not_compiled() is not None, reason=str(why_not_compiled()))


@pytest.fixture(params=["reference", pytest.param("cpu", marks=compiled)])
def implementation(request) -> Iterator[str]:
    """Run the test once with each implementation."""
    with use(request.param):
        yield request.param
