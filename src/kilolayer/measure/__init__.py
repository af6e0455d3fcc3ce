"""Measurements of any network: decomposition, gradients, shortcuts, responses, Jacobians, paths, landscapes."""
