"""What is measured on training clips before ranks are chosen."""
