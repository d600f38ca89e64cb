"""Networks with derivatives beside the packages people use, on the same points."""
