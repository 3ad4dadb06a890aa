"""What was promised and spent, signed, so that somebody else can check it.

document.py  what a certificate says, and the bytes that are signed
issue.py     certificates of a run and of a PC, made from their folders
check.py     recomputes one with dp-accounting alone
page.py      one for people to read
"""
