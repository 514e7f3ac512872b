"""Settings: the schema that lists every one of them, and the loader that turns command-line words into a config."""
