"""Models made physically smaller, with the same outputs."""
