"""A run: what trains, how it steps, how it is saved, resumed and checked."""
