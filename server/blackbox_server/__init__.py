"""The service: blackbox studies over HTTP, kept in SQL."""
