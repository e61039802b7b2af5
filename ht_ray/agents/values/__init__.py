"""Value heads and losses: scalar, two-hot, C51."""
