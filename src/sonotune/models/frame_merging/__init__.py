"""Frame merging: neighbouring positions that say the same become one, within an encoder or before a language model."""
