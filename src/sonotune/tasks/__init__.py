"""What is learned: how a clip becomes a target, and how a prediction is scored. Tasks do not import each other."""
