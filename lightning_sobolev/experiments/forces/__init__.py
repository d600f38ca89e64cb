"""Learn energies and forces."""
