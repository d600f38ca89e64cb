"""Many small regressions trained side by side, as slices of one stacked network."""
