"""Games: the interface, Atari, Catch."""
