"""Contracts: test classes that every algorithm, store and backend runs with fixtures of its own."""
