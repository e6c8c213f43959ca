"""How long reading and writing may last follows from bytes and from what storage has shown."""

import pytest

from trainer.store.storage import Meter

GIB = 2**30


def test_a_limit_follows_the_bytes() -> None:
    meter = Meter()
    assert meter.limit_s(1800, 0) == 1800
    assert meter.limit_s(1800, 4e9) == pytest.approx(1800 + 4 * 4e9 / 50e6)  # nothing is measured yet
    meter.add(GIB, GIB / 150e6)
    assert meter.limit_s(1800, 4e9) == pytest.approx(1800 + 4 * 4e9 / 150e6)


def test_the_page_cache_says_nothing_of_storage() -> None:
    meter = Meter()
    meter.add(GIB // 2, 0.05)
    assert meter.per_s == 200e6
    meter = Meter()
    meter.add(1000, 100.0)  # a header: no measurement
    assert meter.per_s == 50e6


def test_slower_storage_extends_a_phase_while_it_lasts() -> None:
    """280 GB at 64 ranks on storage that gives each 1 MB/s: the old limit of 1,800 s would have killed it before its first step, four times."""
    meter, limits = Meter(), []
    needed_s = 4.4e9 / 1e6
    with meter.followed(limits.append, 1800, 4.4e9):
        for _ in range(4):
            meter.add(16 * 2**20, 16 * 2**20 / 1e6)
    assert limits[-1] > needed_s > 1800 and limits == sorted(limits)
    meter.add(GIB, 1e6)
    assert len(limits) == 4  # it is over


def test_old_measurements_are_forgotten() -> None:
    meter = Meter()
    meter.add(GIB, GIB / 150e6)
    for _ in range(20):
        meter.add(GIB // 4, GIB / 4 / 20e6)
    assert meter.per_s == pytest.approx(20e6, rel=0.2)


def test_what_takes_long_is_told() -> None:
    meter = Meter()
    assert meter.in_words("loading weights", 1800, 1e9) is None
    told = meter.in_words("loading weights", 1800, 44e9)
    assert told == "loading weights: 44.0 GB for each rank, 15 min at 50 MB/s; after 89 min it counts as hung"
