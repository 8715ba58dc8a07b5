"""PTransforms, one step a module, and the scorer they call."""
