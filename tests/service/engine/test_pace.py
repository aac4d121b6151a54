"""Prompts take a share of the time that a step takes without them, whatever machine and model."""

import pytest

from service.engine.pace import LEAST, SHARE, Pace

MOST = 512


class Clock:
    """Seconds that pass when they are told to."""

    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def run(pace: Pace, clock: Clock, step_seconds: float, token_seconds: float) -> int:
    """Write, with a prompt beside it in every other step; return what is read in the last one."""
    tokens = 0
    for step in range(200):
        tokens = pace.tokens if step % 2 else 0
        pace.stepping(writing=True, tokens=tokens)
        clock.seconds += step_seconds + tokens * token_seconds
    return tokens


@pytest.mark.parametrize(
    ("step", "token", "expected"), [(8e-3, 1e-4, 32), (4e-3, 1e-6, MOST), (1e-3, 1e-3, LEAST), (1.0, 5e-3, 80)]
)
def test_a_prompt_takes_its_share(step: float, token: float, expected: int) -> None:
    assert expected == min(MOST, max(LEAST, round(SHARE * step / token)))
    clock = Clock()
    assert run(Pace(MOST, clock), clock, step, token) == pytest.approx(expected, abs=1)


def test_pauses_and_what_is_not_known_yet_do_not_count() -> None:
    clock = Clock()
    pace = Pace(MOST, clock)
    assert pace.tokens == MOST
    for _ in range(100):
        pace.stepping(writing=True, tokens=0)
        clock.seconds += 1e-3
        pace.stepping(writing=False, tokens=MOST)
        clock.seconds += 1e-4 * MOST
        pace.stepping(writing=True, tokens=0)
        pace.pause()
        clock.seconds += 1000
    assert pace.tokens == LEAST
