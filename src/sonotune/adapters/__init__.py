"""What is trained beside a frozen model: where adapters go, how large they are, how they are saved and merged."""
