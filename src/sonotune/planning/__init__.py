"""What a run would cost, before it runs: sizes now; memory, time and money with the planner."""
