"""Which scan order is best on some data: runs that are paired by seed, and what follows from them.

`vimamba scanbench` trains; this package plans, distributes and reports the runs.
"""
