"""What the cache is made of: sealed values, the tier in this process, the breaker."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.cache.breaker import FAILURES, Breaker
from service.cache.local_tier import ENTRY_BYTES, LocalTier
from service.cache.value import DamagedValueError, Layout

ROW = Layout("<f4", (3,))
KEY = "ttgpt:1:digest:wte:7"


@given(st.binary(min_size=12, max_size=12), st.text())
def test_what_is_sealed_opens(payload: bytes, key: str) -> None:
    assert ROW.decode(key, ROW.encode(key, payload)) == payload
    assert Layout("json").decode(key, Layout("json").encode(key, payload)) == payload


@given(st.binary(min_size=12, max_size=12), st.integers(0), st.integers(1, 255))
def test_any_changed_byte_is_noticed(payload: bytes, place: int, change: int) -> None:
    data = bytearray(ROW.encode(KEY, payload))
    data[place % len(data)] ^= change
    with pytest.raises(DamagedValueError):
        ROW.decode(KEY, bytes(data))


@pytest.mark.parametrize(
    ("data", "hint"),
    [
        (b"", "dtype"),
        (b"\x80\x04K\x01.", "dtype"),  # a pickle
        (ROW.encode(KEY, bytes(12))[:-1], "length"),
        (ROW.encode(KEY, bytes(12)) + b"\0", "length"),
        (Layout("<f4", (4,)).encode(KEY, bytes(16)), "dtype or shape"),
        (Layout("json").encode(KEY, bytes(12)), "dtype or shape"),
        (ROW.encode(KEY + "1", bytes(12)), "digest"),  # a sound value of another key
    ],
)
def test_other_values_are_refused(data: bytes, hint: str) -> None:
    with pytest.raises(DamagedValueError, match=hint):
        ROW.decode(KEY, data)


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 300))))
def test_the_local_tier_keeps_the_latest_and_its_bound(writes: list[tuple[str, int]]) -> None:
    limit = 900
    tier = LocalTier(limit)
    order: list[str] = []
    values: dict[str, bytes] = {}
    for key, size in writes:
        tier.put_many([(key, bytes(size))])
        order = [other for other in order if other != key] + [key]
        values[key] = bytes(size)
        while sum(len(values[k]) + ENTRY_BYTES for k in order) > limit:
            order.pop(0)
        assert tier.size_bytes == sum(len(values[k]) + ENTRY_BYTES for k in order) <= limit
        assert tier.absent("abcdef") == [k for k in "abcdef" if k not in order]
    assert tier.get_many(order) == [values[k] for k in order]


def test_what_was_used_stays_longest() -> None:
    tier = LocalTier(2 * (ENTRY_BYTES + 1))
    tier.put_many([("a", b"1"), ("b", b"2")])
    assert tier.get_many(["a"]) == [b"1"]
    tier.put_many([("c", b"3")])
    assert tier.get_many("abc") == [b"1", None, b"3"]


def test_the_breaker_opens_after_failures_in_a_row_only() -> None:
    told: list[bool] = []
    breaker = Breaker(told.append)
    for _ in range(3):
        for _ in range(FAILURES - 1):
            breaker.failed()
        breaker.succeeded()
    assert (breaker.open, told) == (False, [])
    for _ in range(FAILURES + 1):
        breaker.failed()
    assert (breaker.open, told) == (True, [True])
    breaker.succeeded()
    assert (breaker.open, told) == (False, [True, False])
