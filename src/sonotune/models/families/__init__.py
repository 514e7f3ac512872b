"""One module per architecture; they do not import each other."""
