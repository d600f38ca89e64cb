"""Price baskets."""
