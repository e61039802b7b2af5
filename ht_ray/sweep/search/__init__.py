"""Searches: parameters, schedulers, populations, suggestions."""
