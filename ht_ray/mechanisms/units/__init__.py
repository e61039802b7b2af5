"""Hidden units: found in a network, looked at, recycled."""
