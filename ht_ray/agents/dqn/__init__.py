"""DQN for vectors: settings and agent."""
