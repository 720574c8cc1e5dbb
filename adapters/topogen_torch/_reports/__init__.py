"""What layers and models take, in time and memory, measured beside dense."""
