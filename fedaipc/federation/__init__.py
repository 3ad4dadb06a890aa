"""What both sides of a round agree on.

job.py          what is asked of a PC; public, the same for all PCs, signed
messages.py     requests and replies <-> Flower records
round_terms.py  the public facts of a round, computed alike on both sides
"""
