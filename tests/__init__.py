"""Tests, room by room like the program."""
