"""Which scan order is best on some data: runs that are paired by seed, and what follows from them.

`vimamba scanbench` trains; what is here plans the runs, hands them out, and reports.
"""
