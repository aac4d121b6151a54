"""Whether proposals pay: in a world where a step takes a second, and everything else what a test says."""

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compressor.runtime.payoff import FIRST_STEPS, Average, Outcome, Payoff

MOST = 5
PROMPT, CONTEXT = 10, 500  # tokens of a text, at its beginning and its end
LEARNING = 60.0  # seconds that may be lost before it is known what proposals cost and what becomes of them


class World:
    """Texts that are written with a draft.

    Attributes:
        seconds: that have passed.
        written: tokens of each text.
        proposed: of each text.
    """

    def __init__(
        self, *, drafting: float, checking: float, acceptance: float, texts: int = 1, reading: float = 0.01
    ) -> None:
        self.drafting, self.checking, self.acceptance = drafting, checking, acceptance
        self.texts, self.reading = texts, reading
        self.payoff = Payoff(MOST)
        self.seconds, self.written, self.proposed = 0.0, 0, 0
        self._length = self._behind = PROMPT
        self._random = Random(0)

    def write(self, tokens: int) -> None:
        """Write some more tokens, or a few more than that."""
        end = self.written + tokens
        while self.written < end:
            if self._length >= CONTEXT:
                self._length = self._behind = PROMPT
            count = self.payoff.count(self.texts, self._behind)
            if count and self._behind > 2:
                self._catch_up()
            if count:
                self._propose(count)
            else:
                self._pass(1.0)
                self.payoff.stepped(self.texts, 1.0)
                self._behind += 1
                self._written(1)

    def _catch_up(self) -> None:
        self._pass(self._behind * self.reading)
        self.payoff.caught_up(self._behind, self._behind * self.reading)

    def _propose(self, count: int) -> None:
        accepted = 0
        while accepted < count and self._random.random() < self.acceptance:
            accepted += 1
        drafting, checking = count * self.drafting, 1 + count * self.checking
        self._pass(drafting + checking)
        self.payoff.checked(self.texts, [Outcome(count, accepted)] * self.texts, drafting, checking)
        self._behind = 1
        self.proposed += count
        self._written(1 + accepted)

    def _written(self, tokens: int) -> None:
        self.written += tokens
        self._length += tokens

    def _pass(self, seconds: float) -> None:
        self.seconds += seconds

    def speedup(self, count: int) -> float:
        """Return how many times faster texts are written with so many proposals than without, on average."""
        written = sum(self.acceptance**place for place in range(count + 1))
        return written / (1 + count * (self.drafting + self.checking))


COSTS = st.floats(0.01, 2)


@settings(max_examples=30)
@given(drafting=COSTS, checking=COSTS, acceptance=st.floats(0, 1), reading=st.floats(0, 0.05), texts=st.integers(1, 2))
def test_a_draft_costs_little_or_nothing(
    drafting: float, checking: float, acceptance: float, reading: float, texts: int
) -> None:
    world = World(drafting=drafting, checking=checking, acceptance=acceptance, texts=texts, reading=reading)
    world.write(5000)
    assert world.seconds <= 1.02 * world.written + LEARNING


@settings(max_examples=30)
@given(drafting=COSTS, checking=COSTS, acceptance=st.floats(0, 1))
def test_it_is_nearly_as_fast_as_with_the_best_number_of_proposals(
    drafting: float, checking: float, acceptance: float
) -> None:
    world = World(drafting=drafting, checking=checking, acceptance=acceptance)
    world.write(5000)
    best = max(1.0, *(world.speedup(count) for count in range(1, MOST + 1)))
    assert world.written / (world.seconds - LEARNING) >= 0.85 * best


def test_nothing_is_proposed_before_steps_are_measured_nor_to_many() -> None:
    world = World(drafting=0.1, checking=0.05, acceptance=0.9)
    world.write(FIRST_STEPS)
    assert world.proposed == 0
    world.write(1)
    assert world.proposed == MOST
    assert [world.payoff.count(texts, 1) > 0 for texts in range(5)] == [False, True, False, False, False]


def test_a_hopeless_draft_is_asked_less_and_less() -> None:
    world = World(drafting=0.5, checking=0.1, acceptance=0)
    world.write(300)
    before = world.proposed
    world.write(10_000)
    assert 0 < world.proposed - before < 300


def test_a_draft_that_becomes_good_is_found_out() -> None:
    world = World(drafting=0.2, checking=0.05, acceptance=0)
    world.write(2000)
    world.acceptance, before, began = 0.95, world.written, world.seconds
    world.write(10_000)
    assert (world.written - before) / (world.seconds - began) > 1.5


def test_a_machine_that_becomes_busy_is_no_reason_to_stop() -> None:
    """Steps with proposals take longer; those without, which are measured now and then, as well."""
    world = World(drafting=0.1, checking=0.05, acceptance=0.9)
    world.write(500)
    assert world.payoff.count(1, 1) == MOST
    rate = world.proposed / world.written
    world.write(1000)
    assert world.proposed / world.written == pytest.approx(rate, rel=0.1)


def test_a_long_prompt_is_not_read_for_a_few_tokens() -> None:
    world = World(drafting=0.1, checking=0.05, acceptance=0.9)
    world.write(50)
    world.payoff.caught_up(100, 1.0)
    assert world.payoff.catches_up(1, 1000, left=100)
    assert not world.payoff.catches_up(1, 1000, left=5)


def test_an_average_is_hardly_moved_by_one_that_is_far_off() -> None:
    average = Average()
    for _ in range(20):
        average.add(1.0)
    average.add(1000.0)
    assert average.value == pytest.approx(1, abs=0.1)
    average.add(-5.0)
    assert 0 < average.value < 1.1
