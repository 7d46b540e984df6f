"""Thin routes: read the request, call the service, shape the answer."""
