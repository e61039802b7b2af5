"""The studies: each module is a script for ``ray job submit`` and holds its search space."""
