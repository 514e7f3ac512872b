"""What training lowers: a loss of a batch, made of what the model computes and what the clips say."""
