"""The round: what the coordinator asks, what a PC answers, and how both run on Flower.

job.py               what is asked of a PC; public, the same for all PCs
messages.py          the job, a vector or a refusal <-> Flower records
pc.py                a PC's side of a round: check, charge, train
client_app.py        Flower client app: decode, call pc.py, encode
coordinator.py       the coordinator's side of a round, in numbered steps
server_app.py        Flower server app: open the run folder, run the coordinator
exact_sum.py         sum of updates in fixed point: the same in any order of arrival
server_optimizer.py  FedAvg, FedAvgM, FedAdam
checkpoint.py        one file per run, replaced in one step after each round
evaluation.py        the coordinator's own public validation and test sets
simulation.py        many PCs on one machine: folders, engines, results
flower_adapter.py    the only place that touches Flower's internals
flower_engine.py     Flower's simulation runtime as a child process
"""
