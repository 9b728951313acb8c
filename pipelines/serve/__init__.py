"""The server: HTTP on this machine alone, or on Ray Serve."""
