"""Where the words of a known transcript lie in its audio, and how well the two belong together."""
