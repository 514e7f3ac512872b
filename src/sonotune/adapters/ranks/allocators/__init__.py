"""One module per rank allocator; they do not import each other."""
