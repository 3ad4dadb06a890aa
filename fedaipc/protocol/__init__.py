"""What both sides of a round agree on.

job.py            what is asked of a PC; public, the same for all PCs, signed
job_folder.py     a signed job on the disk
server_folder.py  what the server gets from the holder of the admission key
enrollment.py     invites and requests, which people hand to each other
messages.py       requests and replies <-> Flower records
round_terms.py    the public facts of a round, computed alike on both sides
one_run_grid.py   what all grids of the coordinator have in common
"""
