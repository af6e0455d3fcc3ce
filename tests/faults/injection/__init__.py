"""Faults at system calls of the real command line, by strace. Nothing here is shared with faults.c.

    python tests/faults/injection --scenario check-data --every 10 --limit 600 --out FILE.jsonl

A command is traced once, without a fault. Every call on the files of the case is then a point: the n-th call
of its kind in its process. Each point is tried with each fault, in a fresh copy of the files. That the fault
came where it was meant is read back from the trace of the trial itself.
"""
