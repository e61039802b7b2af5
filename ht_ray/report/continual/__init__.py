"""Tables and figures of continual and warm-start studies."""
