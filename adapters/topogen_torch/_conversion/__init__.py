"""Dense models made sparse, and sparse ones dense."""
