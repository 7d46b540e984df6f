"""The service: HTTP routes and SQL around the engine of `blackbox`."""
