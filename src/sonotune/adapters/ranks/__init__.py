"""Which rank each adapted module gets within a budget of parameters."""
