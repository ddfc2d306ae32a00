"""Plots: functions that turn a result into a matplotlib Figure."""
