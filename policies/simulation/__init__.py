"""Simulated traffic: a measured profile, simulated engine and host, a training environment."""
