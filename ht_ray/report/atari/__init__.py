"""Tables and figures of Atari studies."""
