"""One browser per test file."""

import pytest

from tests.viz.browser import chromium


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser
