"""Shared by the tests of data build: a service that answers as an OpenAI-compatible endpoint."""

from collections.abc import Iterator

import pytest

from tests.data.build.service import KEY, Service, serving


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    monkeypatch.setenv("STUDYHALL_API_KEY", KEY)
    with serving() as running:
        yield running
