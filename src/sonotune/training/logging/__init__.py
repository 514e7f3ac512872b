"""What a run tells: its record and events, trackers, a progress bar."""
