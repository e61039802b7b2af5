"""DrQ(eps): settings and agent."""
