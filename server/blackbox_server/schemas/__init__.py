"""The wire format: models of requests, types of answers, and the parsing of both JSON and queries."""
