"""Formats, names and styles that tables and figures share."""
