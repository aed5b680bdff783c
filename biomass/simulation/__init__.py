"""Simulated screens: what cells look like, what plates do to them, and the screens that are made of both."""
