"""A study: its rows and rules, its log, and what people and evaluators do to it. Pure logic over a store."""
