"""Scripts that prepare data and use scores, and the modules that they share."""
