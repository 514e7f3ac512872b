"""Is a corpus good enough to train on: a sample is aligned and scored, and a gate decides with known error rates."""
