"""A Flower app as its documents show one: for scripts/bench/fleet.py."""
