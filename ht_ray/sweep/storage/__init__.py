"""Storage of a study: its location, which one driver has at a time, and the mirror of its files."""
