"""The round: what the coordinator asks, what a PC answers, and how both run on Flower.

What is asked
job.py               what is asked of a PC; public, the same for all PCs, signed
messages.py          requests and replies <-> Flower records
round_terms.py       the public facts of a round, computed alike on both sides
admission.py         who belongs to the federation: the admission key's holder

A PC
client_app.py        Flower client app: decode, call, encode
pc.py                setup, agree, unmask: its keys and its word; no torch
trainer.py           mask: check, charge, train, seal
policy.py            what its owner lets a job ask for
vault.py             its keys and promises on the disk

The coordinator
server_app.py        Flower server app: open the run folder, run the coordinator
coordinator.py       a round, in numbered steps
membership.py        which PCs are there, with which keys
exchange.py          messages to PCs and back
sums.py              the sum of a round, sealed or open
opening.py           a group agrees on its sum and opens it
spool.py             uploads on the disk
quarrels.py          who is left out where two PCs contradict each other
server_optimizer.py  FedAvg, FedAvgM, FedAdam
checkpoint.py        one file per run, replaced in one step after each round
evaluation.py        the coordinator's own public validation and test sets

Both on one machine
simulation.py        many PCs: folders, engines, results
simulated_pc.py      one of them
flower_adapter.py    the only place that touches Flower's internals
flower_engine.py     Flower's simulation runtime as a child process
"""
