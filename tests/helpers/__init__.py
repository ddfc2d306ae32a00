"""Helpers for tests in several folders: synthetic spaces with known answers, servers, and calls to them."""
