"""Train parts of a network without waiting for the gradient."""
