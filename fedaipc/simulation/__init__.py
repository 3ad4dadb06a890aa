"""Many PCs and the coordinator on one machine.

simulation.py      folders, engines, results
simulated_pc.py    one PC, whose owner the simulator plays
workers.py         PCs in several processes
flower_adapter.py  Flower in this process: the only place that touches its internals
flower_engine.py   Flower's simulation runtime as a child process
processes.py       its processes and signals
"""
