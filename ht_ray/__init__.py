"""Keep networks plastic while they learn continually (Hare & Tortoise, arXiv 2406.02596).

Importing this package imports nothing else; each sub-package imports what it needs.
"""

__all__ = ["__version__"]

__version__ = "0.1.0"
