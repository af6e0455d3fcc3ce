"""Predictions from descriptions alone: mean field theory, products of shortcut factors, trainability."""
