"""Move a table of a store to another space: plan, run, verify, cut over, roll back and clean up.

A job knows stitchers and their scores. All that it does to a table is done by a `repstitch.stores.Store`.
"""
