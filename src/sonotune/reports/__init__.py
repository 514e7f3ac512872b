"""Reports: one self-contained HTML file per run, from its record, its events and its predictions, without torch."""
