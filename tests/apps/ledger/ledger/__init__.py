"""Numbered tasks that note down when they run."""
