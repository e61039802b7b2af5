"""BBF: settings, schedules, self-prediction, restart, agent."""
