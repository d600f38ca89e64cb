"""Asks data whether derivatives will pay, and training whether they did."""
