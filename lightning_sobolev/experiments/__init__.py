"""The experiments: everything that Hydra builds; the library never imports this."""
