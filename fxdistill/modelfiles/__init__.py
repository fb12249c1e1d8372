"""Models in files: read without running what a file contains."""
