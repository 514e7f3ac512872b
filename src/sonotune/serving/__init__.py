"""Using and handing on what was trained: recognition, export, proof that an export is the same function."""
