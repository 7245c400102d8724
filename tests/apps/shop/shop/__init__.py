"""A shop with a worker."""
