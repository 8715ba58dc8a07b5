"""Weights of several models into one, a tensor at a time: pure functions of tensors."""
