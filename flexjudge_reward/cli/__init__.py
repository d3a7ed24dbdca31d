"""The command line `flexjudge`."""
