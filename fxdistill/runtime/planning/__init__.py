"""Models and data as they are found: read alike, fitted to each other, planned for, and checked before a run."""
