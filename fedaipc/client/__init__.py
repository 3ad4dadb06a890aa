"""A PC's side of a round. Its folder belongs to its owner, and so does every decision here.

client_app.py  Flower client app: decode, call, encode
client.py      setup, agree, unmask: its keys, and what it signs; no torch
trainer.py     mask: check, charge, train, seal
policy.py      what its owner lets a job ask for
key_store.py   its keys and promises on the disk
enrollment.py  how it comes to belong to a federation, leaves it, or moves
"""
