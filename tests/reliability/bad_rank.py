"""Imported by each of two ranks, see `bad_numbers.on_two`."""

from tests.reliability.bad_numbers import check_second_step

check_second_step()
