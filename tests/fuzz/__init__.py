"""Hostile input: targets that the fast tests and the long fuzzing share."""
