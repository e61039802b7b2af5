"""Tables and figures of plasticity indicators."""
