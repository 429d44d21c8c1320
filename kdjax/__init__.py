"""kdjax: train classifiers whose confidence can be trusted, and distil that trust into small ones, in JAX."""
