"""Imported by each rank, see `bad_numbers.on_ranks`."""

from tests.reliability.bad_numbers import check_steps

check_steps()
