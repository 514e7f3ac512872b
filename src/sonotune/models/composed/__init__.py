"""A speech encoder, a projector and a language model put together."""
