"""State, step, loop, optimisers, schedules, checkpoints, metrics, faults."""
