"""Commands: one module a job, and the stages that run them."""
