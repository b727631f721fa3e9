"""Training: losses, negative samplers and optimisers."""
