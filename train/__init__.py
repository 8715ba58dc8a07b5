"""The trainer, its data and loss, and the evaluation; no Beam."""
