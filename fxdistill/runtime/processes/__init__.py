"""The processes of a run: one a device, started, joined, asked to stop."""
