"""Studies: trials, run settings, locations."""
