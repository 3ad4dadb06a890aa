"""The holder of a federation's admission key: who belongs to it, and which jobs it runs.

key.py  the key, and the list of members that it signs

Nothing here runs on the coordinator's server.
"""
