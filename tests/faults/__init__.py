"""Faults on purpose: real servers and a real PostgreSQL, broken while clients work, and a checker of what was promised.

``make torture`` runs it for long; ``make test`` runs it for a minute with each feed.
"""
