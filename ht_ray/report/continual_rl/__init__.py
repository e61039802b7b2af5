"""Tables and figures of agents over streams of tasks."""
