"""The holder of a federation's admission key: who belongs to it, and which jobs it runs.

federation.py  the folder of a federation: made once, members come and go
key.py         the admission key, and the list of members that it signs
members.py     all PCs that were ever admitted
jobs.py        signed jobs
authority.py   TLS certificates of the federation's own authority

Nothing here runs on the coordinator's server.
"""
