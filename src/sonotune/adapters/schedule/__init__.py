"""What happens to adapters while they train, beside the gradient of the loss."""
