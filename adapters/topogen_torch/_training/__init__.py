"""The `topogen train` command: data, loop, checkpoints, and what it shows."""
