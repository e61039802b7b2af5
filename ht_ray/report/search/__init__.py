"""Tables and figures of searches over momentum and reset interval."""
