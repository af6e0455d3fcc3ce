"""The lens: a page on loopback to play with h, f and depth, and see theory and measurement follow."""
