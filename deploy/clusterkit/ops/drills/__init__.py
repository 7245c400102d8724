"""Drills: a fault caused on purpose while numbered tasks run, ending in a ledger.

``drill`` is the order of things, ``faults`` what can be broken, ``ledger`` what is counted and how.
"""
