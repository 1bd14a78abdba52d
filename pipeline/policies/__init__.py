"""Pure rules, without clocks of their own, connections or state.

retries   which failures are final, and the delay before a retry
routing   which model a job goes to
leases    how often leases are renewed and looked at
chunking  how large chunks are
"""
